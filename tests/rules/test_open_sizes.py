"""Attention in graphs whose batch and sequence are open: how heads are cut however the shapes are computed."""

from typing import Any

import numpy as np
import pytest

from onnxprune import couple, load
from onnxprune.testing import Builder, oracle, prove

HEADS, WIDTH = 4, 8


class Model:
    """Q, K and V of one layer of attention, with the open sizes B and S at hand."""

    def __init__(self, opset: int = 17) -> None:
        self.b = Builder(opset)
        self.x = self.b.input("x", "B", "S", 6)
        self.batch, self.length = (self.b.op("Gather", self.b.op("Shape", self.x), [axis]) for axis in (0, 1))

    def project(self, name: str, x: str | None = None) -> str:
        return self.b.op("MatMul", x or self.x, self.b.weight(6, HEADS * WIDTH, name=name, fan=6))

    def target(self, *parts: object) -> str:
        written: list[Any] = [p if isinstance(p, str) else [p] for p in parts]
        return self.b.op("Concat", *written, axis=0)

    def split(self, y: str, target: str) -> str:
        return self.b.op("Transpose", self.b.op("Reshape", y, target), perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, rank: int) -> str:
        """softmax(Q K^T) V over the last two axes."""
        swap = [*range(rank - 2), rank - 1, rank - 2]
        scores = self.b.op("Softmax", self.b.op("MatMul", q, self.b.op("Transpose", k, perm=swap)), axis=-1)
        return self.b.op("MatMul", scores, v)

    def join(self, y: str, target: str, name: str = "o") -> str:
        y = self.b.op("Reshape", self.b.op("Transpose", y, perm=[0, 2, 1, 3]), target)
        return self.b.op("MatMul", y, self.b.weight(HEADS * WIDTH, 6, name=name, fan=HEADS * WIDTH))


@pytest.mark.parametrize("written", ["heads", "width", "both"])
def test_one_target_for_all_projections(written: str) -> None:
    m = Model()
    parts = {"heads": (HEADS, -1), "width": (-1, WIDTH), "both": (HEADS, WIDTH)}[written]
    target = m.target(m.batch, m.length, *parts)
    q, k, v = (m.split(m.project(name), target) for name in "qkv")
    y = m.join(m.attend(q, k, v, 4), m.target(m.batch, m.length, HEADS * WIDTH))
    result = prove(m.b.model(y))
    assert result.choices("q", 1) == result.choices("k", 1) == result.choices("o") == [HEADS]


def test_one_target_for_two_layers() -> None:
    """The layers may lose different heads, or another number of them."""
    m = Model()
    apart, together = m.target(m.batch, m.length, HEADS, WIDTH), m.target(m.batch, m.length, HEADS * WIDTH)
    y = m.x
    for layer in "ab":
        q, k, v = (m.split(m.project(f"{layer}{name}", y), apart) for name in "qkv")
        y = m.join(m.attend(q, k, v, 4), together, f"{layer}o")
    result = prove(m.b.model(y))
    assert result.choices("aq", 1) == result.choices("bq", 1) == [HEADS]
    assert len(result.coupling.groups) == 3  # and the channels between them


@pytest.mark.parametrize("count", ["batch", "rest"])
def test_batch_and_heads_in_one_axis(count: str) -> None:
    """[B, S, H*D] -> [B, H, S, D] -> [B*H, S, D], as torch.bmm wants it, and back."""
    m = Model()
    apart = m.target(m.batch, m.length, HEADS, WIDTH)
    both = m.b.op("Mul", m.batch, [HEADS]) if count == "batch" else [-1]
    flat = m.b.op("Concat", both, m.length, [WIDTH], axis=0)
    q, k, v = (m.b.op("Reshape", m.split(m.project(name), apart), flat) for name in "qkv")
    y = m.b.op("Reshape", m.attend(q, k, v, 3), m.target(m.batch, HEADS, m.length, WIDTH))
    y = m.join(y, m.target(m.batch, m.length, -1))
    result = prove(m.b.model(y))
    assert result.choices("q", 1) == result.choices("o") == [HEADS]


