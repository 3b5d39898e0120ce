"""What --allow-inexact opens: residual streams under norms, cut everywhere alike."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import Options, couple, cut, load, make_plan
from onnxprune.runtime import session
from onnxprune.testing import Builder

WORDS, WIDTH, INNER = 11, 8, 12
Norm = Callable[[Builder, str, str], str]


def rms(b: Builder, x: str, scale: str) -> str:
    """RMSNorm as LLaMA exports have it."""
    mean = b.op("ReduceMean", b.op("Pow", x, 2.0), axes=[-1], keepdims=1)
    return b.op("Mul", scale, b.op("Mul", x, b.op("Reciprocal", b.op("Sqrt", b.op("Add", mean, 1e-5)))))


def written_out(b: Builder, x: str, scale: str) -> str:
    """LayerNormalization as exporters before opset 17 have it."""
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1], keepdims=1))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes=[-1], keepdims=1)
    return b.op("Mul", b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-5))), scale)


def layer_norm(b: Builder, x: str, scale: str) -> str:
    return b.op("LayerNormalization", x, scale)


def unit_length(b: Builder, x: str, scale: str) -> str:
    return b.op("Mul", b.op("Div", x, b.op("ReduceL2", x, axes=[-1], keepdims=1)), scale)


def decoder(norm: Norm, kept: np.ndarray | None = None) -> ModelProto:
    """Words in, words out: an embedding whose transpose is the last layer, and one block between two norms."""
    rng = np.random.default_rng(0)
    stream = np.arange(WIDTH) if kept is None else kept
    b = Builder()

    def weight(name: str, shape: tuple[int, ...], axis: int) -> str:
        return b.const(np.take(rng.standard_normal(shape).astype(np.float32), stream, axis=axis), name)

    table = weight("table", (WORDS, WIDTH), 1)
    x = b.op("Gather", table, b.input("ids", 2, 5, dtype=np.int64))
    y = norm(b, x, weight("scale1", (WIDTH,), 0))
    y = b.op("Relu", b.op("MatMul", y, weight("up", (WIDTH, INNER), 0)))
    y = b.op("Add", x, b.op("MatMul", y, weight("down", (INNER, WIDTH), 1)))
    y = norm(b, y, weight("scale2", (WIDTH,), 0))
    return b.model(b.op("MatMul", y, b.op("Transpose", table, perm=[1, 0])))


@pytest.mark.parametrize("norm", [rms, written_out, layer_norm, unit_length])
def test_a_residual_stream_is_cut_everywhere(norm: Norm) -> None:
    """The cut model is the one that would have been built with the narrow stream."""
    coupling = couple(load(decoder(norm)), Options(inexact=True))
    (stream,) = [g for g in coupling.groups if any(m.constant == "table" for m in g.members)]
    assert {m.constant for m in stream.members} == {"table", "scale1", "scale2", "up", "down"}
    removed = np.zeros(coupling.units, dtype=bool)
    removed[stream.units[[1, 2, 6]]] = True
    pruned = cut(coupling, make_plan(coupling, removed), removed)
    wanted = decoder(norm, np.array([0, 3, 4, 5, 7]))
    ids = {"ids": np.random.default_rng(1).integers(0, WORDS, (2, 5))}
    ours, theirs = (session(m, threads=1).run(None, ids)[0] for m in (pruned, wanted))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    table = next(t for t in pruned.graph.initializer if t.name == "table")
    assert numpy_helper.to_array(table).shape == (WORDS, 5)


@pytest.mark.parametrize("norm", [rms, written_out, layer_norm])  # zeros change no length: that one is exact
def test_it_is_locked_otherwise_and_the_lock_names_the_option(norm: Norm) -> None:
    coupling = couple(load(decoder(norm)))
    assert not any(m.constant == "table" for g in coupling.groups for m in g.members)
    lock = next(lock for lock in coupling.locked if lock.value == "table" and lock.axis == 1)
    assert lock.option == "--allow-inexact"


def test_a_group_norm_written_out() -> None:
    """Reshape to [B, groups, -1], normalise each group, and back."""
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    z = b.op("InstanceNormalization", b.op("Reshape", y, [0, 1, -1]), b.near_one(1), b.weight(1))
    z = b.op("Mul", b.op("Reshape", z, b.op("Shape", y)), b.near_one(8, 1, 1, name="scale"))
    model = b.model(b.conv(z, 4, 1, name="w2"))
    assert not couple(load(model)).groups
    coupling = couple(load(model), Options(inexact=True))
    assert {m.constant for m in coupling.groups[0].members} >= {"w1", "scale", "w2"}
    removed = np.arange(coupling.units) < 3
    pruned = cut(coupling, make_plan(coupling, removed), removed)
    assert session(pruned, threads=1).run(None, {"x": np.ones((2, 3, 6, 6), np.float32)})[0].shape == (2, 4, 6, 6)
