"""Plans as files, and what surgery leaves untouched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.coupling import couple
from onnxprune.errors import PlanError
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.plan import Plan, digest, make_plan, read_plan, removed_units
from onnxprune.rules.base import Options
from onnxprune.surgery import cut
from onnxprune.testing import Builder, arrays, close, oracle, prove, sandwich
from onnxprune.writing import save


def network() -> ModelProto:
    """Two layers that share a bias, a residual sum, a BatchNormalization."""
    b = Builder()
    bias = b.weight(8, name="shared")
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), b.weight(8, 3, 1, 1, name="w1"), bias)
    z = b.op("Conv", b.op("Relu", y), b.weight(8, 8, 1, 1, name="w2"), bias)
    z = b.batch_norm(b.op("Add", b.op("Conv", z, b.weight(8, 8, 1, 1, name="w3")), y), "bn")
    return b.model(close(b, z, name="out"))


@pytest.fixture
def coupling() -> Coupling:
    return couple(load(network()))


def half(coupling: Coupling) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Every other unit of every group."""
    removed = np.zeros(coupling.units, dtype=bool)
    for group in coupling.groups:
        removed[group.units[::2]] = True
    return removed


def write(plan: Plan | dict[str, Any], path: Path) -> Path:
    path.write_text(json.dumps(plan.to_dict() if isinstance(plan, Plan) else plan))
    return path


# Plans


def test_the_json_form(coupling: Coupling, tmp_path: Path) -> None:
    removed = half(coupling)
    plan = make_plan(coupling, removed)
    data = plan.to_dict()
    assert data["version"] == 1
    assert data["model_sha256"] == digest(coupling.graph)
    assert data["kept"]["w1"] == {"0": [1, 3, 5, 7]}
    assert data["kept"]["w2"] == {"0": [1, 3, 5, 7], "1": [1, 3, 5, 7]}
    again = read_plan(write(plan, tmp_path / "plan.json"))
    assert again.to_dict() == data
    assert (removed_units(coupling, again) == removed).all()


def test_nothing_removed_is_an_empty_plan(coupling: Coupling) -> None:
    nothing = np.zeros(coupling.units, dtype=bool)
    plan = make_plan(coupling, nothing)
    assert plan.kept == {} and plan.splits == {}
    assert cut(coupling, plan, nothing) == coupling.graph.proto


def test_options_travel_with_the_plan(tmp_path: Path) -> None:
    coupling = couple(load(network()), Options(align=4, inexact=True))
    plan = read_plan(write(make_plan(coupling, half(coupling)), tmp_path / "plan.json"))
    assert plan.options == Options(align=4, inexact=True)