def test_a_factor_that_is_written_once_for_many_axes() -> None:
    """Nothing but the 4 of B * 4 can be rewritten: the sequence is what -1 stands for."""
    m = Model()
    apart, flat = m.target(m.batch, m.length, HEADS, WIDTH), m.target(m.b.op("Mul", m.batch, [HEADS]), -1, WIDTH)
    q, k, v = (m.b.op("Reshape", m.split(m.project(name), apart), flat) for name in "qkv")
    y = m.b.op("Reshape", m.attend(q, k, v, 3), m.target(m.batch, HEADS, -1, WIDTH))
    result = prove(m.b.model(m.join(y, m.target(m.batch, m.length, -1))))
    assert result.choices("q", 1) == result.choices("o") == [HEADS]


def test_the_batch_divided_out_of_batch_and_heads() -> None:
    """[B*H, S, D] -> [Shape[0] / H, H, S, D]: the quotient would move with the heads."""
    m = Model()
    apart = m.target(m.batch, m.length, HEADS, WIDTH)
    flat = m.target(-1, m.length, WIDTH)
    q, k, v = (m.b.op("Reshape", m.split(m.project(name), apart), flat) for name in "qkv")
    y = m.attend(q, k, v, 3)
    batch = m.b.op("Div", m.b.op("Gather", m.b.op("Shape", y), [0]), [HEADS])
    y = m.b.op("Reshape", y, m.target(batch, HEADS, m.length, WIDTH))
    result = prove(m.b.model(m.join(y, m.target(m.batch, m.length, HEADS * WIDTH))))
    assert result.choices("q", 1) == result.choices("o") == [HEADS]


@pytest.mark.parametrize("torch", [False, True])
def test_key_heads_that_are_repeated(torch: bool) -> None:
    """Grouped queries: [B, 2, S, D] -> [B, 2, 2, S, D] -> [B, 4, S, D]; torch writes -1 for what stays."""
    m = Model()
    q = m.split(m.project("q"), m.target(m.batch, m.length, HEADS, WIDTH))

    def few(name: str) -> str:
        y = m.b.op("MatMul", m.x, m.b.weight(6, 2 * WIDTH, name=name, fan=6))
        y = m.b.op("Unsqueeze", m.split(y, m.target(m.batch, m.length, 2, WIDTH)), [2])
        to = m.target(m.batch, 2, 2, m.length, WIDTH)
        if torch:
            to = m.b.op("Where", m.b.op("Equal", to, [-1]), [1, 1, 1, 1, 1], to)
        return m.b.op("Reshape", m.b.op("Expand", y, to), m.target(m.batch, HEADS, m.length, WIDTH))

    y = m.attend(q, few("k"), few("v"), 4)
    result = prove(m.b.model(m.join(y, m.target(m.batch, m.length, HEADS * WIDTH))))
    assert result.choices("q", 1) == result.choices("k", 1) == [2]


def test_zeros_that_are_taken_for_zeros() -> None:
    """With allowzero a 0 does not copy: the attribute goes when the target is rewritten."""
    m = Model()
    apart = m.target(m.batch, m.length, HEADS, WIDTH)
    q, k, v = (
        m.b.op("Transpose", m.b.op("Reshape", m.project(name), apart, allowzero=1), perm=[0, 2, 1, 3]) for name in "qkv"
    )
    result = prove(m.b.model(m.join(m.attend(q, k, v, 4), m.target(m.batch, m.length, -1))))
    assert result.choices("q", 1) == [HEADS]


def test_a_state_of_zeros() -> None:
    """The first state of a recurrence written out: zeros of a computed shape, to which channels are added."""
    m = Model()
    zeros = m.b.op("ConstantOfShape", m.target(m.batch, m.length, HEADS * WIDTH))
    y = m.b.op("Add", zeros, m.project("w1"))
    result = prove(m.b.model(m.b.op("MatMul", y, m.b.weight(HEADS * WIDTH, 6, name="w2", fan=32))))
    assert result.choices("w1", 1) == result.choices("w2") == [HEADS * WIDTH]


