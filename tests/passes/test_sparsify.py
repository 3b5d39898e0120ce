"""Weights become zero in their pattern, and the rest makes up for it."""

import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import Checks, Pipeline, graph, runtime
from onnxprune.errors import DataError, OptionError
from onnxprune.feeds import random_feeds
from onnxprune.passes import get
from onnxprune.pipeline import Result
from onnxprune.sparsity import moments
from onnxprune.testing import Builder, arrays
from tools.networks import grow

QUIET = Checks(seconds=0)


def sparsify(model: ModelProto | Path, data: Any = None, checks: Checks | None = QUIET, **options: Any) -> Result:
    out = options.pop("out", None)
    return Pipeline([get("sparsify")(**options)]).run(model, data=data, checks=checks, out=out)


def inputs(*shape: int, count: int = 32) -> list[dict[str, NDArray[Any]]]:
    """Inputs whose neighbours are alike: what is lost can be made up for."""
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32).cumsum(axis=-1)
    return [{"x": sample[None]} for sample in x]


def convs(channels: int = 8, kernel: int = 3) -> ModelProto:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "n", 4, 8, 8), channels, kernel, name="w1"))
    x = b.op("Relu", b.conv(x, channels, kernel, name="w2"))
    return b.model(b.conv(x, 4, 1, name="w3"))


def kinds(dtype: Any = np.float32) -> ModelProto:
    """All contractions: Conv, grouped and depthwise ones, ConvTranspose, Gemm both ways, MatMul; a weight in a node."""
    b, n = Builder(), iter(range(100))

    def w(*shape: int) -> NDArray[Any]:
        return (b.rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(dtype)

    x = b.input("x", "n", 4, 6, 6, dtype=dtype)
    x = b.op("Relu", b.op("Conv", x, b.const(w(8, 4, 3, 3), "conv"), b.const(w(8)), pads=[1, 1, 1, 1]))
    x = b.op("Relu", b.op("Conv", x, b.const(w(8, 4, 3, 3), "grouped"), pads=[1, 1, 1, 1], group=2))
    x = b.op("Conv", x, b.const(w(8, 1, 3, 3), "depthwise"), pads=[1, 1, 1, 1], group=8)
    x = b.op("ConvTranspose", x, b.const(w(8, 8, 2, 2), "transposed"), strides=[2, 2])
    x = b.op("ConvTranspose", x, b.const(w(8, 4, 3, 3), "transposed_groups"), group=2)
    x = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", x)))
    held = b.op("Constant", name="node", value=numpy_helper.from_array(w(12, 8)))
    x = b.op("Relu", b.op("Gemm", x, held, b.const(w(12)), transB=1, alpha=0.5))
    x = b.op("Gemm", x, b.const(w(12, 16), "gemm"))
    x = b.op("Add", b.op("MatMul", x, b.const(w(16, 8), "matmul")), b.const(w(8)))
    x = b.op("MatMul", x, b.op("Transpose", b.const(w(4, 8), "behind"), perm=[1, 0]))
    assert next(n) == 0
    return b.model(x)


# How each weight of `kinds` counts input channels: its axis, and groups along it.
AXES = {
    "conv": 1,
    "grouped": 1,
    "transposed": 0,
    "transposed_groups": 0,
    "node": 1,
    "gemm": 0,
    "matmul": 0,
    "behind": 1,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs"])
def test_2_of_4_along_input_channels_of_every_contraction(criterion: str, dtype: Any) -> None:
    """Checked on the tensors of the result, without any code of the pass."""
    data = [{"x": f["x"].astype(dtype)} for f in inputs(4, 6, 6)]
    result = sparsify(kinds(dtype), data, pattern="2:4", criterion=criterion)
    made = arrays(result.model)
    for name, axis in AXES.items():
        assert made[name].dtype == dtype
        rows = np.moveaxis(made[name], axis, -1)
        counts = np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1)
        assert (counts <= 2).all() and counts.max() == 2, name
    notes = result.record["sparsify"]
    assert [left["node"] for left in notes["dense"]] == ["Conv_4"] and "2:4 on 1 columns" in notes["dense"][0]["reason"]
    np.testing.assert_array_equal(made["depthwise"], arrays(kinds(dtype))["depthwise"])
    assert notes["weights"] == 2 * notes["zeros"] == sum(made[n].size for n in AXES)
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize("pattern", ["unstructured", "vector", "kernel", "2x2", "1:2"])
def test_what_stays_is_as_it_was_without_an_update(pattern: str) -> None:
    before, after = arrays(kinds()), arrays(sparsify(kinds(), pattern=pattern, cut=False).model)
    changed = 0
    for name, value in before.items():
        kept = after[name] != 0
        np.testing.assert_array_equal(after[name][kept], value[kept])
        changed += int((~kept & (value != 0)).sum())
    assert changed


def test_the_given_model_is_not_changed() -> None:
    model = convs()
    before = model.SerializeToString()
    sparsify(model, inputs(4, 8, 8))
    assert model.SerializeToString() == before


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "kernel", "2x4"])
def test_updates_bring_a_lower_error_than_masks(pattern: str) -> None:
    data = inputs(4, 8, 8)
    errors = {}
    for criterion in ("magnitude", "wanda", "obs"):
        result = sparsify(convs(), data, pattern=pattern, criterion=criterion)
        errors[criterion] = np.sum([layer["error"] for layer in result.record["sparsify"]["layers"]])
    assert errors["obs"] < 0.7 * min(errors["magnitude"], errors["wanda"])


