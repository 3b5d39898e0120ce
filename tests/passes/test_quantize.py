"""Fewer bits by ONNX Runtime's tools: answers stay near, names and notes stay the user's, and nothing else is left."""

import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import Checks, Pipeline, Result, inspect
from onnxprune.default import calibration, model_path, sample
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph import data_files, load
from onnxprune.passes import get
from onnxprune.passes.quantize import Quantize
from onnxprune.quantized.survival import check_survival
from onnxprune.runtime import run, session
from onnxprune.testing import Builder
from onnxprune.writing import save
from tools.networks import grow

Feed = dict[str, NDArray[Any]]
CHECKED = Checks(seconds=0)


def pictures(count: int = 16, side: int = 8) -> Feed:
    x = np.random.default_rng(0).standard_normal((count, 3, side, side))
    return {"x": x.astype(np.float32)}


def network(opset: int = 17, batch: int | str = "N", ir_version: int | None = None) -> ModelProto:
    """Two convolutions, the first with a BatchNormalization, and a Gemm; with notes that are the user's."""
    b = Builder(opset, ir_version=ir_version)
    y = b.op("Relu", b.batch_norm(b.conv(b.input("x", batch, 3, 8, 8), 8, name="first")))
    y = b.op("Relu", b.conv(y, 8, name="second"))
    model = b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), 4, name="head"))
    model.producer_name, model.producer_version, model.model_version = "exporter", "7", 3
    model.doc_string, model.graph.doc_string = "the user's", "a graph"
    model.graph.input[0].doc_string = "pictures"
    model.metadata_props.add(key="licence", value="mine")
    next(n for n in model.graph.node if n.op_type == "Flatten").doc_string = "flat"
    return model


def quantized(model: ModelProto | str, data: Any = None, checks: Checks | None = CHECKED, **options: Any) -> Result:
    return Pipeline([Quantize(**options)]).run(model, data=data, checks=checks)


def types(model: ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in model.graph.initializer}


@pytest.fixture(scope="module")
def static() -> Result:
    return quantized(str(model_path()), calibration())


def accuracy(model: ModelProto) -> float:
    images, labels = sample()
    ready = session(model, threads=1)
    return float((run(ready, {"image": images[:300]})["logits"].argmax(1) == labels[:300]).mean())


MODES: list[dict[str, Any]] = [{}, {"mode": "dynamic"}, {"mode": "float16"}]


@pytest.mark.parametrize("options", [{}, {"mode": "dynamic", "ops": ("Conv", "Gemm")}, {"mode": "float16"}])
def test_a_trained_model_keeps_its_accuracy_and_its_names(options: dict[str, Any]) -> None:
    original = onnx.load(model_path())
    model = quantized(str(model_path()), calibration(), None, **options).model
    assert accuracy(model) > accuracy(original) - 0.01
    assert model.ByteSize() < 0.55 * original.ByteSize()
    assert model.graph.input == original.graph.input
    assert model.graph.output == original.graph.output
    assert (model.producer_name, list(model.metadata_props)) == (original.producer_name, list(original.metadata_props))


def test_the_record_says_what_has_fewer_bits(static: Result) -> None:
    found = static.record["quantize"]
    assert found["quantized"]["Conv"] == 12
    assert found["absorbed"] == {"Clip": 2, "Relu": 7}
    assert found["float"] == []
    assert found["opset"] == {"before": 17, "after": 17}
    assert found["scales"] == {"per_channel": 13, "per_tensor": 0}
    assert found["calibration"] == {"method": "minmax", "samples": 100}
    assert found["weight_bytes"]["after"] < 0.3 * found["weight_bytes"]["before"]
    assert static.record["passes"][0]["said"] == (
        "static: 12 Conv, 1 Gemm, 9 others; none stay float32; ranges from 100 samples (minmax); "
        + ("weights of 7 bits; " if found["reduce_range"] else "")
        + "weights 0.572 MB -> 0.159 MB"
    )


