"""Reading and writing models: shapes, constants, captures, external data, and every way in which a file can be bad."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, OutputError, ShapeError
from onnxprune.graph import file_bytes, is_external, load
from onnxprune.testing import Builder, oracle, prove, sandwich
from onnxprune.writing import check_output, draft, save


def small() -> ModelProto:
    return sandwich(lambda b, y: b.op("Relu", y))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights are in `model.onnx.data`."""
    path = tmp_path / "model.onnx"
    save(sandwich(lambda b, y: b.conv(y, 32, name="w"), channels=32), path, external=True)
    return path


# What a graph knows


def test_nodes_values_and_shapes() -> None:
    graph = load(small())
    assert [n.op for n in graph.nodes] == ["Conv", "Relu", "Conv"]
    assert graph.inputs == ("x",) and graph.outputs == (graph.nodes[2].outputs[0],)
    assert graph.shapes["x"] == (2, 3, 6, 6)
    assert graph.shapes["w1"] == (8, 3, 3, 3)
    assert graph.shapes[graph.nodes[1].outputs[0]] == (2, 8, 6, 6)
    assert graph.producer[graph.nodes[1].inputs[0]] is graph.nodes[0]
    assert [(n.index, slot) for n, slot in graph.consumers["w2"]] == [(2, 1)]
    assert graph.opset == 17
    assert graph.name == "the model"


def test_the_model_is_not_changed() -> None:
    model = small()
    before = model.SerializeToString()
    load(model)
    oracle(model, 0.5)
    assert model.SerializeToString() == before


def test_arrays_are_read_only_and_kept_when_small() -> None:
    graph = load(small())
    array = graph.array("w1")
    assert array is graph.array("w1")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_constants_of_every_attribute() -> None:
    b = Builder()
    x = b.input("x", 3)
    tensor = numpy_helper.from_array(np.array([2.0], np.float32), "inner")
    values = {"value": tensor, "value_float": 3.0, "value_floats": [4.0], "value_int": 1, "value_ints": [2]}
    made = [b.op("Constant", name=name, **{name: value}) for name, value in values.items()]
    graph = load(b.model(b.op("Identity", x), *made))
    found = {name: graph.array(name).tolist() for name in values}
    assert found == {"value": [2.0], "value_float": 3.0, "value_floats": [4.0], "value_int": 1, "value_ints": [2]}


def test_subgraphs_say_what_they_capture() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["outer", "own"], ["sum"])],
        "inner",
        [],
        [helper.make_tensor_value_info("sum", 1, [3])],
        [numpy_helper.from_array(np.ones(3, np.float32), "own")],
    )
    nested = helper.make_node("If", ["flag2"], ["nested"], then_branch=inner, else_branch=inner)
    then = helper.make_graph([nested], "then", [], [helper.make_tensor_value_info("nested", 1, [3])])
    b = Builder()
    b.input("flag", dtype=bool), b.input("flag2", dtype=bool)
    outer = b.op("Relu", b.input("x", 3), name="outer")
    y = b.op("If", "flag", then_branch=then, else_branch=inner)
    graph = load(b.model(b.declare(y, 3), outer))
    assert graph.nodes[1].captures == ("flag2", "outer")
    assert graph.captured == {"flag2", "outer"}


def test_parameters_leave_out_what_carries_shapes() -> None:
    graph = load(sandwich(lambda b, y: b.op("Reshape", y, b.const([2, 8, 36], "shape"))))
    assert graph.parameters == ("w1", "w2")


# Shapes


def test_open_sizes_keep_their_names() -> None:
    graph = load(sandwich(lambda b, y: b.op("Relu", y), spatial=("H", "W")))
    assert graph.shapes["x"] == (2, 3, "H", "W")


def test_shapes_given() -> None:
    model = sandwich(lambda b, y: b.op("Relu", y), spatial=("H", "W"))
    graph = load(model, {"x": (2, 3, 10, 12)})
    assert graph.shapes[graph.outputs[0]] == (2, 4, 10, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": (2, 3, 6, 6)}, "--shape names 'y', but no input and no inner value is called so; the inputs are x"),
        ({"x": (2, 5, 6, 6)}, "contradicts the model's (2, 3, 6, 6)"),
        ({"x": (2, 3, 6)}, "--shape x=2x3x6 contradicts"),
    ],
)
def test_shapes_that_do_not_fit(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError) as error:
        load(small(), given)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["GroupNormalization", "MeanVarianceNormalization"])