def test_the_error_is_that_of_the_layer() -> None:
    """One layer: what is said is what ONNX Runtime makes of it, on inputs that were held out."""
    b = Builder()
    model = b.model(b.op("MatMul", b.input("x", "n", 16), b.weight(16, 8, name="w")))
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2000, 16)) @ rng.standard_normal((16, 16))).astype(np.float32)
    result = sparsify(model, [{"x": row[None]} for row in x], criterion="wanda")
    fresh = (rng.permutation(x)[:1000]).astype(np.float64)
    y, made = (fresh @ arrays(m)["w"].astype(np.float64) for m in (model, result.model))
    expected = np.square(y - made).mean(axis=0).sum() / y.var(axis=0).sum()
    assert result.record["sparsify"]["layers"][0]["error"] == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_the_share_goes_of_every_layer(share: float) -> None:
    for layer in sparsify(convs(), inputs(4, 8, 8), sparsity=share).record["sparsify"]["layers"]:
        assert layer["zeros"] == pytest.approx(share * layer["weights"], abs=1)


def test_globally_the_share_goes_of_all() -> None:
    model = convs()
    scaled = numpy_helper.to_array(model.graph.initializer[2]) * 100  # w2
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(scaled, "w2"))
    notes = sparsify(model, scope="global", cut=False).record["sparsify"]
    zeros = {layer["tensor"]: layer["zeros"] / layer["weights"] for layer in notes["layers"]}
    assert notes["zeros"] == pytest.approx(0.5 * notes["weights"], abs=2)
    assert zeros["w1"] > 0.9 and zeros["w2"] < 0.3
    # Relative to what the layer makes, its scale does not count.
    notes = sparsify(model, inputs(4, 8, 8), scope="global").record["sparsify"]
    zeros = {layer["tensor"]: layer["zeros"] / layer["weights"] for layer in notes["layers"]}
    assert notes["zeros"] == pytest.approx(0.5 * notes["weights"], abs=4)
    assert zeros["w1"] < 0.8


def test_threshold() -> None:
    before = arrays(convs())
    result = sparsify(convs(), threshold=0.1, cut=False)
    assert result.record["sparsify"]["criterion"] == "magnitude"
    for name in ("w1", "w2", "w3"):
        expected = np.where(np.abs(before[name]) < np.float32(0.1), 0, before[name])
        np.testing.assert_array_equal(arrays(result.model)[name], expected)
    for criterion in ("wanda", "obs"):
        notes = sparsify(convs(), inputs(4, 8, 8), threshold=0.01, criterion=criterion).record["sparsify"]
        assert 0 < notes["zeros"] < notes["weights"]


def test_kept_layers_stay() -> None:
    result = sparsify(convs(), keep=["^w2$", "Conv_4"])
    before, after = arrays(convs()), arrays(result.model)
    np.testing.assert_array_equal(after["w2"], before["w2"])
    assert [left["reason"] for left in result.record["sparsify"]["dense"]] == ["kept, as was asked for"] * 2


def test_shared_weights_are_left_and_listed() -> None:
    b = Builder()
    w = b.weight(4, 4, name="shared")
    x = b.op("MatMul", b.op("MatMul", b.op("MatMul", b.input("x", "n", 4), w), w), b.weight(4, 4))
    notes = sparsify(b.model(x)).record["sparsify"]
    assert len(notes["layers"]) == 1 and ["shared" in left["reason"] for left in notes["dense"]] == [True, True]