def test_what_comes_out_can_be_inspected_and_pruned(static: Result) -> None:
    assert inspect(static.model)["cuttable"]["macs"] > 0.9
    less = Pipeline([get("prune_channels")(target="macs=0.7", criterion="l2")]).run(static.model, checks=CHECKED)
    assert less.record["parity"]["exact"]
    assert less.record["macs"]["after"] <= 0.7 * less.record["macs"]["before"]


@pytest.mark.parametrize("options", MODES)
def test_notes_and_names_stay(options: dict[str, Any]) -> None:
    original = network()
    result = quantized(original, pictures(), **options).model
    for field in ("producer_name", "producer_version", "model_version", "doc_string", "opset_import", "metadata_props"):
        assert getattr(result, field) == getattr(original, field), field
    assert result.graph.name == original.graph.name
    assert result.graph.doc_string == original.graph.doc_string
    assert result.graph.input == original.graph.input
    assert result.graph.output == original.graph.output
    assert [n.doc_string for n in result.graph.node if n.op_type == "Flatten"] == ["flat"]


def test_scales_are_per_channel() -> None:
    scales = {t.name: list(t.dims) for t in quantized(network(), pictures()).model.graph.initializer}
    assert scales["second_scale"] == [8]
    assert scales["head_scale"] == [4]
    scales = {t.name: list(t.dims) for t in quantized(network(), pictures(), per_channel=False).model.graph.initializer}
    assert scales["second_scale"] == []


def test_seven_bits_on_demand() -> None:
    model = quantized(network(), pictures(), reduce_range=True).model
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.abs(weights["second_quantized"].astype(int)).max() == 64
    model = quantized(network(), pictures(), reduce_range=False).model
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.abs(weights["second_quantized"].astype(int)).max() == 127


def test_symmetric_int8_has_zero_points_in_the_middle() -> None:
    model = quantized(network(), pictures(), activations="int8", symmetric=True).model
    points = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_zero_point")]
    assert points
    assert not any(p.any() for p in points)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_ways_to_choose_ranges(method: str) -> None:
    result = quantized(network(), pictures(), calibration=method)
    assert result.record["fidelity"]["cosine"] > 0.98
    assert result.record["quantize"]["calibration"]["method"] == method


def test_sixteen_bits_raise_the_opset() -> None:
    result = quantized(network(), pictures(), activations="uint16")
    assert result.record["quantize"]["opset"] == {"before": 17, "after": 21}
    assert "opset 17 -> 21" in result.record["passes"][0]["said"]
    assert result.record["fidelity"]["cosine"] > 0.999


@pytest.mark.parametrize("pattern", ["^second$", "Conv_3"])  # a tensor, a node
@pytest.mark.parametrize("mode", ["static", "float16"])
def test_what_is_kept_stays_float(pattern: str, mode: str) -> None:
    result = quantized(network(), pictures(), mode=mode, keep=pattern)
    assert types(result.model)["second"] == TensorProto.FLOAT
    kept = [entry["nodes"] for entry in result.record["quantize"]["float"] if entry["reason"] == "kept"]
    assert any("Conv_3" in nodes for nodes in kept)
    assert "first" not in types(result.model) or types(result.model)["first"] != TensorProto.FLOAT


def test_a_kept_gemm_stays_float_where_the_tools_make_a_matmul_of_it() -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", "N", 8), 8, name="one"))
    model = b.model(b.gemm(y, 4, name="two"))
    result = quantized(model, mode="dynamic", keep="^one$")
    assert result.record["quantize"]["quantized"] == {"Gemm": 1}
    assert sum(n.op_type == "MatMulInteger" for n in result.model.graph.node) == 1


def test_only_some_operators() -> None:
    result = quantized(network(), pictures(), ops=("Gemm",))
    assert result.record["quantize"]["quantized"] == {"Gemm": 1}
    assert types(result.model)["second"] == TensorProto.FLOAT


def test_dynamic_leaves_products_with_a_vector() -> None:
    """ONNX Runtime's tool would give each of the vector's elements a scale, behind a result that has none of them."""
    b = Builder()
    y = b.op("MatMul", b.input("x", 4, 8), b.weight(8, 8), name="wide")
    y = b.op("MatMul", y, b.weight(8), name="narrow")
    model = b.model(y)
    record = Pipeline([Quantize(mode="dynamic")]).run(model, checks=CHECKED).record["quantize"]
    assert record["quantized"] == {"MatMul": 1} and "no such kernel" in str(record)
    one = Pipeline([Quantize(mode="dynamic", per_channel=False)]).run(model, checks=CHECKED)
    assert one.record["quantize"]["quantized"] == {"MatMul": 2}


