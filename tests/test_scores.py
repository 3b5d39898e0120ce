"""Scores of attention heads that lost dimensions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import Result, prune
from onnxprune.consumers import consumers
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.patch import NOTHING, patched
from onnxprune.runtime import run, session
from onnxprune.scores import written
from onnxprune.testing import Builder

Array = NDArray[Any]
HEADS, WIDTH, TOKENS, CHANNELS = 4, 8, 6, 12


class Net(Builder):
    """Attention from parts, with biases that matter."""

    def layer(self, x: str, size: int, name: str) -> str:
        """MatMul and Add."""
        y = self.op("MatMul", x, self.weight(self.shape(x)[-1], size, name=name, fan=CHANNELS))
        return self.op("Add", self.weight(size, name=f"{name}.bias", fan=4), y)

    def heads(self, y: str, count: int = HEADS, perm: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        """[N, tokens, count * width] -> [N, count, tokens, width], or another order."""
        return self.op("Transpose", self.op("Reshape", y, [0, 0, count, -1]), perm=perm)

    def attend(self, scores: str, v: str) -> ModelProto:
        """Softmax, values [N, heads, tokens, width], and a layer; the scores are an output, too."""
        y = self.op("MatMul", self.op("Softmax", self.op("Mul", scores, np.float32(0.2))), v)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
        return self.model(self.op("MatMul", y, self.weight(self.shape(y)[-1], CHANNELS, name="out", fan=32)), scores)


def start() -> tuple[Net, str]:
    b = Net(seed=3)
    return b, b.input("x", "N", TOKENS, CHANNELS)


def apart() -> ModelProto:
    b, x = start()
    q, k, v = (b.layer(x, HEADS * WIDTH, name) for name in "qkv")
    q = b.op("Mul", b.heads(q), np.float32(0.5))
    return b.attend(b.op("MatMul", q, b.heads(k, perm=(0, 2, 3, 1))), b.heads(v))


def split() -> ModelProto:
    """One layer for all three, parted at once."""
    b, x = start()
    q, k, v = b.ops("Split", b.layer(x, 3 * HEADS * WIDTH, "qkv"), outputs=3, axis=-1)
    return b.attend(b.op("MatMul", b.heads(q), b.heads(k, perm=(0, 2, 3, 1))), b.heads(v))


def packed() -> ModelProto:
    """One layer for all three, parted when heads have an axis of their own."""
    b, x = start()
    y = b.op("Reshape", b.layer(x, 3 * HEADS * WIDTH, "qkv"), [0, 0, 3, HEADS, WIDTH])
    y = b.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", y, np.array(n), axis=0) for n in range(3))
    return b.attend(b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), v)


def grouped() -> ModelProto:
    """Two key heads, each for two query heads."""
    b, x = start()
    q = b.op("Reshape", b.heads(b.layer(x, HEADS * WIDTH, "q")), [0, 2, 2, TOKENS, -1])
    k, v = (b.op("Unsqueeze", b.heads(b.layer(x, 2 * WIDTH, n), 2), [2]) for n in "kv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 2, 4, 3]))
    y = b.op("MatMul", b.op("Softmax", b.op("Mul", scores, np.float32(0.2))), v)
    y = b.op("Transpose", y, perm=[0, 3, 1, 2, 4])
    y = b.op("Reshape", y, [0, 0, -1])
    return b.model(b.op("MatMul", y, b.weight(HEADS * WIDTH, CHANNELS, name="out", fan=32)), scores)


def repeated() -> ModelProto:
    """Two key heads, written out twice each."""
    b, x = start()
    q, k, v = (b.layer(x, n * WIDTH, name) for n, name in ((HEADS, "q"), (2, "k"), (2, "v")))

    def twice(y: str) -> str:
        y = b.op("Reshape", y, [0, 0, 2, 1, -1])
        return b.op("Reshape", b.op("Expand", y, np.array([1, 1, 1, 2, 1])), [0, 0, HEADS, -1])

    k, v = (b.op("Transpose", twice(y), perm=p) for y, p in ((k, (0, 2, 3, 1)), (v, (0, 2, 1, 3))))
    return b.attend(b.op("MatMul", b.heads(q), k), v)


def einsum() -> ModelProto:
    b, x = start()
    q, k, v = (b.op("Reshape", b.layer(x, HEADS * WIDTH, name), [0, 0, HEADS, -1]) for name in "qkv")
    scores = b.op("Einsum", q, k, equation="bqhd,bkhd->bhqk")
    return b.attend(scores, b.op("Transpose", v, perm=[0, 2, 1, 3]))


def convolved() -> ModelProto:
    """Attention over places of an image: keys and queries from convolutions, one head, no bias for the queries."""
    b = Net(seed=3)
    x = b.input("x", "N", CHANNELS, 2, 3)
    q, k, v = (
        b.op("Reshape", b.conv(x, 2 * WIDTH, 1, name=n, bias=n != "q"), [0, 2 * WIDTH if n == "v" else -1, TOKENS])
        for n in "qkv"
    )
    scores = b.op("MatMul", b.op("Transpose", q, perm=[0, 2, 1]), k)
    y = b.op("MatMul", v, b.op("Softmax", scores))
    return b.model(b.op("MatMul", b.weight(CHANNELS, 2 * WIDTH, name="out"), y), scores)


MODELS: dict[str, Callable[[], ModelProto]] = {
    f.__name__: f for f in (apart, split, packed, grouped, repeated, einsum, convolved)
}


def inputs(model: ModelProto, count: int = 48, seed: int = 0) -> dict[str, Array]:
    """Tokens with a mean, in which some directions are louder than others."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(seed)
    loud = np.random.default_rng(1).standard_normal((CHANNELS, CHANNELS)) * 0.7 ** np.arange(CHANNELS)
    x = (rng.standard_normal((count, TOKENS, CHANNELS)) + 0.3) @ loud.T
    return {"x": (x if shape[-1] == CHANNELS else x.swapaxes(1, 2).reshape(count, *shape)).astype(np.float32)}