def test_channels_that_became_zero_are_cut_and_it_is_proved() -> None:
    model = convs()
    w1 = numpy_helper.to_array(model.graph.initializer[0]).copy()
    w1[:3] *= 1e-3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w1, "w1"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "w1.bias"))
    assert arrays(sparsify(model, threshold=1e-2, align=4).model)["w1"].shape == (8, 4, 3, 3)
    result = sparsify(model, threshold=1e-2, align=1)
    assert arrays(result.model)["w1"].shape == (5, 4, 3, 3)
    assert result.record["sparsify"]["units_cut"] == 3 and result.record["parity"]["exact"]
    assert "3 channels or other units went" in result.record["passes"][0]["said"]
    whole = sparsify(model, threshold=1e-2, cut=False)
    assert arrays(whole.model)["w1"].shape == (8, 4, 3, 3) and whole.plan is None


def test_constants_that_are_rounded_on_their_way_stay() -> None:
    """ONNX Runtime's mean of very many equal numbers is off by more than parity allows: a bias would be right."""
    b, weights = Builder(), np.array([1, 1e-3, 1e-3, 0.5], np.float32).reshape(4, 1, 1, 1)
    bias = b.const(np.array([0.1, -2.0173776, 0.67196, -0.3], np.float32))
    x = b.op("Conv", b.input("x", 1, 1, 512, 512), b.const(weights, "w"), bias)
    x = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    model = b.model(b.op("Gemm", x, b.weight(4, 3), b.const(np.zeros(3, np.float32))))
    result = sparsify(model, threshold=1e-2, align=1, keep="Gemm")
    notes = result.record["sparsify"]
    assert notes["zeros"] == 2 and notes["units_cut"] == 0 and notes["constant_units_kept"] == 2
    assert "2 constant channels stay" in result.record["passes"][0]["said"]


def test_a_cut_would_break_n_of_m() -> None:
    model = convs()
    w2 = numpy_helper.to_array(model.graph.initializer[2]).copy()
    w2[:, :3] = 0
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(w2, "w2"))
    assert sparsify(model, pattern="2:4").record["sparsify"]["units_cut"] == 0
    assert sparsify(model, align=1).record["sparsify"]["units_cut"] >= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sparse_storage(dtype: Any) -> None:
    options: dict[str, Any] = {"sparsity": 0.9, "cut": False}
    dense, sparse = (sparsify(kinds(dtype), storage=s, **options) for s in ("dense", "sparse"))
    assert sparse.record["parity"]["max_abs"] == 0 and "parity" not in dense.record
    names = sparse.record["sparsify"]["sparse_tensors"]
    assert {"conv", "transposed", "gemm", "node"} <= set(names)
    held = {n.output[0] for n in sparse.model.graph.node if [a.name for a in n.attribute] == ["sparse_value"]}
    assert held == {"node"}
    assert {s.values.name for s in sparse.model.graph.sparse_initializer} == set(names) - held
    assert sparse.record["file_bytes"]["after"] < dense.record["file_bytes"]["after"]
    assert sparse.record["file_bytes"]["after"] == sparse.model.ByteSize()
    assert sparse.record["params"] == dense.record["params"]
    # It can be an input again.
    again = sparsify(sparse.model, sparsity=0.95, cut=False)
    assert again.record["sparsify"]["zeros"] > sparse.record["sparsify"]["zeros"]


@pytest.mark.parametrize(("opset", "count"), [(10, 0), (11, 1)])
def test_sparse_storage_in_constant_nodes(opset: int, count: int) -> None:
    b = Builder(opset=opset)
    w = numpy_helper.from_array(b.rng.standard_normal((16, 16)).astype(np.float32))
    model = b.model(b.op("MatMul", b.input("x", "n", 16), b.op("Constant", name="w", value=w)))
    result = sparsify(model, sparsity=0.9, storage="sparse", cut=False)
    assert len(result.record["sparsify"]["sparse_tensors"]) == count
    said = result.record["passes"][0]["said"]
    assert f"{count} are stored sparse" in said
    assert ("(1 in Constant nodes stay: opset 11 has sparse ones)" in said) == (not count)


def test_sparse_storage_that_would_not_be_smaller() -> None:
    result = sparsify(convs(), storage="sparse", cut=False)
    assert result.record["sparsify"]["sparse_tensors"] == [] and not result.model.graph.sparse_initializer
    assert "0 are stored sparse" in result.record["passes"][0]["said"]


