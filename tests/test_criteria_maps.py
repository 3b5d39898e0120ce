"""Ranks of feature maps, against NumPy's on what ONNX Runtime computes."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune import calibrate as module
from onnxprune.calibrate import calibrate
from onnxprune.coupling import couple
from onnxprune.criteria.base import CRITERIA, Context, score
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.observe import maps_of, observe
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close
from tests import contracted
from tests.contracted import Layer, convolve, of_a, scores, start

Array = NDArray[Any]
ENGINE = Engine(threads=1)


def feeds(*sizes: int, dtype: Any = np.float32) -> list[dict[str, Array]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((n, 3, 6, 5)).astype(dtype)} for n in sizes]


def pooled() -> ModelProto:
    """Maps of several ranks: channel 1 is dead, channel 2 the same everywhere; a head reads them pooled."""
    b = Builder()
    weights = b.rng.standard_normal((6, 3, 1, 1)).astype(np.float32)
    weights[1:3] = 0
    bias = np.array([0, -1, 1, -1, -2, 0.5], np.float32)
    y = b.op("Relu", b.op("Conv", b.input("x", "N", 3, 6, 5), b.const(weights, "a"), b.const(bias)), name="r")
    return b.model(close(b, b.op("Flatten", b.op("GlobalAveragePool", y))))


def maps(model: ModelProto, name: str, batches: list[dict[str, Array]]) -> Array:
    """[samples, channels, height, width] there."""
    full = ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.append(helper.make_empty_tensor_value_info(name))
    ready = session(full, threads=1, optimize=False)
    return np.concatenate([run(ready, feed)[name] for feed in batches])


def hrank(model: ModelProto, batches: list[dict[str, Array]]) -> tuple[Coupling, Array]:
    coupling = couple(load(model))
    seen = observe(coupling, batches, ENGINE, Want.RANKS)
    return coupling, CRITERIA.get("hrank")(Context(coupling, readers=seen.readers, moments=seen.moments))


def test_the_mean_rank_of_what_is_pooled() -> None:
    model, batches = pooled(), feeds(4, 3)
    coupling, found = hrank(model, batches)
    ranks = np.linalg.matrix_rank(maps(model, "r", batches))
    np.testing.assert_allclose(found[of_a(coupling)], ranks.mean(axis=0))
    assert found[of_a(coupling)][1:3].tolist() == [0, 1] and ranks.max() == 5


def test_the_mean_over_all_that_is_read() -> None:
    """A value that two layers read counts once; one of the same channels that another reads, too."""
    b, y = start(8)
    z = b.op("MaxPool", y, kernel_shape=[2, 2], name="z")
    ys = [convolve(b, Layer(name, x), 5) for name, x in (("b", y), ("c", y), ("d", z))]
    model = b.model(*(close(b, b.op("Relu", y), name=f"out{i}") for i, y in enumerate(ys)))
    coupling, found = scores("hrank", model)
    wanted = [np.linalg.matrix_rank(maps(model, name, contracted.feeds())).mean(axis=0) for name in ("r", "z")]
    np.testing.assert_allclose(found[of_a(coupling)], np.mean(wanted, axis=0))


def test_half_precision_does_not_count_rounding() -> None:
    """A map that is an outer product has rank 1, though its rounded entries have more."""
    b = Builder()
    w = b.const(np.ones((4, 1, 1, 1), np.float16) * np.arange(1, 5, dtype=np.float16).reshape(4, 1, 1, 1), "a")
    y = b.op("Conv", b.input("x", "N", 1, 6, 5, dtype=np.float16), w)
    y = b.op("Conv", b.op("Relu", y, name="r"), b.const(b.rng.standard_normal((3, 4, 1, 1)).astype(np.float16), "b"))
    rng = np.random.default_rng(0)
    x = (rng.uniform(0.5, 1.5, (3, 1, 6, 1)) * rng.uniform(0.5, 1.5, (3, 1, 1, 5))).astype(np.float16)
    coupling, found = hrank(b.model(y), [{"x": x}])
    assert np.linalg.matrix_rank(x.astype(np.float32)).min() > 1
    assert (found[of_a(coupling)] == 1).all()


def test_channels_last() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", "N", 6, 5, 3), b.weight(3, 7, name="a"))
    y = b.op("MatMul", b.op("Relu", y, name="r"), b.weight(7, 4, name="b"))
    model, x = b.model(y), np.random.default_rng(0).standard_normal((4, 6, 5, 3)).astype(np.float32)
    coupling, found = hrank(model, [{"x": x}])
    ranks = np.linalg.matrix_rank(np.moveaxis(maps(model, "r", [{"x": x}]), 3, 1)).mean(axis=0)
    np.testing.assert_allclose(found, ranks)
    assert coupling.units == 7


def test_what_has_no_maps_is_not_scored() -> None:
    """Neurons over tokens, and vectors; in a sum the other part decides there."""
    b = Builder()
    y = b.op("Relu", b.op("MatMul", b.input("x", "N", 9, 3), b.weight(3, 8, name="a")))
    model = b.model(b.op("MatMul", y, b.weight(8, 4, name="b")))
    x = np.random.default_rng(0).standard_normal((6, 9, 3)).astype(np.float32)
    coupling, found = hrank(model, [{"x": x}])
    assert found.shape == (8,) and np.isnan(found).all()
    seen = observe(coupling, [{"x": x}], ENGINE, Want.RANKS)
    made = score(coupling, "hrank+l2", readers=seen.readers, moments=seen.moments)
    np.testing.assert_allclose(made, score(coupling, "l2"))


def test_where_channels_are_maps_last() -> None:
    """What a gate reads is 1 x 1, and was a map before; so were flattened channels."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 6, 5), 8, name="a"), name="r")
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y, name="p"), 8, 1, name="b"))
    flat = b.op("Flatten", b.op("Mul", y, gate, name="m"), name="f")
    coupling = couple(load(b.model(b.gemm(flat, 4))))
    assert maps_of(coupling, Dim("r", 1)) == Dim("r", 1)
    assert maps_of(coupling, Dim("p", 1)) == Dim("r", 1)
    assert maps_of(coupling, Dim("f", 1)) == Dim("m", 1)