def test_shapes_that_onnx_does_not_infer(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        if kind == "GroupNormalization":
            return b.op(kind, y, b.near_one(8), b.weight(8), num_groups=4)
        return b.op(kind, y)

    graph = load(sandwich(middle, opset=21))
    assert graph.shapes[graph.nodes[1].outputs[0]] == (2, 8, 6, 6)


# External data


def test_external_data_are_mapped_not_read(external: Path) -> None:
    graph = load(external)
    assert is_external(graph) and not is_external(load(small()))
    assert isinstance(graph.array("w"), np.memmap)
    data = external.parent / "model.onnx.data"
    assert file_bytes(graph) == external.stat().st_size + data.stat().st_size


def test_external_data_are_cut_and_come_back(external: Path, tmp_path: Path) -> None:
    result = prove(external)
    assert result.choices("w1") == [32]
    out = tmp_path / "out.onnx"
    save(result.model, out, external=True)
    assert load(out).array("w").shape == (16, 16, 3, 3)
    assert (load(out).array("w") == load(result.model).array("w")).all()
    whole = onnx.load(out)
    assert not onnx.external_data_helper.uses_external_data(whole.graph.initializer[0])


def test_external_data_without_the_file(external: Path) -> None:
    (external.parent / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match="is missing"):
        load(external)


def test_external_data_that_are_cut_off(external: Path) -> None:
    data = external.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="cut off"):
        load(external)


def test_external_data_outside_the_folder(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"outside the model's folder.*refused"):
        load(external)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("length", "many")])
def test_external_data_at_no_place(key: str, value: str, external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = value if entry.key == key else entry.value
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"model.onnx: tensor '.*export the model again"):
        load(external)


def test_external_data_of_a_model_in_memory(external: Path) -> None:
    with pytest.raises(ModelError, match="pass the model's path"):
        load(onnx.load(external, load_external_data=False))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_external_data_of_small_types(kind: int, tmp_path: Path) -> None:
    values = np.arange(-8, 8).reshape(4, 4).repeat(64, axis=1)
    tensor = helper.make_tensor("w", kind, [4, 256], values.astype(np.float32).ravel())
    if kind == TensorProto.INT4:
        tensor = helper.make_tensor("w", kind, [4, 256], values.ravel())
    cast = helper.make_node("Cast", ["w"], ["y"], to=1)
    out = helper.make_tensor_value_info("y", 1, [4, 256])
    graph = helper.make_graph([cast], "tiny", [], [out], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (load(path).array("w").astype(np.float32) == values).all()


# Files that are no models


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfenot a model at all" * 9)


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    path.write_bytes(small().SerializeToString()[:-200])


def without_nodes(path: Path) -> None:
    model = small()
    del model.graph.node[:]
    path.write_bytes(model.SerializeToString())


def without_opset(path: Path) -> None:
    model = small()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())


def garbled(path: Path) -> None:
    model = small()
    body = [helper.make_node("Relu", ["x"], ["garbled"])]
    model.functions.append(helper.make_function("acme", "F", ["x"], ["garbled"], body, [helper.make_opsetid("", 17)]))
    path.write_bytes(model.SerializeToString().replace(b"garbled", b"garb\xff\xfed"))


BAD = [garbage, empty, truncated, without_nodes, without_opset, garbled]


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_files_that_are_no_models(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    spoil(path)
    with pytest.raises(ModelError) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


def test_a_tensor_whose_bytes_do_not_fit() -> None:
    model = small()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelError, match="'w1'"):
        load(model).array("w1")


# Writing


def test_a_failed_check_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), draft(small(), path) as written:
        assert load(written).nodes
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    save(small(), path)
    assert onnx.load(path) == small()
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save(small(), tmp_path / "absent" / "out.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        save(small(), tmp_path)


def test_the_model_itself_is_no_output(external: Path, tmp_path: Path) -> None:
    graph = load(external)
    for name in ("model.onnx", "model.onnx.data", "../" + external.parent.name + "/model.onnx"):
        with pytest.raises(OutputError, match="choose another name"):
            check_output(graph, tmp_path / name)
    check_output(graph, tmp_path / "other.onnx")
    check_output(load(small()), tmp_path / "model.onnx")


def test_bfloat16_survives(tmp_path: Path) -> None:
    b = Builder()
    values = b.rng.standard_normal((8, 3)).astype(ml_dtypes.bfloat16)
    y = b.op("Gemm", b.input("x", 5, 3), b.op("Cast", b.const(values, "w1"), to=1), transB=1)
    result = oracle(b.model(b.gemm(b.op("Relu", y), 4, name="w2")), 0.5)
    kept = result.plan.kept["w1"][0]
    save(result.model, tmp_path / "out.onnx")
    array = load(tmp_path / "out.onnx").array("w1")
    assert array.dtype == ml_dtypes.bfloat16
    assert (array == values[kept]).all()