def test_dynamic_leaves_convolutions_where_nobody_asks_for_them() -> None:
    result = quantized(network(), mode="dynamic")
    assert result.record["quantize"]["quantized"] == {"Gemm": 1}
    assert not any(n.op_type == "ConvInteger" for n in result.model.graph.node)
    asked = quantized(network(), mode="dynamic", ops=("Conv",))
    assert asked.record["quantize"]["quantized"] == {"Conv": 2}


@pytest.mark.parametrize("keep_io", [True, False])
def test_float16_inputs_and_outputs(keep_io: bool) -> None:
    result = quantized(network(), pictures(), mode="float16", keep_io=keep_io)
    kind = TensorProto.FLOAT if keep_io else TensorProto.FLOAT16
    graph = result.model.graph
    assert [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)] == [kind, kind]
    assert graph.input[0].doc_string == "pictures"
    assert result.record["fidelity"]["cosine"] > 0.9999


def test_passes_after_float16_inputs_are_proved_with_them() -> None:
    steps = [Quantize(mode="float16", keep_io=False), get("fold_batchnorm")()]
    for data in (None, pictures()):
        result = Pipeline(steps).run(network(), data=data, checks=CHECKED)
        assert result.record["parity"]["exact"]
        assert not any(n.op_type == "BatchNormalization" for n in result.model.graph.node)


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_what_float16_does_not_hold_stays_float32(value: float) -> None:
    b = Builder()
    scale = b.const(np.full((1, 1, 1, 8), value, np.float32), "scale")
    model = b.model(b.op("Relu", b.op("Mul", b.conv(b.input("x", "N", 3, 8, 8), 8), scale)))
    result = quantized(model, pictures(), mode="float16", checks=None)
    assert types(result.model)["scale"] == TensorProto.FLOAT
    left = [{"reason": "float16 does not hold its constants", "nodes": ["Mul_1"]}]
    assert result.record["quantize"]["float"] == left


def test_bounds_that_stand_for_infinity_do_not_count() -> None:
    b = Builder()
    y = b.op("Clip", b.conv(b.input("x", "N", 3, 8, 8), 8), 0.0, float(np.finfo(np.float32).max))
    result = quantized(b.model(y), pictures(), mode="float16")
    assert result.record["quantize"]["float"] == []
    assert result.record["fidelity"]["cosine"] > 0.9999


def test_scales_of_resize_stay_float32() -> None:
    b = Builder()
    y = b.conv(b.input("x", "N", 3, 10, 10), 4)
    scales = numpy_helper.from_array(np.array([1, 1, 1.3, 1.3], np.float32))
    b.graph.node.append(helper.make_node("Constant", [], ["scales"], value=scales))
    model = b.model(b.op("Resize", y, None, "scales", mode="nearest"))
    half = quantized(model, pictures(side=10), mode="float16").model
    (a,), (h,) = (run(session(m), pictures(side=10)).values() for m in (model, half))
    assert a.shape == h.shape


def plain() -> ModelProto:
    return network()


def old() -> ModelProto:
    return network(opset=9, ir_version=3)


def unnamed() -> ModelProto:
    model = network()
    for node in model.graph.node:
        node.name = ""
    return model


def fixed() -> ModelProto:
    return network(batch=4)


def in_constants() -> ModelProto:
    model = network()
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("make", [old, unnamed, fixed, in_constants])
@pytest.mark.parametrize("options", MODES)
def test_models_of_all_kinds(make: Callable[[], ModelProto], options: dict[str, Any]) -> None:
    result = quantized(make(), pictures(24), **options)
    assert result.record["fidelity"]["cosine"] > 0.98
    names = {n.name for n in make().graph.node}
    if names == {""}:
        assert {n.name for n in result.model.graph.node if n.op_type in ("Conv", "Flatten")} <= {""}
    assert result.record["quantize"]["quantized"]["Gemm"] == 1