def test_a_digest_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "model.onnx"
    save(network(), path)
    assert digest(load(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_splits_are_listed_where_users_are_cut_differently(coupling: Coupling) -> None:
    removed = np.zeros(coupling.units, dtype=bool)
    removed[coupling.groups[0].units[:2]] = True
    removed[coupling.groups[1].units[5:]] = True
    plan = make_plan(coupling, removed)
    assert list(plan.splits.values()) == ["shared"]
    (copy,) = plan.splits
    assert {tuple(plan.kept[name][0]) for name in (copy, "shared")} == {tuple(range(2, 8)), tuple(range(5))}
    result = oracle(network(), removed)
    bias = {n.input[1]: n.input[2] for n in result.model.graph.node if len(n.input) == 3}
    assert {bias["w1"], bias["w2"]} == {copy, "shared"}


def test_a_name_that_is_taken_is_not_used_for_a_copy() -> None:
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "shared_split1"))
    coupling = couple(load(model))
    removed = np.zeros(coupling.units, dtype=bool)
    removed[coupling.groups[0].units[:2]] = True
    assert list(make_plan(coupling, removed).splits) == ["shared_split2"]


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda d: d | {"version": 99},
    "no version": lambda d: {k: v for k, v in d.items() if k != "version"},
    "no kept": lambda d: {k: v for k, v in d.items() if k != "kept"},
    "a list": lambda d: [d],
    "unsorted": lambda d: d | {"kept": {"w1": {"0": [3, 1]}}},
    "repeated": lambda d: d | {"kept": {"w1": {"0": [1, 1]}}},
    "nothing kept": lambda d: d | {"kept": {"w1": {"0": []}}},
    "fractions": lambda d: d | {"kept": {"w1": {"0": [0.5]}}},
    "negative": lambda d: d | {"kept": {"w1": {"0": [-1, 2]}}},
    "texts": lambda d: d | {"kept": {"w1": {"0": ["a"]}}},
    "nested": lambda d: d | {"kept": {"w1": {"0": [[1]]}}},
    "no axis": lambda d: d | {"kept": {"w1": {"first": [1]}}},
    "negative axis": lambda d: d | {"kept": {"w1": {"-1": [1]}}},
    "unknown option": lambda d: d | {"options": {"colour": "red"}},
    "bad option": lambda d: d | {"options": {"align": 0}},
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_files_that_are_no_plans(coupling: Coupling, spoil: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    data = make_plan(coupling, half(coupling)).to_dict()
    path = write(spoil(json.loads(json.dumps(data))), tmp_path / "plan.json")
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(path) in str(error.value)


def test_plans_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "absent.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(PlanError, match="not a plan file"):
        read_plan(tmp_path / "plan.json")


MISFITS: dict[str, tuple[dict[str, dict[int, list[int]]], str]] = {
    "another model's name": ({"nobody": {0: [0]}}, "no constant of it"),
    "another model's size": ({"w1": {0: [0, 11]}}, "has the shape [8, 3, 1, 1], not the plan's"),
    "another model's rank": ({"w1": {7: [0]}}, "not the plan's"),
    "a locked axis": ({"w1": {1: [0, 1]}}, "along axis 1, which is locked here"),
    "part of a unit": ({"w1": {0: [0, 1]}}, "removes part of a unit"),
}


@pytest.mark.parametrize(("kept", "message"), MISFITS.values(), ids=MISFITS)
def test_plans_that_do_not_fit(coupling: Coupling, kept: dict[str, dict[int, list[int]]], message: str) -> None:
    plan = Plan({name: {a: np.array(i) for a, i in axes.items()} for name, axes in kept.items()})
    with pytest.raises(PlanError) as error:
        removed_units(coupling, plan)
    assert message in str(error.value)


def test_a_plan_that_splits_what_need_not_be_split(coupling: Coupling) -> None:
    plan = make_plan(coupling, half(coupling))
    other = Plan(dict(plan.kept) | {"copy": plan.kept["shared"]}, {"copy": "shared"})
    with pytest.raises(PlanError, match="does not fit what is coupled"):
        removed_units(coupling, other)


def test_a_plan_fits_a_model_with_other_weights(coupling: Coupling) -> None:
    """A fine-tuned checkpoint of the same network takes the same plan."""
    removed = half(coupling)
    other = network()
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    tuned = couple(load(other))
    units = removed_units(tuned, make_plan(coupling, removed))
    assert (units == removed).all()
    made = cut(tuned, make_plan(tuned, units), units)
    assert arrays(made)["w1"].shape == (4, 3, 1, 1)


def test_locked_indices_without_any_unit() -> None:
    """A strided slice locks some channels, and a reduction the others: nothing is left, and nothing breaks."""

    def middle(b: Builder, y: str) -> str:
        mixed = b.op("ReduceMax", b.op("Slice", y, [1], [8], [1]), axes=[1])
        return b.op("Concat", b.op("Slice", y, [0], [1], [1], [2]), mixed, axis=1)

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")


# Surgery


def test_everything_but_the_tensors_stays() -> None:
    model = network()
    model.producer_name, model.doc_string, model.domain = "maker", "what it does", "acme"
    model.metadata_props.add(key="licence", value="free")
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="graph", value="one")
    for node in model.graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="node", value=node.name)
    for tensor in model.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
    model.graph.input[0].doc_string = "a picture"
    model.graph.quantization_annotation.add(tensor_name="x")
    made = oracle(model, 0.5).model
    assert made.graph.doc_string == "a graph"
    assert made.graph.metadata_props == model.graph.metadata_props
    assert [n.doc_string for n in made.graph.node] == [n.doc_string for n in model.graph.node]
    assert [n.metadata_props for n in made.graph.node] == [n.metadata_props for n in model.graph.node]
    assert [t.doc_string for t in made.graph.initializer][:9] == [t.doc_string for t in model.graph.initializer][:9]
    assert made.graph.input == model.graph.input
    assert made.graph.quantization_annotation == model.graph.quantization_annotation