def test_heads_are_maps_of_tokens_and_dimensions() -> None:
    b = Builder()
    x = b.input("x", "N", 7, 12)
    q, k, v = (
        b.op("Transpose", b.op("Reshape", b.op("MatMul", x, b.weight(12, 12, name=n)), [0, 0, 3, 4]), perm=[0, 2, 1, 3])
        for n in "qkv"
    )
    scored = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    back = b.op("Transpose", b.op("MatMul", scored, v), perm=[0, 2, 1, 3], name="t")
    model = b.model(b.op("MatMul", b.op("Reshape", back, [0, 0, 12]), b.weight(12, 5, name="o")))
    batch = {"x": np.random.default_rng(0).standard_normal((4, 7, 12)).astype(np.float32)}
    coupling, found = hrank(model, [batch])
    ranks = np.linalg.matrix_rank(np.moveaxis(maps(model, "t", [batch]), 2, 1)).mean(axis=0)
    assert coupling.units == 3
    np.testing.assert_allclose(found, ranks)


@pytest.mark.parametrize("samples", [None, 11])
def test_a_few_samples_are_looked_at(samples: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPS", 5)
    model = load(pooled())
    wanted = {Dim("r", 1): Want.RANKS, Dim("x", 1): Want.PAIRS}
    found = calibrate(model, feeds(4, 4, 3), wanted, ENGINE, samples)[Dim("r", 1)]
    assert found.maps == 5 and found.ranks is not None and found.samples == 11
    assert (found.ranks <= 5 * 5).all() and found.ranks[2] == 5


def test_statistics_of_others_are_as_without() -> None:
    model, batches = load(pooled()), feeds(4, 3)
    plain = calibrate(model, batches, {Dim("r", 1): Want.ABSOLUTE}, ENGINE, 7)[Dim("r", 1)]
    more = calibrate(model, batches, {Dim("r", 1): Want.ABSOLUTE | Want.RANKS}, ENGINE, 7)[Dim("r", 1)]
    assert plain.ranks is None and plain.maps == 0 and more.absolute is not None
    np.testing.assert_array_equal(plain.absolute, more.absolute)


def test_a_batch_that_is_fixed() -> None:
    model = pooled()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    coupling, found = hrank(model, feeds(1, 1, 1))
    ranks = np.linalg.matrix_rank(maps(model, "r", feeds(1, 1, 1))).mean(axis=0)
    np.testing.assert_allclose(found[of_a(coupling)], ranks)


def test_weights_in_constant_nodes() -> None:
    model = pooled()
    plain = hrank(model, feeds(4))[1]
    moved = ModelProto()
    moved.CopyFrom(model)
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in moved.graph.initializer]
    kept = list(moved.graph.node)
    del moved.graph.initializer[:], moved.graph.node[:]
    moved.graph.node.extend([*nodes, *kept])
    np.testing.assert_array_equal(hrank(moved, feeds(4))[1], plain)