def test_what_is_said_is_counted() -> None:
    result = sparsify(convs(channels=16), cut=False, sparsity=0.75)
    notes, made = result.record["sparsify"], arrays(result.model)
    for layer in notes["layers"]:
        assert (
            layer["zeros"] == int((made[layer["tensor"]] == 0).sum()) and layer["weights"] == made[layer["tensor"]].size
        )
    weights = [made[layer["tensor"]] for layer in notes["layers"]]
    assert notes["bytes"]["dense"] == sum(w.nbytes for w in weights)
    assert notes["bytes"]["deflated"]["after"] < 0.5 * notes["bytes"]["deflated"]["before"]
    said = result.record["passes"][0]["said"]
    assert "75.0% of" in said and "no faster on ONNX Runtime's CPU provider" in said


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_external_weights_stream(tmp_path: Path, criterion: str) -> None:
    model = convs(channels=32)
    inside = sparsify(model, inputs(4, 8, 8), criterion=criterion, storage="sparse", sparsity=0.8, cut=False)
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="in.data", size_threshold=0)
    options: dict[str, Any] = {"criterion": criterion, "storage": "sparse", "sparsity": 0.8, "cut": False}
    result = sparsify(path, inputs(4, 8, 8), out=out, **options)
    assert isinstance(result.made, Path) and result.record["sparsify"]["sparse_tensors"] == ["w1", "w2", "w3"]
    for name in ("w1", "w2", "w3"):
        np.testing.assert_array_equal(graph.load(out).array(name), graph.load(inside.model).array(name))


def test_twice_the_same() -> None:
    data = inputs(4, 8, 8)
    first, again = (sparsify(convs(), data, seed=3).model for _ in range(2))
    assert first == again


def test_several_inputs_and_an_open_batch() -> None:
    b = Builder()
    x, z = b.input("x", "n", 4, 6, 6), b.input("z", "n", 4, 6, 6)
    y = b.op("Relu", b.op("Add", b.conv(x, 8, name="w1"), b.conv(z, 8, name="w2")))
    model = b.model(b.conv(y, 4, name="w3"))
    data = [{"x": f["x"], "z": f["x"][:, ::-1].copy()} for f in inputs(4, 6, 6)]
    result = sparsify(model, data, pattern="2:4")
    for count in (1, 5):
        feed = {"x": np.ones((count, 4, 6, 6), np.float32), "z": np.ones((count, 4, 6, 6), np.float32)}
        assert next(iter(runtime.run(runtime.session(result.model), feed).values())).shape[0] == count


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("far", ["all", "half"])
def test_inputs_far_from_zero(far: str, scope: str) -> None:
    """Sums of squares in float32 would be all rounding: a mean of 100 and a standard deviation of 0.01; constants."""
    b, rng = Builder(), np.random.default_rng(0)
    x = b.op("Add", b.op("MatMul", b.input("x", "n", 16), b.weight(16, 32)), b.const(np.zeros(32, np.float32)))
    model = b.model(b.op("MatMul", b.op("Relu", x), b.weight(32, 8)))
    mix = rng.standard_normal((16, 16)) @ rng.standard_normal((16, 16))
    rows = rng.standard_normal((400, 16)) @ mix / 16
    rows = 100 + 0.01 * rows if far == "all" else np.where(np.arange(16) < 8, 1000, rows)
    data = [{"x": row[None].astype(np.float32)} for row in rows]
    errors = {
        c: sparsify(model, data, criterion=c, scope=scope).record["sparsify"]["layers"][0]["error"]
        for c in ("wanda", "obs")
    }
    assert np.isfinite(errors["obs"]) and errors["obs"] < 0.5 * errors["wanda"]


def test_inputs_too_large_to_square() -> None:
    data = [{"x": feed["x"] * np.float32(1e30)} for feed in inputs(4, 8, 8)]
    with pytest.raises(DataError, match="what 'Conv_0' reads on --data is not finite or too large to square"):
        sparsify(convs(), data, criterion="obs")


