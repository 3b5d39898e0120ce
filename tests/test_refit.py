"""One layer that lost half of its channels: fitted by moments, and in the space of its rows."""

import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune import couple, refit
from onnxprune.consumers import Consumer, consumers
from onnxprune.graph import load
from onnxprune.moments import Rows
from onnxprune.refit import Layer, Refit
from onnxprune.sums import CHUNK
from onnxprune.testing import Builder

Array = NDArray[Any]

SHAPES = {"gemm": (6, 80), "matmul": (80, 6), "1x1": (6, 100, 1, 1), "3x3": (6, 16, 3, 3)}  # convolutions in two groups
SIDE = 2  # of their maps
EACH = 4  # samples of a batch


def layer(w: Array, kind: str = "gemm") -> Consumer:
    """A model that is one layer, in the type of its weights."""
    b, conv = Builder(), w.ndim == 4
    channels = 2 * w.shape[1] if conv else w.shape[kind == "gemm"]
    x = b.op("Relu", b.input("x", EACH, channels, *[SIDE] * (2 * conv), dtype=w.dtype))
    bias = [] if kind == "matmul" else [b.const(np.zeros(len(w), w.dtype), "b")]
    attrs: dict[str, Any] = {"group": 2, "pads": [w.shape[-1] // 2] * 4} if conv else {"transB": 1}
    op = "Conv" if conv else kind.capitalize().replace("mul", "Mul")
    y = b.op(op, x, b.const(w, "w"), *bias, name="y", **({} if kind == "matmul" else attrs))
    return next(iter(consumers(couple(load(b.model(b.op("Relu", y)))))))


class Fitted(NamedTuple):
    """The new weights and biases, what is said of them, and what they were fitted with."""

    w: Array
    b: Array
    said: Layer
    made: Refit


def fitted(kind: str, batches: int, **options: Any) -> Fitted:
    """Its channels depend on each other, its results on them; the last batch is held out."""
    rng, axis = np.random.default_rng(0), int(kind != "matmul")
    w = rng.standard_normal(SHAPES[kind])
    whole, cut = layer(w, kind), layer(np.take(w, np.arange(w.shape[axis] // 2), axis), kind)
    groups, _, each, _ = whole.shape
    kept = np.tile(np.arange(each) < each // 2, groups)
    made = Refit(whole, cut, (kept, slice(None)), EACH * batches, "full", rng, **options)
    mix, mapped = rng.standard_normal((kept.size, 5)), rng.standard_normal((6, kept.size))
    for batch in range(batches):
        x = np.einsum("cd,nd...->nc...", mix, rng.standard_normal((EACH, 5, *[SIDE] * (2 * (w.ndim == 4)))))
        x += 2 + rng.standard_normal(x.shape) / 4
        y = np.einsum("oc,nc...->no...", mapped, x)
        made.add(batch == batches - 1, x, y, x[:, kept])
    patch, said = made.best(everything=True)
    return Fitted(patch.weights["w"], patch.weights.get("b", np.zeros(1)), said, made)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_rows_and_moments_come_to_the_same(
    kind: str, corrected: bool, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fitted(kind, 3, rescale=rescale, corrected=corrected)
    assert isinstance(one.made.fit, Rows) and one.made.fit.count < one.made.features
    monkeypatch.setattr(Refit, "_many", lambda self, rows: True)
    other = fitted(kind, 3, rescale=rescale, corrected=corrected)
    assert not isinstance(other.made.fit, Rows)
    assert one.said.method == other.said.method != "none" and one.said.ridge == other.said.ridge
    np.testing.assert_allclose(one.w, other.w, rtol=0, atol=1e-8)
    np.testing.assert_allclose(one.b, other.b, rtol=0, atol=1e-7)
    for name in ("before", "after", "fit"):
        assert getattr(one.said, name) == pytest.approx(getattr(other.said, name), rel=1e-6)


def test_many_rows_become_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they had never been kept: to the bit."""
    one = fitted("gemm", 12)
    assert not isinstance(one.made.fit, Rows) and one.made.fit.count == 44 > one.made.features
    monkeypatch.setattr(Refit, "_many", lambda self, rows: True)
    other = fitted("gemm", 12)
    np.testing.assert_array_equal(one.w, other.w)
    assert one.said == other.said


def test_few_rows_are_enough_to_fit_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is solved for has to be small, not the layer."""
    monkeypatch.setattr(refit, "FEATURES", 40)
    few, many = fitted("3x3", 3), fitted("3x3", 12)
    assert few.made.features == many.made.features == 72 and few.made.fit.count == 32 and many.made.fit.count > 72
    assert few.said.method == "full" and many.said.method != "full"


def test_a_wide_layer_takes_little_memory() -> None:
    """Nothing is as large as moments of its features, and few things as large as its weights."""
    rng = np.random.default_rng(0)
    w, kept = rng.standard_normal((1000, 6000), dtype=np.float32), np.arange(6000) < 3000
    whole, cut, mix = layer(w), layer(w[:, :3000]), rng.standard_normal((5, 6000), dtype=np.float32)
    tracemalloc.start()
    try:
        made = Refit(whole, cut, (kept, slice(None)), 32, "full", rng, rescale=True)
        for batch in range(8):
            x = rng.standard_normal((4, 5), dtype=np.float32) @ mix
            made.add(batch == 7, x, x @ w.T, x[:, kept])
        patch, _ = made.best(everything=True)
        assert patch.weights["w"].shape == (1000, 3000)
        assert tracemalloc.get_traced_memory()[1] < 3 * w.nbytes + 3 * CHUNK * 8
    finally:
        tracemalloc.stop()
