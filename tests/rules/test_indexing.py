"""Ops that read or write by index: the indexed axes stay, channels beside them pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.rules.indexing import COUNTED, READ, WRITTEN
from onnxprune.testing import Builder, close, prove, sandwich

Middle = Callable[[Builder, str], str]
INDEX = np.random.default_rng(0).integers(0, 6, (2, 8, 6, 6))


def flat(b: Builder, y: str) -> str:
    """[2, 8, 6, 6] -> [2, 8, 36]."""
    return b.op("Reshape", y, [2, 8, -1])


def ranks(b: Builder, y: str, axis: int, k: int = 6) -> str:
    """Where the k largest along an axis are."""
    return b.ops("TopK", y, [k], axis=axis, outputs=2)[1]


# GatherElements


def test_positions_are_gathered_for_each_channel() -> None:
    """Sorted by each channel's own order, which is cut with it."""
    result = prove(sandwich(lambda b, y: b.op("GatherElements", y, ranks(b, b.op("Tanh", y), 3, 4), axis=3)))
    assert result.choices("w1") == [8]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_constant_indices_are_cut_with_the_channels(dtype: Any) -> None:
    result = prove(sandwich(lambda b, y: b.op("GatherElements", y, b.const(INDEX.astype(dtype), "index"), axis=-1)))
    assert result.choices("w1") == [8]
    assert result.shape("index") == (2, 4, 6, 6)


def test_shorter_indices_leave_the_rest_unread() -> None:
    result = prove(sandwich(lambda b, y: b.op("GatherElements", y, INDEX[:, :5], axis=2)), rounds=4)
    assert sorted(result.choices("w1")) == [3, 5]


def test_an_axis_of_which_an_unknown_part_is_indexed() -> None:
    """Indices for some of the batch: the batch stays, the channels pass."""

    def middle(b: Builder, y: str) -> str:
        index = b.input("index", "some", 1, 6, 6, dtype=np.int64)
        sizes = b.op("Slice", b.op("Shape", index), [0], [1]), b.op("Slice", b.op("Shape", y), [1], [4])
        return b.op("GatherElements", y, b.op("Expand", index, b.op("Concat", *sizes, axis=0)), axis=3)

    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32), "index": INDEX[:1, :1]}
    assert prove(sandwich(middle), feeds=[feed]).choices("w1") == [8]


def test_gathered_channels_stay() -> None:
    result = prove(sandwich(lambda b, y: b.op("GatherElements", y, INDEX, axis=1)))
    assert not result.can_cut("w1")
    assert result.reason("w1") == READ


# ScatterElements


@pytest.mark.parametrize(("op", "opset"), [("Scatter", 10), ("ScatterElements", 17)])
def test_positions_are_scattered_for_each_channel(op: str, opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op(op, y, INDEX[..., :3], b.op("Slice", b.conv(y, 8, name="w"), [1], [4], [3]), axis=3)

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == result.choices("w") == [8]


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scattered_positions_are_reduced(reduction: str) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("ScatterElements", y, INDEX, b.conv(y, 8, name="w"), axis=2, reduction=reduction)

    result = prove(sandwich(middle, opset=18))
    assert result.choices("w1") == result.choices("w") == [8]


def test_updates_of_some_channels() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("ScatterElements", y, INDEX[:, :5], b.conv(y, 5, name="w"), axis=2)

    result = prove(sandwich(middle), rounds=4)
    assert sorted(result.choices("w1")) == [3, 5]
    assert result.choices("w") == [5]


def test_channels_written_by_index_stay_and_so_do_the_updates() -> None:
    """A zeroed update would still be written over what is there."""

    def middle(b: Builder, y: str) -> str:
        order = np.broadcast_to(np.array([7, 0, 3]).reshape(1, 3, 1, 1), (2, 3, 6, 6))
        return b.op("ScatterElements", y, order, b.conv(y, 3, name="w"), axis=1)

    result = prove(sandwich(middle))
    assert result.reason("w1") == WRITTEN
    assert result.reason("w") == COUNTED


def test_levels_of_a_pyramid_are_pooled_into_one_tensor() -> None:
    """Rows of zeros, each filled from the level that its box belongs to, as torchvision exports it."""

    def middle(b: Builder, y: str) -> str:
        zeros = b.op("Expand", 0.0, b.op("Shape", y))
        boxes = b.op("Slice", y, [0], [1], [0])
        rows = b.op("Expand", np.array([1]).reshape(1, 1, 1, 1), b.op("Shape", boxes))
        return b.op("ScatterElements", zeros, rows, boxes, axis=0)

    assert prove(sandwich(middle)).choices("w1") == [8]


# GatherND and ScatterND


def test_places_are_gathered_channels_last() -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[0, 2, 3, 1])
        return b.op("Unsqueeze", b.op("GatherND", z, np.array([[0, 1, 2], [1, 5, 0], [0, 1, 2]])), [2, 3])

    assert prove(sandwich(middle)).choices("w1") == [8]