def test_very_many_columns_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second moments of blocks of columns alone: still far better than no update."""
    monkeypatch.setattr("onnxprune.sparsity.moments.FEATURES", 50)
    monkeypatch.setattr("onnxprune.sparsity.moments.WIDE", 20)
    data = inputs(4, 8, 8)
    found = [
        sparsify(convs(), data, pattern=p, criterion=c) for p in ("unstructured", "kernel") for c in ("wanda", "obs")
    ]
    error = [np.sum([layer["error"] for layer in r.record["sparsify"]["layers"]]) for r in found]
    assert error[1] < 0.8 * error[0] and error[3] < 0.8 * error[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "2:x"}, "sparsify: pattern = '2:x': write N:M as in 2:4"),
        ({"criterion": "taylor"}, "sparsify: criterion = 'taylor': choose one of auto, magnitude, wanda, obs"),
        ({"scope": "local"}, "sparsify: scope = 'local': choose one of layer, global"),
        ({"seed": -1}, "sparsify: seed = -1: write a whole number from 0"),
        ({"storage": "csr"}, "sparsify: storage = 'csr': choose one of dense, sparse"),
        ({"sparsity": 1.0}, "sparsify: sparsity = 1.0: write a share between 0 and 1"),
        ({"sparsity": float("nan")}, "sparsify: sparsity = nan: write a share"),
        ({"threshold": -1.0}, "sparsify: threshold = -1.0: write a positive number"),
        ({"sparsity": 0.5, "threshold": 0.1}, "give one of them"),
        ({"pattern": "2:4", "sparsity": 0.7}, "'2:4' is 0.5 sparse by itself: drop sparsity"),
        ({"pattern": "2:4", "threshold": 0.5}, "'2:4' is 0.5 sparse by itself: drop threshold"),
        (
            {"pattern": "2:4", "scope": "global"},
            "scope = 'global' shares out a sparsity, and pattern = '2:4' leaves none",
        ),
        ({"threshold": 0.1, "scope": "global"}, "and threshold leaves none"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get("sparsify")(**options)


def test_the_share_of_the_pattern_may_be_given() -> None:
    notes = sparsify(convs(6), pattern="1:3", sparsity=1 - 1 / 3, keep="w1").record["sparsify"]
    assert 3 * notes["zeros"] == 2 * notes["weights"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "3:5"}, "fits no layer of the model (Conv_0: 3:5 on 4 columns"),
        ({"pattern": "16x16"}, "fits no layer of the model (Conv_0: 16x16 blocks do not divide its 8 x 36 weights"),
        ({"criterion": "obs"}, "sparsify: criterion = 'obs' looks at inputs: give --data"),
        ({"keep": "nothing"}, "sparsify: keep = 'nothing' matches no layer"),
        ({"keep": "("}, "sparsify: keep = '(': not a regular expression"),
    ],
)
def test_models_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        sparsify(convs(), **options)
    assert message in str(caught.value)


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="too few to calibrate with"):
        sparsify(convs(), inputs(4, 8, 8, count=3))


def test_no_contraction_at_all() -> None:
    b = Builder()
    with pytest.raises(OptionError, match="it has no such layers"):
        sparsify(b.model(b.op("Relu", b.input("x", 1, 4))))


def test_bfloat16_weights() -> None:
    b = Builder()
    w = b.rng.standard_normal((8, 8)).astype(np.float32)
    kind = TensorProto.BFLOAT16
    b.graph.initializer.append(helper.make_tensor("w", kind, w.shape, w.reshape(-1)))
    x = b.op("Cast", b.input("x", "n", 8), to=kind)
    model = b.model(b.op("Cast", b.op("MatMul", x, "w"), to=TensorProto.FLOAT))
    result = sparsify(model, checks=None, pattern="2:4")
    assert result.record["sparsify"]["zeros"] == 32 and result.model.graph.initializer[0].data_type == kind


@pytest.mark.parametrize("seed", [3, 8, 1007, 1011, 1034, 1040])
def test_random_networks(seed: int) -> None:
    """Any network becomes sparse, or an error line says why not; what is cut of it is proved."""
    draw, model = Random(seed), grow(Random(seed), size=8)
    options: dict[str, Any] = {
        "pattern": draw.choice(["unstructured", "unstructured", "1:2", "vector", "kernel"]),
        "criterion": draw.choice(["magnitude", "wanda", "obs"]),
        "storage": draw.choice(["dense", "sparse"]),
    }
    if ":" not in options["pattern"]:
        options |= {"scope": draw.choice(["layer", "global"]), "sparsity": draw.choice([0.5, 0.8]), "align": 1}
    try:
        notes = sparsify(model, random_feeds(model, seed, 16), **options).record["sparsify"]
    except OptionError as error:
        assert "fits no layer" in str(error)
        return
    assert 0 < notes["zeros"] <= notes["weights"]


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
def test_a_large_layer_is_never_in_float64_as_a_whole(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEATURES", "WIDE"):
        monkeypatch.setattr(moments, name, 128)
    monkeypatch.setattr("onnxprune.sums.CHUNK", 1 << 14)
    b = Builder()
    model = b.model(b.gemm(b.op("Relu", b.gemm(b.input("x", 1, 1024), 256)), 4))
    x = np.random.default_rng(0).standard_normal((8, 1, 1024)).astype(np.float32)
    tracemalloc.start()
    Pipeline([get("sparsify")(criterion=criterion, cut=False)]).run(model, data=[{"x": each} for each in x], threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * 256 * 1024  # modules that are loaded meanwhile included; it was 19 and more
