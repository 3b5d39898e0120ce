"""Matrices of a few bits, packed into bytes: MatMulNBits, MatMulBnb4, MatMulFpQ4, GatherBlockQuantized.

A block of weights has one scale: its columns go together. A removed block is one whose scale is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    Unknown,
    fixup,
    linear,
    rule,
)

MS = "com.microsoft::"
TABLE = "a table of packed rows is read by index"


@rule(f"{MS}MatMulNBits")
def matmul_nbits(n: NodeView) -> Iterator[Constraint]:
    """A [..., K] x B [N, blocks, bytes] -> Y [..., N]: rows of B can go, and whole blocks of columns."""
    for x, y in zip(n.xs(0)[:-1], n.ys()[:-1], strict=True):
        yield Tie(x, y)
    yield Tie(n.x(1, 0), n.y(-1))
    yield Lock(n.x(1, 2), "a block is packed")
    for slot in (2, 3):
        if n.has(slot):
            yield _rows(n, slot)
    if n.has(5):
        yield Tie(n.x(5, 0), n.y(-1))
    yield from _blocks(n)


def _rows(n: NodeView, slot: int) -> Tie:
    """Scales and zero points: some for each row, side by side in a flat vector or along an axis of their own."""
    rows, size = n.attrs["N"], n.shape(slot)[0]
    if not isinstance(size, int) or size % rows:
        raise Unknown("its scales or zero points are not the same number in each row")
    index = np.arange(size)
    return Tie(n.x(slot, 0), n.y(-1), index, index // (size // rows))


def _blocks(n: NodeView) -> Iterator[Constraint]:
    """The contracted axis, block by block. Zero points are packed, too: the blocks that share a byte go together."""
    columns, size, bits = n.attrs["K"], n.attrs["block_size"], n.attrs.get("bits", 4)
    x, blocks = n.x(0, -1), n.x(1, 1)
    count = -(-columns // size)
    if n.has(4) or len(n.shape(2)) != 2 or not n.is_weight(2) or (n.has(3) and len(n.shape(3)) != 2):
        for dim in (x, blocks, *(n.x(s, 1) for s in (2, 3) if n.has(s) and len(n.shape(s)) == 2)):
            yield Lock(dim, "the weights are packed along the axis")
        return
    index = np.arange(columns)
    yield Tie(x, blocks, index, index // size)
    yield Tie(n.x(2, 1), blocks)
    if n.has(3):
        each = np.arange(count)
        shared = 1 if n.shape(3)[1] == count else 8 // bits
        yield Tie(blocks, n.x(3, 1), each, each // shared)


@fixup(f"{MS}MatMulNBits")
def nbits_sizes(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The rows and columns that remain."""
    for name, dim in (("N", n.y(-1)), ("K", n.x(0, -1))):
        if (left := kept(dim).size) != n.attrs[name]:
            yield SetAttr(name, left)


@linear(f"{MS}MatMulNBits")
def nbits_linear(n: NodeView) -> Linear:
    """MACs: rows x K x N. The scales stand for the weights, as far as size goes."""
    if len(n.shape(2)) != 2:
        raise Unknown("flat scales")
    return Linear(n.x(0, -1), n.x(2, 1), n.x(2, 0), n.y(-1), (n.x(0, -1), *n.ys()), 1.0)


@rule(f"{MS}MatMulBnb4")
def matmul_bnb4(n: NodeView) -> Iterator[Constraint]:
    """B is [N, K] in one flat row of bytes, with a scale for each run of `block_size`: rows go where those agree."""
    rows, columns, size = n.attrs["N"], n.attrs["K"], n.attrs["block_size"]
    yield from _outer(n)
    yield Lock(n.x(0, -1), "the weights are packed along the axis")
    if columns % size or columns % 2 or n.attrs.get("transB", 1) != 1:
        raise Unknown("a block of weights spans several rows")
    for slot in (1, 2):
        index = np.arange(int(np.prod([s for s in n.shape(slot) if isinstance(s, int)])))
        yield Tie(n.x(slot, 0), n.y(-1), index, index // (index.size // rows))


@fixup(f"{MS}MatMulBnb4")
def bnb4_rows(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The rows that remain."""
    if (left := kept(n.y(-1)).size) != n.attrs["N"]:
        yield SetAttr("N", left)


@rule(f"{MS}MatMulFpQ4")
def matmul_fpq4(n: NodeView) -> Iterator[Constraint]:
    """B is one blob in a layout of ONNX Runtime's own."""
    yield from _outer(n)
    for dim in (n.x(0, -1), n.y(-1), *n.xs(1), *n.xs(2)):
        yield Lock(dim, "the weights are packed into one piece")


def _outer(n: NodeView) -> Iterator[Constraint]:
    for x, y in zip(n.xs(0)[:-1], n.ys()[:-1], strict=True):
        yield Tie(x, y)


@rule(f"{MS}GatherBlockQuantized")
def gather_blocks(n: NodeView) -> Iterator[Constraint]:
    """Rows of an embedding; blocks along them share a scale. The axes of the indices pass."""
    axis = n.attrs.get("gather_axis", 0) % len(n.shape(0))
    rank = len(n.shape(1))
    indices: list[Dim] = n.xs(1)
    for place, dim in enumerate(indices):
        yield Tie(dim, n.y(axis + place))
    for slot in (0, 2, 3):
        for dim in n.xs(slot) if n.has(slot) else ():
            yield Lock(dim, TABLE)
    for place, dim in enumerate(n.ys()):
        if not axis <= place < axis + rank:
            yield Lock(dim, TABLE)