def test_a_table_of_heads_repeated_for_the_batch() -> None:
    m = Model()
    apart, flat = m.target(m.batch, m.length, HEADS, WIDTH), m.target(-1, m.length, WIDTH)
    q, k, v = (m.b.op("Reshape", m.split(m.project(name), apart), flat) for name in "qkv")
    table = m.b.op(
        "Tile",
        m.b.const(np.random.default_rng(1).random((HEADS, 1, WIDTH), np.float32), "table"),
        m.target(m.batch, 1, 1),
    )
    y = m.b.op("Reshape", m.attend(m.b.op("Mul", q, table), k, v, 3), m.target(m.batch, HEADS, m.length, WIDTH))
    result = prove(m.b.model(m.join(y, m.target(m.batch, m.length, -1))))
    assert result.choices("q", 1) == result.choices("table") == [HEADS]


def test_what_is_used_elsewhere_too_is_not_rewritten() -> None:
    """The written width is also a bound of a Range: the target gets its own."""
    m = Model()
    target = m.target(m.batch, m.length, HEADS * WIDTH)
    y = m.b.op("Reshape", m.b.op("Relu", m.project("w1")), target)
    ends = m.b.op("Range", np.array(0), m.b.op("Squeeze", m.b.op("Gather", target, [2]), [0]), np.array(8))
    y = m.b.op("MatMul", y, m.b.weight(HEADS * WIDTH, 6, name="w2", fan=32))
    y = m.b.op("Add", y, m.b.op("Unsqueeze", m.b.op("ReduceSum", m.b.op("Cast", ends, to=1)), [0]))
    result = prove(m.b.model(y))
    assert result.choices("w1", 1) == [HEADS * WIDTH]


def test_a_zero_that_copies_another_axis_by_accident() -> None:
    """[B, 8, 2, 4] -> [B, 4, 2, 2, 4], where the 2 of the channels is written as a copy of the height."""
    b = Builder()
    y = b.conv(b.input("x", "B", 3, 2, 4), 8, name="w1")
    batch, width = (b.op("Gather", b.op("Shape", y), [axis]) for axis in (0, 3))
    z = b.op("Reshape", y, b.op("Concat", batch, [4], [0], [2], width, axis=0))
    z = b.op("Reshape", b.op("Transpose", z, perm=[0, 2, 1, 3, 4]), [-1, 8, 2, 4])
    result = prove(b.model(b.conv(b.op("Relu", z), 4, 1, name="w2")))
    assert result.can_cut("w1")


@pytest.mark.parametrize("picked", ["where", "gather", "slice", "max"])
def test_a_number_that_is_picked_by_a_size(picked: str) -> None:
    """The bound of a slice depends on the width, which is cut; it may not."""
    b = Builder()
    x = b.input("x", "B", 40, 6)
    y = b.op("Relu", b.op("MatMul", x, b.weight(6, 32, name="w1", fan=6)))
    width = b.op("Gather", b.op("Shape", y), [2])
    if picked == "where":
        end = b.op("Where", b.op("Equal", width, [32]), [3], [2])
    elif picked == "gather":
        end = b.op("Gather", np.array([2, 3]), b.op("Div", width, [17]))
    elif picked == "slice":
        start = b.op("Div", width, [17])
        end = b.op("Slice", np.array([2, 3]), start, b.op("Add", start, [1]))
    else:
        end = b.op("Max", [4], [2], width)
    y = b.op("ReduceSum", b.op("Slice", y, [0], end, [1]), [1])
    prove(b.model(b.op("MatMul", y, b.weight(32, 4, name="w2", fan=32))))


def test_a_row_of_a_table_of_sizes() -> None:
    m = Model()
    row = m.b.op("Mul", m.b.op("Gather", np.array([[HEADS, WIDTH]]), np.array(0)), [1, 1])
    y = m.b.op("Relu", m.b.op("Reshape", m.project("w1"), m.target(m.batch, m.length, row)))
    prove(m.b.model(m.b.op("MatMul", y, m.b.weight(WIDTH, 6, name="w2"))))