def test_several_inputs() -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", "N", 8), 8))
    z = b.op("Add", y, b.op("Cast", b.input("t", "N", 8, dtype=np.int64), to=TensorProto.FLOAT))
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((24, 8)).astype(np.float32), "t": rng.integers(0, 3, (24, 8))}
    for options in MODES:
        assert quantized(b.model(y, b.gemm(z, 3)), data, **options).record["fidelity"]["cosine"] > 0.98


@pytest.mark.parametrize("options", MODES)
def test_external_data_stay_external_and_no_file_is_left(
    options: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(network(), tmp_path / "model.onnx", external=True)
    scratch, out = tmp_path_factory.mktemp("scratch"), tmp_path / "less.onnx"
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    options = {"mode": "static", **options}
    Pipeline([Quantize(**options)]).run(tmp_path / "model.onnx", data=pictures(), out=out, checks=CHECKED)
    assert {p.name for p in tmp_path.iterdir()} <= {
        "model.onnx",
        "model.onnx.data",
        "less.onnx",
        "less.onnx.data",
    }
    assert not list(scratch.iterdir())
    graph = load(out)
    assert graph.proto.doc_string == "the user's"
    assert run(session(out), pictures())
    assert bool(data_files(graph)) == (tmp_path / "less.onnx.data").exists()


def test_nothing_is_printed_and_logging_stays(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers), logging.root.manager.disable
    for options in (*MODES, {"calibration": "entropy"}, {"activations": "uint16"}):
        quantized(network(11), pictures(), checks=None, **options)
    assert capfd.readouterr() == ("", "")
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before


@pytest.mark.parametrize("options", MODES)
def test_the_model_is_not_changed_and_the_result_is_always_the_same(options: dict[str, Any]) -> None:
    model = network()
    first, second = (quantized(model, pictures(), checks=None, **options).model for _ in range(2))
    assert model == network()
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "int8"}, "quantize: mode = 'int8': choose one of static, dynamic, float16"),
        ({"weights": "int4"}, "quantize: weights = 'int4': choose one of int8, uint8"),
        ({"calibration": "mean"}, "quantize: calibration = 'mean': choose one of minmax, entropy, percentile"),
        ({"samples": 0}, "quantize: samples = 0: write a whole number from 1"),
        ({"keep": "["}, "quantize: keep = '[': not a regular expression"),
        ({"mode": "dynamic", "samples": 9}, "quantize: samples does nothing with mode = 'dynamic'; leave it out"),
        ({"keep_io": False}, "quantize: keep_io does nothing with mode = 'static'; leave it out"),
        ({"weights": "uint8", "activations": "int8"}, "write weights = 'int8'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Quantize(**options)
    assert message in str(caught.value)


def test_options_that_do_not_fit_the_model() -> None:
    with pytest.raises(OptionError, match="quantize: keep = 'nowhere' matches no node and no tensor"):
        quantized(network(), mode="float16", keep="nowhere")
    with pytest.raises(OptionError, match="quantize: ops: Gru: mode = 'dynamic' has Attention, "):
        quantized(network(), mode="dynamic", ops=("Gru",))


def test_static_needs_data() -> None:
    with pytest.raises(DataError, match="quantize takes the ranges of activations from inputs; give --data, or mode"):
        quantized(network())


@pytest.mark.parametrize("options", MODES)
def test_models_that_have_fewer_bits_already(options: dict[str, Any]) -> None:
    less = quantized(network(), pictures(), checks=None).model
    with pytest.raises(ModelError, match=r"is quantized already \(it has QuantizeLinear\); quantize the float model"):
        quantized(less, pictures(), checks=None, **options)
    half = quantized(network(), mode="float16", checks=None).model
    with pytest.raises(ModelError, match="has weights in float16 already; quantize the float32 model"):
        quantized(half, pictures(), checks=None, **options)


def test_models_with_nothing_to_quantize() -> None:
    b = Builder()
    model = b.model(b.op("Neg", b.input("x", "N", 8)))
    with pytest.raises(ModelError, match=r"quantize finds nothing to do \(no such kernel\)"):
        quantized(model, mode="dynamic")


def branching() -> ModelProto:
    """An If whose branches read the result of a MatMul from outside."""
    b = Builder()
    x = b.input("x", "N", 8)
    product = b.op("MatMul", x, b.weight(8, 8), name="product")
    wanted = b.op("Greater", b.op("ReduceMean", x, keepdims=0), 0.0)
    arms = []
    for op in ("Relu", "Neg"):
        node = helper.make_node(op, ["product"], [f"{op}_y"])
        arms.append(helper.make_graph([node], op, [], [helper.make_tensor_value_info(f"{op}_y", 1, ["N", 8])]))
    y = b.op("If", wanted, then_branch=arms[0], else_branch=arms[1])
    b.declare(y, "N", 8)
    return b.model(b.op("MatMul", b.op("Add", y, b.op("Sigmoid", product)), b.weight(8, 4)))


@pytest.mark.parametrize("options", MODES)
def test_what_subgraphs_read_comes_before_them(options: dict[str, Any]) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)}
    result = quantized(branching(), data, **options)
    onnx.checker.check_model(result.model)
    assert result.record["fidelity"]["cosine"] > 0.95