def pruned(model: ModelProto, recover: str = "full", target: str = "channels=0.75", **options: Any) -> Result:
    default: dict[str, Any] = {"head_dims": True, "criterion": "l2", "scope": "local", "align": 1}
    return prune(model, target, data=inputs(model), validate=False, recover=recover, threads=1, **default | options)


def off(model: ModelProto, other: ModelProto, which: int = 1) -> float:
    """How far an output is from the original's, on inputs that nothing was made with."""
    feed = inputs(model, seed=9)
    a, b = (list(run(session(m, threads=1), feed).values())[which] for m in (model, other))
    return float(np.square(a - b).sum() / np.square(a).sum())


def said(result: Result) -> list[dict[str, Any]]:
    return [layer for layer in result.record["recovery"]["layers"] if layer["method"] == "scores"]


@pytest.mark.parametrize("which", MODELS)
def test_scores_come_back(which: str) -> None:
    model = MODELS[which]()
    bias, full = pruned(model, "bias"), pruned(model)
    before = off(model, bias.model)
    assert before > 1e-3 and not said(bias)
    assert off(model, full.model) < 0.2 * before
    (layer,) = said(full)
    assert layer["after"] < 0.2 * layer["before"]
    assert off(model, full.model, 0) < off(model, bias.model, 0)
    assert [n.op_type for n in full.model.graph.node] == [n.op_type for n in model.graph.node]


def test_the_record_says_what_is_measured() -> None:
    model = apart()
    (layer,) = said(pruned(model))
    assert layer["before"] == pytest.approx(off(model, pruned(model, "none").model), rel=0.3)


def one_sided(act: str | None, side: str = "q") -> ModelProto:
    """An activation on one side (or on both) that keeps zeros."""
    b, x = start()
    q, k, v = (b.layer(x, HEADS * WIDTH, name) for name in "qkv")
    q = b.op("Relu", q) if side in ("q", "both") else q
    k = b.op("Relu", k) if side in ("k", "both") else k
    return b.attend(b.op("MatMul", b.heads(q), b.heads(k, perm=(0, 2, 3, 1))), b.heads(v))


@pytest.mark.parametrize("side", ["q", "k"])
def test_one_side_takes_the_map_where_the_other_cannot(side: str) -> None:
    model = one_sided("Relu", side)
    bias, full = pruned(model, "bias"), pruned(model)
    (layer,) = said(full)
    assert layer["after"] < layer["before"]
    assert off(model, full.model) < 0.9 * off(model, bias.model)


def shared() -> ModelProto:
    """Queries that something else reads."""
    b, x = start()
    q, k, v = (b.layer(x, HEADS * WIDTH, name) for name in "qkv")
    scores = b.op("MatMul", b.heads(q), b.heads(k, perm=(0, 2, 3, 1)))
    more = b.op("MatMul", b.heads(q), b.op("Transpose", b.op("Relu", b.heads(k)), perm=[0, 1, 3, 2]))
    return b.attend(b.op("Add", scores, more), b.heads(v))