@pytest.mark.parametrize("negative", ["equal", "divided"])
def test_what_may_be_negative(negative: str) -> None:
    """S - 13 is -1 for one S; -S / 2 is rounded towards zero, but Floor goes down."""
    m = Model()
    if negative == "equal":
        same = m.b.op("Equal", m.b.op("Sub", m.length, [13]), [-1])
    else:
        minus = m.b.op("Neg", m.length)
        down = m.b.op("Floor", m.b.op("Div", m.b.op("Cast", minus, to=1), np.array([2], np.float32)))
        same = m.b.op("Equal", m.b.op("Cast", down, to=7), m.b.op("Div", minus, [2]))
    target = m.target(m.batch, m.length, m.b.op("Where", same, [4], [8]), -1)
    y = m.b.op("ReduceSum", m.b.op("Relu", m.b.op("Reshape", m.project("w1"), target)), [2])
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, s, 6)).astype(np.float32)} for s in (4, 5, 12)]
    prove(m.b.model(y), feeds=feeds)


def test_what_is_left_of_a_length() -> None:
    """Padding to 64: 64 - S is a size like any other."""
    m = Model()
    left = m.b.op("Sub", [64], m.length)
    y = m.b.op("Relu", m.project("w1"))
    y = m.b.op("Expand", m.b.op("ReduceMax", y, axes=[1]), m.target(m.batch, left, HEADS * WIDTH))
    y = m.b.op("Reshape", m.b.op("Relu", m.b.op("Reshape", y, [-1, WIDTH])), m.target(m.batch, left, HEADS * WIDTH))
    result = prove(m.b.model(m.b.op("MatMul", y, m.b.weight(HEADS * WIDTH, 6, name="w2", fan=32))))
    assert result.choices("w1", 1) == [HEADS]


@pytest.mark.parametrize("factors", ["two", "computed", "moving"])
def test_channels_and_batch_in_one_axis(factors: str) -> None:
    """[B, C, S] -> [C*B, S], where -1 is taken: what the batch is multiplied with is rewritten, if that is exact."""
    m = Model()
    y = m.b.op("Transpose", m.b.op("Relu", m.project("w1")), perm=[0, 2, 1])
    if factors == "two":
        count = m.b.op("Mul", m.b.op("Mul", m.batch, [8]), [4])
    elif factors == "computed":
        both = m.b.op("Concat", m.b.op("Add", [16], [16]), m.batch, axis=0)
        count = m.b.op("Mul", m.batch, m.b.op("Gather", both, [0]))
    else:
        flat = m.b.op("Reshape", y, m.b.op("Concat", [-1], m.length, axis=0))
        count = m.b.op("Mul", m.b.op("Div", m.b.op("Gather", m.b.op("Shape", flat), [0]), [32]), [32])
    y = m.b.op("Relu", m.b.op("Reshape", y, m.b.op("Concat", count, [-1], axis=0)))
    y = m.b.op("Transpose", m.b.op("Reshape", y, m.target(m.batch, 32, -1)), perm=[0, 2, 1])
    y = m.b.op("MatMul", y, m.b.weight(32, 6, name="w2", fan=32))
    result = prove(m.b.model(m.b.op("Add", y, m.b.op("MatMul", m.project("w3"), m.b.weight(32, 6, name="w4", fan=32)))))
    assert result.can_cut("w1", 1) == (factors == "computed")


def test_bounds_of_32_bits() -> None:
    b = Builder()
    y = b.op("Relu", b.op("MatMul", b.input("x", "B", 40, 6), b.weight(6, 32, name="w1", fan=6)))
    width = b.op("Cast", b.op("Gather", b.op("Shape", y), [2]), to=6)
    zero, eight, last = (np.array([v], np.int32) for v in (0, 8, 2))
    y = b.op("Slice", y, zero, b.op("Sub", width, eight), last)
    y = b.op("Slice", y, zero, width, np.array([1], np.int32))
    y = b.op("ReduceSum", y, [1])
    assert prove(b.model(b.op("MatMul", y, b.weight(24, 4, name="w2", fan=24)))).can_cut("w1", 1)