def test_subgraphs_stay_float32_in_float16() -> None:
    result = quantized(branching(), mode="float16")
    node = next(n for n in result.model.graph.node if n.op_type == "If")
    assert {v.type.tensor_type.elem_type for a in node.attribute for v in a.g.output} == {TensorProto.FLOAT}
    assert result.record["quantize"]["float"][0] == {"reason": "its subgraphs stay float32", "nodes": [node.name]}
    with pytest.raises(OptionError, match="quantize: ops: If: mode = 'float16' has "):
        quantized(branching(), mode="float16", ops=("If",))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_change_to_float16_on_demand(op: str, gates: int) -> None:
    b = Builder()
    x = b.input("x", 5, 2, 4)
    y = b.ops(op, x, b.weight(1, gates * 8, 4, name="w"), b.weight(1, gates * 8, 8), hidden_size=8)[0]
    model = b.model(b.op("MatMul", y, b.weight(8, 4)))
    result = quantized(model, mode="float16")
    assert types(result.model)["w"] == TensorProto.FLOAT
    reason = "no float16 kernel on the CPU; name it in ops"
    assert result.record["quantize"]["float"] == [{"reason": reason, "nodes": [f"{op}_0"]}]
    assert result.record["fidelity"]["cosine"] > 0.9999
    assert types(quantized(model, mode="float16", ops=(op,)).model)["w"] == TensorProto.FLOAT16


def test_matrix_products_without_weights() -> None:
    b = Builder()
    model = b.model(b.op("MatMul", b.input("x", "N", 8), b.input("w", 8, 4)))
    with pytest.raises(ModelError, match=r"quantize finds nothing to do \(its inputs are not constant"):
        quantized(model, mode="dynamic")


def test_random_networks() -> None:
    refused = 0
    for seed in range(12):
        try:
            result = quantized(grow(Random(seed)), mode="dynamic")
        except ModelError as error:
            assert re.search("is quantized already|quantize finds nothing to do", str(error)), (seed, error)
            refused += 1
            continue
        onnx.checker.check_model(result.model)
        assert result.record["fidelity"]["cosine"] > 0.9, seed
    assert refused < 6


def test_what_onnx_runtime_does_not_survive_is_an_error() -> None:
    model = grow(Random(20))  # its fusion of Transpose and MatMul crashes on the float16 form
    try:
        result = quantized(model, mode="float16")
    except ModelError as error:
        assert "ONNX Runtime crashes when it optimises the float16 model" in str(error)
        result = quantized(model, mode="float16", keep="^Transpose_12")
    assert result.record["fidelity"]["cosine"] > 0.99


def test_survival(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save(network(), tmp_path / "model.onnx")
    for source in (network(), tmp_path / "model.onnx"):
        check_survival(source, "the model")
    monkeypatch.setattr("onnxprune.quantized.survival.TRIAL", "import os; os.abort()")
    with pytest.raises(ModelError, match="the model: ONNX Runtime crashes when it optimises the float16 model; leave"):
        check_survival(network(), "the model")