def turned() -> ModelProto:
    """Halves of queries and keys are exchanged, as rotary embeddings do."""
    b, x = start()
    q, k, v = (b.layer(x, HEADS * WIDTH, name) for name in "qkv")

    def exchange(y: str, axis: int) -> str:
        first, second = b.ops("Split", y, outputs=2, axis=axis)
        return b.op("Add", y, b.op("Concat", b.op("Neg", second), first, axis=axis))

    return b.attend(b.op("MatMul", exchange(b.heads(q), 3), exchange(b.heads(k, perm=(0, 2, 3, 1)), 2)), b.heads(v))


def fed() -> ModelProto:
    """Behind a layer that loses channels itself."""
    b, x = start()
    y = b.op("Relu", b.layer(x, 4 * CHANNELS, "wide"))
    q, k, v = (b.layer(y, HEADS * WIDTH, name) for name in "qkv")
    return b.attend(b.op("MatMul", b.heads(q), b.heads(k, perm=(0, 2, 3, 1))), b.heads(v))


def test_layers_that_lost_what_they_read_are_fitted_first() -> None:
    model = fed()
    bias, full = pruned(model, "bias"), pruned(model)
    (layer,) = said(full)
    assert layer["after"] < 0.7 * layer["before"]
    assert off(model, full.model) < 0.7 * off(model, bias.model)


def test_channel_is_enough() -> None:
    (layer,) = said(pruned(apart(), "channel"))
    assert layer["after"] < layer["before"]


@pytest.mark.parametrize("model", [one_sided("Relu", "both"), shared(), turned()], ids=["relu", "shared", "turned"])
def test_what_lies_between_is_left_alone(model: ModelProto) -> None:
    result = pruned(model)
    assert off(model, result.model) > 1e-3 and not said(result)


@pytest.mark.parametrize("head_dims", [True, False], ids=["dims", "heads"])
def test_values_come_back_through_the_layer_after_them(head_dims: bool) -> None:
    """Value dimensions, or whole heads."""
    model = apart()
    if head_dims:
        options: dict[str, Any] = {"keep": "^[qk]$"}
    else:
        options = {"head_dims": False}
    bias, full = (pruned(model, method, **options) for method in ("none", "full"))
    assert full.model.graph.initializer != model.graph.initializer
    layer = next(e for e in full.record["recovery"]["layers"] if e["method"] in ("channel", "full"))
    assert layer["after"] < layer["before"]
    assert off(model, full.model, 0) < 0.9 * off(model, bias.model, 0)


def plain(kind: str) -> ModelProto:
    """Two layers side by side, in which y = W x + b is written in several ways."""
    b = Builder(seed=5)
    if kind == "Conv":
        x = b.input("x", 2, 3, 4, 4)
        return b.model(*(b.op("Identity", b.conv(x, 8, 3, n, bias=n == "w"), name=f"y{n}") for n in "wv"))
    x, shared = b.input("x", 5, 3), b.weight(8, name="bias")
    if kind == "MatMul":
        y = [b.op("Add", b.op("MatMul", x, b.weight(3, 8, name=n)), b.weight(8, name=f"{n}.bias")) for n in "wv"]
    else:
        y = [b.op("Gemm", x, b.weight(8, 3, name=n), shared, transB=1, alpha=0.5, beta=2.0) for n in "wv"]
    return b.model(*(b.op("Identity", part, name=f"y{n}") for part, n in zip(y, "wv", strict=True)))


@pytest.mark.parametrize("kind", ["Conv", "MatMul", "Gemm"])
def test_a_layer_is_written_anew(kind: str) -> None:
    graph = load(plain(kind))
    layer, other = consumers(couple(graph))
    rng = np.random.default_rng(0)
    rows, maps = np.array([[6, 1], [2, 4]]), rng.standard_normal((2, 2, 2))
    feed = {"x": rng.standard_normal([2, 3, 4, 4] if kind == "Conv" else [5, 3]).astype(np.float32)}
    y, z = run(session(graph.proto), feed).values()
    patch = NOTHING
    for source, of in ((None, y), ((other, rows[:, ::-1]), z)):  # what is written twice begins where the first ended
        patch |= written(layer, patch, rows, maps, source)
        expected, head = np.moveaxis(y.copy(), 1, -1), np.moveaxis(of, 1, -1)
        for n in range(2):
            taken = rows[n] if source is None else rows[n, ::-1]
            expected[..., rows[n]] = head[..., taken] @ maps[n].T
        got, same = run(session(patched(graph, patch)), feed).values()
        np.testing.assert_allclose(got, np.moveaxis(expected, -1, 1), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(same, z)
        y = got
