"""Matrices of a few bits: rows go, and whole blocks of columns."""

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.testing import Builder, prove

MS = "com.microsoft::"
ROWS, BLOCK = 6, 32


def builder() -> Builder:
    return Builder(**{"com.microsoft": 1})


def nbits(blocks: int = 4, flat: bool = False, zero: str = "", bits: int = 4, columns: int = 0) -> ModelProto:
    """MatMul `w1`, a packed matrix `w` of 6 rows in blocks of 32 columns, MatMul `w2`."""
    b, columns = builder(), columns or blocks * BLOCK
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, columns, name="w1", fan=3))
    w = b.const(b.rng.integers(0, 256, (ROWS, blocks, BLOCK * bits // 8)).astype(np.uint8), "w")
    shape = (ROWS * blocks,) if flat else (ROWS, blocks)
    scale = b.const(b.rng.uniform(0.01, 0.02, shape).astype(np.float32), "w.scale")
    each = -(-blocks * bits // 8)
    points = b.rng.integers(0, 256, (ROWS * each,) if flat else (ROWS, each)).astype(np.uint8)
    rest = [b.const(points, "w.zero")] if zero == "packed" else []
    if zero == "floats":
        rest = [b.const(b.rng.uniform(7, 9, shape).astype(np.float32), "w.zero")]
    bias = [*rest, *[None] * (2 - len(rest)), b.weight(ROWS, name="bias")]
    y = b.op(f"{MS}MatMulNBits", y, w, scale, *bias, K=columns, N=ROWS, bits=bits, block_size=BLOCK)
    return b.model(b.op("MatMul", b.declare(y, 2, 5, ROWS), b.weight(ROWS, 4, name="w2")))


@pytest.mark.parametrize(("bits", "zero"), [(4, ""), (4, "packed"), (4, "floats"), (8, ""), (8, "packed")])
def test_rows_and_blocks(bits: int, zero: str) -> None:
    """Two zero points of four bits share a byte, so two blocks go together."""
    result = prove(nbits(zero=zero, bits=bits))
    assert result.choices("w") == result.choices("bias") == result.choices("w2") == [ROWS]
    together = 2 if zero == "packed" and bits == 4 else 1
    assert result.choices("w1", 1) == result.choices("w.scale", 1) == [4 // together]
    assert result.shape("w") == (3, 2, BLOCK * bits // 8)
    assert {a.name: a.i for a in result.model.graph.node[1].attribute if a.name in "KN"} == {"K": 64, "N": 3}


def test_an_odd_number_of_blocks() -> None:
    result = prove(nbits(blocks=5, zero="packed"), rounds=4)
    assert result.choices("w1", 1) == [2]


def test_a_last_block_that_is_not_full() -> None:
    result = prove(nbits(blocks=4, columns=4 * BLOCK - 16), rounds=4)
    assert result.can_cut("w1", 1)


@pytest.mark.parametrize("zero", ["", "packed"])
def test_flat_scales(zero: str) -> None:
    result = prove(nbits(flat=True, zero=zero))
    assert result.choices("w") == result.choices("w2") == [ROWS]
    assert result.shape("w.scale") == (3 * 4,)
    assert result.reason("w1", 1) == "the weights are packed along the axis"


@pytest.mark.parametrize("block", [16, 64])
def test_bnb4(block: int) -> None:
    """Rows go where no block spans two of them."""
    b = builder()
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 32, name="w1", fan=3))
    w = b.const(b.rng.integers(0, 256, ROWS * 32 // 2).astype(np.uint8), "w")
    scale = b.near_one(ROWS * 32 // block, name="scale")
    y = b.op(f"{MS}MatMulBnb4", y, w, scale, K=32, N=ROWS, block_size=block, quant_type=1)
    result = prove(b.model(b.op("MatMul", b.op("Relu", b.declare(y, 2, 5, ROWS)), b.weight(ROWS, 4, name="w2"))))
    if block == 16:
        assert result.choices("w") == result.choices("scale") == result.choices("w2") == [ROWS]
    else:
        assert result.reason("w2", 0) == "a block of weights spans several rows"
    assert not result.can_cut("w1", 1)


def test_a_packed_table() -> None:
    b = builder()
    table = b.const(b.rng.integers(0, 256, (7, 32)).astype(np.uint8), "table")
    scale = b.const(b.rng.uniform(0.01, 0.02, (7, 2)).astype(np.float32), "scale")
    ids = b.input("ids", 2, 5, dtype=np.int64)
    y = b.op(f"{MS}GatherBlockQuantized", table, ids, scale, bits=4, block_size=32, quantize_axis=1)
    y = b.op("MatMul", b.declare(y, 2, 5, 64), b.weight(64, 8, name="w1"))
    result = prove(b.model(b.op("MatMul", b.op("Relu", y), b.weight(8, 4, name="w2"))))
    assert result.reason("w1") == "a table of packed rows is read by index"
    assert result.choices("w1", 1) == [8]
