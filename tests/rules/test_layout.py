"""Transpose, Expand, Tile, Shape."""

import numpy as np
import pytest

from onnxprune.testing import Builder, close, prove, sandwich


def test_transpose_to_channels_last_and_back() -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Relu", b.op("Transpose", y, perm=[0, 2, 3, 1]))
        y = b.op("Mul", y, b.near_one(8, name="scale"))
        return b.op("Transpose", y, perm=[0, 3, 1, 2])

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("scale") == [8]


def test_transpose_without_perm_reverses() -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("MatMul", b.op("Transpose", y), b.const(np.eye(2, dtype=np.float32)))  # [W, H, C, N]
        return b.op("Transpose", b.op("Relu", y))

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_linear_layers_between_transposes() -> None:
    """A ConvNeXt block without its norm."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[0, 2, 3, 1])
        z = b.op("Gelu", b.op("MatMul", z, b.weight(8, 12, name="up", fan=8)))
        z = b.op("MatMul", z, b.weight(12, 8, name="down", fan=12))
        return b.op("Add", y, b.op("Transpose", z, perm=[0, 3, 1, 2]))

    result = prove(sandwich(middle, opset=20))
    assert result.choices("w1") == result.choices("down", 1) == [8]
    assert result.choices("up", 1) == result.choices("down") == [12]


@pytest.mark.parametrize("target", [[2, 8, 6, 6], [1, 8, 6, 6], [6, 6], [1, 1, 1, 1], [8, 6, 6]], ids=str)
def test_expand_of_the_positions(target: list[int]) -> None:
    """The channels are named, stretched over, or beyond the target shape."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Expand", b.op("GlobalAveragePool", y), target)

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    if 8 in target:
        assert result.sizes("Expand", 1) == [[4 if size == 8 else size for size in target]]


def test_expand_to_the_shape_of_another() -> None:
    def middle(b: Builder, y: str) -> str:
        gate = b.op("Expand", b.op("Sigmoid", b.op("GlobalAveragePool", y)), b.op("Shape", y))
        return b.op("Mul", y, gate)

    assert prove(sandwich(middle)).choices("w1") == [8]
    assert prove(sandwich(middle, spatial=("H", "W"))).choices("w1") == [8]


def test_expand_makes_channels_out_of_one() -> None:
    """The size of the new channels is a number in the graph: it follows the cut of what they meet."""

    def middle(b: Builder, y: str) -> str:
        gate = b.op("Expand", b.op("Sigmoid", b.conv(y, 1, name="gate")), [2, 8, 6, 6])
        return b.op("Mul", y, gate)

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert result.sizes("Expand", 1) == [[2, 4, 6, 6]]


def test_expand_of_an_open_batch() -> None:
    """A class token, stretched to the batch and put before the others."""
    b = Builder()
    x = b.input("x", "N", 5, 3)
    tokens = b.op("MatMul", x, b.weight(3, 8, name="w1", fan=3))
    batch = b.op("Slice", b.op("Shape", x), [0], [1])
    shape = b.op("Concat", batch, [1, 8], axis=0)
    first = b.op("Expand", b.weight(1, 1, 8, name="token"), shape)
    y = b.op("Relu", b.op("Concat", first, tokens, axis=1))
    result = prove(b.model(b.op("MatMul", y, b.weight(8, 4, name="w2", fan=8))))
    assert result.choices("w1", 1) == result.choices("token", 2) == [8]


def test_tile_of_the_channels_keeps_the_copies_together() -> None:
    result = prove(sandwich(lambda b, y: b.op("Tile", y, [1, 2, 1, 1])))
    assert result.choices("w1") == result.choices("w2", 1) == [8]
    assert result.shape("w2") == (4, 8, 1, 1)


def test_tile_of_the_positions() -> None:
    assert prove(sandwich(lambda b, y: b.op("Tile", y, [1, 1, 2, 3]))).choices("w1") == [8]


def test_tile_makes_channels_out_of_one() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Mul", y, b.op("Tile", b.conv(y, 1, name="gate"), [1, 8, 1, 1]))

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert result.sizes("Tile", 1) == [[1, 4, 1, 1]]


def test_a_tile_that_follows_a_size_of_the_graph() -> None:
    def middle(b: Builder, y: str) -> str:
        channels = b.op("Slice", b.op("Shape", y), [1], [2])
        repeats = b.op("Concat", [1], channels, [1, 1], axis=0)
        return b.op("Mul", y, b.op("Tile", b.conv(y, 1), repeats))

    assert prove(sandwich(middle)).can_cut("w1")


def test_a_size_that_something_computes_with_is_locked() -> None:
    """Division by the number of channels: the network's function would change."""

    def middle(b: Builder, y: str) -> str:
        count = b.op("Cast", b.op("Gather", b.op("Shape", y), np.array(1)), to=1)
        return b.op("Div", y, b.op("Sqrt", count))

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")
    assert result.reason("w1").startswith("its size is computed with by")


def test_the_shape_of_a_cut_tensor_as_an_output() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    result = prove(b.model(close(b, b.op("Relu", y)), b.op("Shape", y)))
    assert not result.can_cut("w1")
