"""What the analysis claims of every channel is true: checked against all inner values of a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune import runtime
from onnxprune.coupling import couple
from onnxprune.feeds import random_feeds
from onnxprune.graph import load
from onnxprune.lossless.elementwise import NARY, UNARY
from onnxprune.lossless.facts import Facts, same_rows
from onnxprune.lossless.search import analyse
from onnxprune.testing import Builder

NEWER = {"Gelu": 20, "Mish": 18, "HardSwish": 17, "Swish": 24}
CONSTANTS = np.array([-1.5, -0.6, -0.25, 0, 0.25, 0.6, 1.5, 4], np.float32)


def check(model: ModelProto, value: str) -> tuple[int, int]:
    """Compare all facts with a run; how many constants and how many equal pairs are claimed of a value."""
    facts = Facts(couple(load(model)))
    analyse(facts)
    inner = [o for node in model.graph.node for o in node.output]
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.output[:]
    for name in inner:
        bare.graph.output.add(name=name)
    session = runtime.session(bare, threads=1, optimize=False, arena=False)
    for feed in random_feeds(model, 0, 2):
        for name, array in runtime.run(session, feed).items():
            agree(facts.of(name), np.asarray(array, dtype=np.float64), name)
    fact = facts.of(value)
    return int((~np.isnan(fact)).sum()), fact.size - np.unique(fact.view(np.int64)).size


def agree(fact: np.ndarray[Any, Any], array: np.ndarray[Any, Any], name: str) -> None:
    known = ~np.isnan(np.broadcast_to(fact, array.shape))
    np.testing.assert_allclose(array[known], np.broadcast_to(fact, array.shape)[known], 2e-5, 2e-6, err_msg=name)
    names = fact.view(np.int64)
    for twin in (n for n, count in zip(*np.unique(names, return_counts=True), strict=True) if count > 1):
        slices = [
            array[tuple(slice(None) if s == 1 else i for s, i in zip(fact.shape, where, strict=True))]
            for where in np.argwhere(names == twin)
        ]
        for other in slices[1:]:
            np.testing.assert_allclose(slices[0], other, 2e-5, 2e-6, err_msg=name)


def constants(b: Builder, shape: tuple[int, ...] = (2, 3, 4, 4)) -> str:
    """Eight channels that are constant, and four of which the last two are equal."""
    w = b.rng.standard_normal((12, shape[1], *[1] * (len(shape) - 2))).astype(np.float32)
    w[:8], w[11] = 0, w[10]
    bias = np.concatenate([CONSTANTS, [0, 0.5, 1, 1]]).astype(np.float32)
    return b.op("Conv", b.input("x", *shape), b.const(w), b.const(bias))


def close(b: Builder, y: str) -> ModelProto:
    return b.model(b.conv(y, 2, 1))


@pytest.mark.parametrize("op", sorted(set(UNARY) - {"Cast", "Not"}))
def test_unary_operators(op: str) -> None:
    b = Builder(NEWER.get(op, 17))
    y = b.op(op, constants(b))
    known, equal = check(close(b, y), y)
    if op in ("Acosh", "Log", "Reciprocal"):  # locked: a channel that is zero has no finite value
        return
    assert known >= 5
    assert equal >= 1


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Gelu": {"approximate": "tanh"},
    "Elu": {"alpha": 0.3},
    "Celu": {"alpha": 0.3},
    "LeakyRelu": {"alpha": 0.3},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.1},
    "Selu": {"alpha": 2.0, "gamma": 0.7},
    "Shrink": {"bias": 0.2, "lambd": 0.4},
    "ThresholdedRelu": {"alpha": 0.3},
    "Cast": {"to": TensorProto.FLOAT16},
}


@pytest.mark.parametrize("op", ATTRIBUTES)
def test_attributes_of_unary_operators(op: str) -> None:
    b = Builder(NEWER.get(op, 17))
    y = b.op("Cast", b.op(op, constants(b), **ATTRIBUTES[op]), to=TensorProto.FLOAT)
    assert check(close(b, y), y)[0] == 8


@pytest.mark.parametrize("op", sorted(NARY - {"And", "Or", "Xor"}))
def test_operators_that_broadcast(op: str) -> None:
    b = Builder()
    x = constants(b)
    other = b.const(np.linspace(0.5, 2, 12).astype(np.float32).reshape(12, 1, 1))
    pooled = b.op("GlobalMaxPool", x)
    for left, right in ((x, other), (x, b.const(np.float32(2))), (other, x), (x, pooled)):
        if op == "PRelu" and left == other:
            continue
        y = b.op("Cast", b.op(op, left, right), to=TensorProto.FLOAT)
        locked = op == "Div" and right in (x, pooled)  # a divisor that may become zero
        assert check(close(b, y), y)[0] >= (0 if locked else 5)


def test_logic() -> None:
    b = Builder()
    x = constants(b)
    a, c = b.op("Greater", x, np.float32(0)), b.op("Less", x, np.float32(1))
    y = b.op("Where", b.op("Not", b.op("Xor", a, b.op("Or", b.op("And", a, c), a))), x, np.float32(3))
    assert check(close(b, y), y)[0] >= 8


def test_zero_times_anything() -> None:
    """A closed gate needs to know nothing of what it closes."""
    b = Builder()
    x = constants(b)
    y = b.op("Mul", x, b.op("Sigmoid", b.conv(b.op("Relu", x), 12, 1)))
    assert check(close(b, y), y)[0] == 1


MOVES: dict[str, Callable[[Builder, str], str]] = {
    "transpose": lambda b, y: b.op("Transpose", b.op("Transpose", y, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]),
    "concat": lambda b, y: b.op("Concat", y, b.op("Relu", y), b.conv(y, 3, 1), axis=1),
    "concat of positions": lambda b, y: b.op("Concat", y, b.op("Relu", y), axis=2),
    "split": lambda b, y: b.op("Concat", *b.ops("Split", y, [5, 7], outputs=2, axis=1)[::-1], axis=1),
    "slice": lambda b, y: b.op("Slice", y, [2], [11], [1]),
    "slice of positions": lambda b, y: b.op("Slice", y, [1], [3], [2]),
    "gather": lambda b, y: b.op("Gather", y, np.array([7, 1, 10, 11]), axis=1),
    "tile": lambda b, y: b.op("Tile", y, [1, 2, 1, 1]),
    "expand": lambda b, y: b.op("Expand", b.op("GlobalAveragePool", y), [2, 12, 4, 4]),
    "shuffle": lambda b, y: b.op(
        "Reshape", b.op("Transpose", b.op("Reshape", y, [2, 3, 4, 16]), perm=[0, 2, 1, 3]), [2, 12, 4, 4]
    ),
    "pixel shuffle": lambda b, y: b.op("DepthToSpace", y, blocksize=2, mode="CRD"),
    "depth to space": lambda b, y: b.op("DepthToSpace", y, blocksize=2),
    "space to depth": lambda b, y: b.op("SpaceToDepth", y, blocksize=2),
    "squeeze": lambda b, y: b.op("Squeeze", b.op("Unsqueeze", y, [2]), [2]),
    "pad": lambda b, y: b.op("Pad", y, [0, 2, 1, 0, 0, 1, 0, 0], np.float32(0.25)),
    "reflect": lambda b, y: b.op("Pad", y, [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
    "average": lambda b, y: b.op("AveragePool", y, kernel_shape=[3, 3], pads=[1] * 4),
    "average with padding": lambda b, y: b.op(
        "AveragePool", y, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "average beyond the end": lambda b, y: b.op(
        "AveragePool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1
    ),
    "maximum": lambda b, y: b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
    "norm": lambda b, y: b.op("LpPool", y, kernel_shape=[2, 2]),
    "mean": lambda b, y: b.op("ReduceMean", y, axes=[2, 3]),
    "sum": lambda b, y: b.op("ReduceSum", y, [-1, -2], keepdims=1),
    "cubic": lambda b, y: b.op("Resize", y, None, [1.0, 1.0, 2.0, 2.0], mode="cubic"),
    "crop": lambda b, y: b.op(
        "Resize", y, [0, 0, -0.5, 0, 1, 1, 1.5, 1.0], [1.0, 1.0, 2.0, 2.0],
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0, mode="linear",
    ),
    "clip": lambda b, y: b.op("Clip", y, np.float32(-0.5), np.float32(1)),
    "clip from below": lambda b, y: b.op("Clip", y, np.float32(-0.5)),
    "softmax of positions": lambda b, y: b.op("Softmax", y, axis=-1),
    "instance norm": lambda b, y: b.op("InstanceNormalization", y, b.near_one(12), b.weight(12)),
    "batch norm": lambda b, y: b.batch_norm(y),
    "dropout": lambda b, y: b.op("Dropout", y),
    "padded": lambda b, y: b.conv(y, 12, 3),
    "unpadded": lambda b, y: b.conv(y, 12, 3, pads=[0] * 4),
    "depthwise": lambda b, y: b.conv(y, 24, 3, group=12, pads=[0] * 4),
    "grouped": lambda b, y: b.conv(y, 8, 1, group=4),
    "transposed": lambda b, y: b.op("ConvTranspose", y, b.weight(12, 6, 2, 2), b.weight(6), strides=[2, 2]),
    "transposed in groups": lambda b, y: b.op("ConvTranspose", y, b.weight(12, 2, 2, 2), group=3),
    "quantised": lambda b, y: b.op("DequantizeLinear", b.op("QuantizeLinear", y, 0.1, np.uint8(9)), 0.1, np.uint8(9)),
    "matrix": lambda b, y: b.op("MatMul", b.op("Transpose", y, perm=[0, 2, 3, 1]), b.weight(12, 5)),
    "from the left": lambda b, y: b.op("MatMul", b.weight(5, 12), b.op("Reshape", y, [2, 12, 16])),
    "gram": lambda b, y: b.op("MatMul", *(b.op("Reshape", y, s) for s in ([2, 12, 1, 16], [2, 12, 16, 1]))),
    "flatten": lambda b, y: b.gemm(b.op("Flatten", y), 4),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_operators_that_move_and_mix(move: str) -> None:
    b = Builder()
    y = MOVES[move](b, constants(b))
    rank = len(b.shape(y))
    end = b.op("ReduceMean", y, axes=list(range(rank))) if rank != 4 else b.conv(y, 2, 1)
    check(b.model(end, b.conv(constants_of(b), 2, 1)), y)


def constants_of(b: Builder) -> str:
    """The value that `constants` made: it stays cuttable through a reader with weights."""
    return str(b.graph.node[0].output[0])


def test_rows_are_equal_bit_by_bit() -> None:
    rows = np.array([[1, 2], [2, 1], [1, 2], [0, 3], [2, 1]], np.float32)
    assert same_rows(rows).tolist() == [0, 1, 0, 3, 1]
    assert same_rows(rows.astype(np.float64)).tolist() == [0, 1, 0, 3, 1]