@pytest.mark.parametrize("batch", [1, 2])
def test_places_are_gathered_for_each_of_a_batch(batch: int) -> None:
    """With two batch axes every channel has indices of its own, which are cut with it."""

    def middle(b: Builder, y: str) -> str:
        z = flat(b, y if batch == 2 else b.op("Transpose", y, perm=[0, 2, 3, 1]))
        if batch == 2:
            return b.op("GatherND", z, b.op("Unsqueeze", ranks(b, z, 2), [3]), batch_dims=2)
        return b.op("Transpose", b.op("GatherND", z, np.array([[[1], [3]], [[2], [0]]]), batch_dims=1), perm=[0, 2, 1])

    result = prove(sandwich(middle))
    assert result.choices("w1") == ([8] if batch == 2 else [])


def test_gathered_channels_of_nd_stay() -> None:
    result = prove(sandwich(lambda b, y: b.op("GatherND", y, np.array([[[1], [3]], [[2], [0]]]), batch_dims=1)))
    assert result.reason("w1") == READ


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max"])
def test_rows_are_written_channels_last(reduction: str) -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[0, 2, 3, 1])
        rows = b.op("Slice", b.op("Transpose", b.conv(y, 8, name="w"), perm=[0, 2, 3, 1]), [0], [1], [0])
        rows = b.op("Gather", b.op("Squeeze", rows, [0]), np.array([1, 4]), axis=0)
        z = b.op("ScatterND", z, np.array([[0, 3], [1, 5]]), rows, reduction=reduction)
        return b.op("Transpose", z, perm=[0, 3, 1, 2])

    result = prove(sandwich(middle, opset=18))
    assert result.choices("w1") == result.choices("w") == [8]


def test_channels_written_by_nd_stay_and_so_do_the_updates() -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[1, 0, 2, 3])
        updates = b.op("Transpose", b.conv(y, 2, name="w"), perm=[1, 0, 2, 3])
        z = b.op("ScatterND", z, np.array([[2], [5]]), updates)
        return b.op("Transpose", z, perm=[1, 0, 2, 3])

    result = prove(sandwich(middle))
    assert result.reason("w1") == WRITTEN
    assert result.reason("w") == COUNTED


# TensorScatter


@pytest.mark.parametrize("axis", [-2, 1])
def test_tensor_scatter(axis: int) -> None:
    """Keys enter a cache; heads and widths are cut, positions stay."""
    b = Builder(24)
    past = b.op("MatMul", b.input("past", 2, 6, 3), b.weight(3, 8, name="wp"))
    new = b.op("MatMul", b.input("new", 2, 2, 3), b.weight(3, 8, name="w1"))
    cache = b.op("TensorScatter", past, new, np.array([1, 3]), axis=axis)
    result = prove(b.model(b.op("MatMul", cache, b.weight(8, 4, name="w2"))))
    assert result.choices("w1", 1) == result.choices("wp", 1) == [8]


# Compress, OneHot, ReverseSequence, NonZero, Unique


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_compress(axis: int) -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    stays = np.arange(b.shape(y)[axis]) % 3 != 1
    y = b.op("Compress", b.op("Relu", y), b.const(stays), axis=axis)
    y = b.op("Conv", y, b.weight(4, int(stays.sum()) if axis == 1 else 8, 1, 1, name="last"))
    b.declare(y, "N", 4, "H", "W")
    assert prove_locked(b, y).choices("w1") == ([] if axis == 1 else [8])


def test_compress_without_an_axis() -> None:
    b = Builder()
    y = b.op("Compress", b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"), b.const(np.arange(9) % 3 != 1))
    assert prove_locked(b, y).reason("w1") == "Compress without an axis counts across all of them"


def prove_locked(b: Builder, y: str) -> Any:
    """A model with a second path that can be cut, so that there is something to prove."""
    free = close(b, b.op("Relu", b.conv("x", 8, name="free")))
    return prove(b.model(y, free))


def test_one_hot_of_the_best_position() -> None:
    """The channels of [N, C, W] become those of [N, C, W, values]; cut ones vanish with their indices."""

    def middle(b: Builder, y: str) -> str:
        best = b.op("ArgMax", y, axis=3, keepdims=0)
        return b.op("OneHot", best, np.array(6), np.array([0.0, 1.0], np.float32))

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_an_axis_of_values_stays() -> None:
    def middle(b: Builder, y: str) -> str:
        best = b.op("ArgMax", y, axis=1, keepdims=0)
        return b.conv(b.op("OneHot", best, np.array(8), np.array([0.0, 1.0], np.float32), axis=1), 5, name="after")

    result = prove(sandwich(middle))
    assert result.choices("w1") == []
    assert result.reason("after", 1) == "the indices of this axis are values of the input"


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reverse_sequence(time: int, batch: int) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 4, 4, 3), b.weight(3, 8, name="w1"))
    y = b.op("ReverseSequence", y, np.array([1, 4, 2, 3]), time_axis=time, batch_axis=batch)
    result = prove(b.model(b.op("MatMul", y, b.weight(8, 4, name="w2"))))
    assert result.choices("w1", 1) == [8]


@pytest.mark.parametrize("op", ["NonZero", "Unique"])
def test_what_depends_on_every_element_stays(op: str) -> None:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"))
    result = prove_locked(b, b.op(op, y))
    assert result.reason("w1") == f"{op} depends on every element"
    assert result.choices("free") == [8]