def test_declared_sizes_follow() -> None:
    model = onnx.shape_inference.infer_shapes(network())
    made = oracle(model, 0.5).model
    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in made.graph.value_info}
    assert len(sizes) == len(model.graph.value_info)
    assert all(shape == [2, 4, 6, 6] for shape in sizes.values())


def test_declared_sizes_of_constants_follow() -> None:
    """torch's newer exporter declares initializers, and merges those that are equal."""
    model = network()
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    result = prove(model)
    assert result.plan.splits or result.plan.kept["shared"]
    made = arrays(result.model)
    for info in result.model.graph.value_info:
        assert [d.dim_value for d in info.type.tensor_type.shape.dim] == list(made[info.name].shape)


def test_constants_keep_their_place_and_their_inner_name() -> None:
    def middle(b: Builder, y: str) -> str:
        tensor = numpy_helper.from_array(b.rng.standard_normal((8, 8, 1, 1)).astype(np.float32), "w1")
        return b.op("Conv", y, b.op("Constant", name="w", value=tensor))

    result = prove(sandwich(middle))  # the inner name is that of another weight
    node = result.model.graph.node[1]
    assert node.op_type == "Constant" and node.attribute[0].t.name == "w1"
    assert list(node.attribute[0].t.dims) == [4, 4, 1, 1]


def test_a_shared_constant_node_is_split_too() -> None:
    b = Builder()
    bias = b.op("Constant", name="bias", value_floats=[0.1 * i for i in range(8)])
    y = b.input("x", 2, 3, 6, 6)
    for i in range(2):
        y = b.op("Relu", b.op("Conv", y, b.weight(8, b.shape(y)[1], 1, 1, name=f"w{i}"), bias))
    result = prove(b.model(close(b, y, name="last")))
    assert result.choices("w0") == result.choices("w1") == [8]
    assert list(result.plan.splits.values()) == ["bias"]


def test_a_shared_vector_that_is_an_output_stays_whole() -> None:
    b = Builder()
    bias = b.weight(8, name="bias")
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), b.weight(8, 3, 1, 1, name="w1"), bias)
    model = b.model(close(b, y))
    model.graph.output.add(name="bias", type=onnx.helper.make_tensor_type_proto(1, [8]))
    result = prove(model)
    assert result.choices("w1") == [8]
    assert arrays(result.model)["bias"].shape == (8,)
    assert result.plan.splits


def test_unused_initializers_travel() -> None:
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "unused"))
    result = prove(model)
    assert result.shape("unused") == (8, 8)


def test_weights_are_those_of_the_original(coupling: Coupling) -> None:
    removed = half(coupling)
    plan = make_plan(coupling, removed)
    made, before = arrays(cut(coupling, plan, removed)), arrays(coupling.graph.proto)
    for name, axes in plan.kept.items():
        array = before[plan.splits.get(name, name)]
        for axis, kept in axes.items():
            array = np.take(array, kept, axis)
        assert (made[name] == array).all()


def test_edited_constants_are_the_nodes_own() -> None:
    """A target shape that two Reshapes share is rewritten for the one that was cut."""

    def middle(b: Builder, y: str) -> str:
        target = b.const([2, 8, 36], "target")
        locked = b.op("Reshape", b.op("Softmax", b.conv(y, 8, name="locked"), axis=1), target)
        return b.op("Concat", b.op("Reshape", y, target), locked, axis=1)

    result = prove(sandwich(lambda b, y: b.op("Relu", middle(b, y))))
    assert result.choices("w1") == [8] and not result.can_cut("locked")
    targets = result.sizes("Reshape", 1)
    assert sorted(targets) == [[2, 4, 36], [2, 8, 36]]
    assert result.shape("target") == (3,)


def test_declared_sizes_of_shared_initializers_follow() -> None:
    """The newer torch exporter declares initializers among the values, too."""
    model = network()
    for tensor in model.graph.initializer:
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
    result = prove(model)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.graph.value_info}
    for tensor in result.model.graph.initializer:
        assert declared.get(tensor.name, list(tensor.dims)) == list(tensor.dims)