@pytest.mark.parametrize("names", [("3", "-1"), ("True", "None"), ("0*N", "N//N"), ("size(x)", "?"), ("-N", "-4*N")])
def test_names_that_are_no_names(names: tuple[str, str]) -> None:
    """What a model calls an open size is open, whatever it is called."""
    b = Builder()
    x = b.input("x", *names, 6)
    batch, length = (b.op("Gather", b.op("Shape", x), [axis]) for axis in (0, 1))
    y = b.op(
        "Reshape", b.op("MatMul", x, b.weight(6, 32, name="w1", fan=6)), b.op("Concat", batch, length, [4, 8], axis=0)
    )
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.op("Concat", [-1], length, [8], axis=0))
    y = b.op("Reshape", b.op("Softmax", y, axis=1), b.op("Concat", batch, [4], length, [8], axis=0))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.op("Concat", batch, length, [32], axis=0))
    result = prove(b.model(b.op("MatMul", y, b.weight(32, 4, name="w2", fan=32))))
    assert result.choices("w1", 1) == [4]


@pytest.mark.parametrize("what", ["empty", "no axis", "ranks", "no type"])
def test_nodes_that_are_not_as_they_should_be(what: str) -> None:
    """They are read as far as they can be: no error."""
    m = Model()
    y = m.b.op("Relu", m.project("w1"))
    if what == "empty":
        m.b.op("Mul", np.zeros(0, np.int64), [2])
    elif what == "no axis":
        m.b.op("Concat", y, y)
    elif what == "ranks":
        m.b.op("Concat", y, m.b.op("ReduceSum", y, [1], keepdims=0), axis=2)
    else:
        m.b.op("Cast", m.batch)
    couple(load(m.b.model(m.b.op("MatMul", y, m.b.weight(32, 4, name="w2", fan=32)))))


def test_a_slice_to_an_open_end_is_clamped() -> None:
    """[S, 32] sliced to M keeps min(S, M): it is no axis of size M."""
    b = Builder()
    x, other = b.input("x", "S", 6), b.input("other", "M", 1)
    y = b.op("Relu", b.op("MatMul", x, b.weight(6, 32, name="w1")))
    end = b.op("Shape", other, end=1) if b.imports[0].version > 14 else b.op("Gather", b.op("Shape", other), [0])
    y = b.op("Reshape", b.op("Slice", y, [0], end, [0]), b.op("Concat", end, [-1], axis=0))
    model = b.model(b.op("ReduceSum", b.op("Mul", y, other), keepdims=1))
    feeds = [{"x": np.ones((s, 6), np.float32), "other": np.ones((m, 1), np.float32)} for s, m in ((4, 2), (2, 4))]
    oracle(model, feeds=feeds)


def test_positions_are_as_many_as_the_sequence() -> None:
    """A table that is sliced to the sequence joins it: the heads behind are cut all the same."""
    m = Model()
    table = m.b.op("Slice", m.b.weight(16, 6, name="table"), [0], m.length, [0])
    m.x = m.b.op("Add", m.x, table)
    apart = m.target(m.batch, m.length, HEADS, WIDTH)
    q, k, v = (m.split(m.project(name), apart) for name in "qkv")
    result = prove(m.b.model(m.join(m.attend(q, k, v, 4), m.target(m.batch, m.length, -1))))
    assert result.choices("q", 1) == [HEADS]


def test_macs_count_an_open_batch_once() -> None:
    """Also where the batch is an axis with the heads: as many as with a batch of one."""
    from onnxprune import load
    from onnxprune.cost import macs
    from onnxprune.coupling import couple

    def model(apart: bool) -> Any:
        m = Model()
        target = m.target(m.batch, m.length, HEADS, WIDTH)
        q, k, v = (m.split(m.project(name), target) for name in "qkv")
        if apart:
            y = m.attend(q, k, v, 4)
        else:
            flat = m.target(-1, m.length, WIDTH)
            q, k, v = (m.b.op("Reshape", t, flat) for t in (q, k, v))
            y = m.b.op("Reshape", m.attend(q, k, v, 3), m.target(m.batch, HEADS, m.length, WIDTH))
        return m.b.model(m.join(y, m.target(m.batch, m.length, -1)))

    costs = [macs(couple(load(model(apart)))) for apart in (True, False)]
    half = [cost(np.array([2])) for cost in costs]
    assert costs[0].before == costs[1].before
    assert half[0] == half[1] < costs[0].before
