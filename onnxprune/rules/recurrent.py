"""LSTM, GRU and RNN, plain and quantised: a hidden unit owns one row in every gate, one column of the recurrence and
one output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

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
    keeps_zero,
    linear,
    rule,
    size_of,
)

COMPUTED = "the weights are computed from data: nothing proves that a removed index adds zero"
QUANTISED = "com.microsoft::DynamicQuantizeLSTM"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

# Activations that leave zero alone, and which of a direction's functions make the state out of nothing.
FIXED = frozenset({"tanh", "relu", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"})
MAKERS = {"LSTM": (3, (1, 2)), "GRU": (2, (1,)), "RNN": (1, (0,)), "DynamicQuantizeLSTM": (3, (1, 2))}


def _stays_at_zero(n: NodeView) -> bool:
    """With all its weights zero a hidden unit stays at f(0), or at its initial state, which is cut with it."""
    count, makers = MAKERS[n.node.op]
    functions = n.attrs.get("activations", [])
    return all(f.lower() in FIXED for i, f in enumerate(functions) if i % count in makers)


keeps_zero("all", *GATES, QUANTISED, slots=(1, 2, 3, 5, 6), when=_stays_at_zero)


@rule(*GATES)
def recurrent(n: NodeView) -> Iterator[Constraint]:
    """X [S, B, I], W [D, gates*H, I], R [D, gates*H, H], B [D, 2*gates*H] -> Y [S, D, B, H], Y_h and Y_c [D, B, H].

    Both directions are as wide as each other, so the same unit goes in both. With `layout` the batch comes first.
    """
    first = bool(n.attrs.get("layout", 0))
    size = size_of(n.shape(2)[2], "the hidden state")
    yield Lock(n.x(0, 1 if first else 0), "the recurrence runs over the axis")
    yield from _inputs(n, n.x(1, 2), n.x(2, 2))
    rows = [(n.x(1, 1), GATES[n.node.op]), (n.x(2, 1), GATES[n.node.op])]
    if n.has(3):
        rows.append((n.x(3, 1), 2 * GATES[n.node.op]))
    if n.node.op == "LSTM" and n.has(7):
        rows.append((n.x(7, 1), 3))
    yield from _states(n, n.x(2, 2), size, rows, batch=0 if first else 1)


def _inputs(n: NodeView, w_in: Dim, hidden: Dim) -> Iterator[Constraint]:
    yield Tie(n.x(0, 2), w_in)
    if not (n.zero(n.x(0, 2)) or n.zero(w_in)):
        yield Lock(n.x(0, 2), COMPUTED)
    if not n.zero(hidden):
        yield Lock(hidden, COMPUTED)


def _states(n: NodeView, hidden: Dim, size: int, rows: Sequence[tuple[Dim, int]], batch: int) -> Iterator[Constraint]:
    """Gates side by side along `rows`, the states and the outputs; `batch` is that axis of X and of the states."""
    states = [n.x(slot, 2) for slot in (5, 6) if n.has(slot)]
    index = {count: np.arange(count * size) for _, count in rows}
    for dim in (hidden, *(n.y(-1, slot) for slot in n.outputs())):
        for row, count in rows:
            yield Tie(row, dim, index[count], index[count] % size)
        for state in states:
            yield Tie(dim, state)
        if dim != hidden:
            yield Tie(dim, hidden)
    for slot in n.outputs():
        yield Tie(n.x(0, batch), n.y(-2 if batch else 0, slot))
    if n.has(4):
        yield Tie(n.x(4, 0), n.x(0, batch))
    for slot in (5, 6):
        if n.has(slot):
            yield Tie(n.x(slot, batch), n.x(0, batch))
    for slot in (1, 2, 3, 7):
        if n.has(slot):
            yield Lock(n.x(slot, 0), "one index for each direction")


@rule(QUANTISED)
def quantised_lstm(n: NodeView) -> Iterator[Constraint]:
    """W [D, I, 4*H] and R [D, H, 4*H] stand on their heads; scales and zero points [D] or [D, 4*H].

    Inputs and states are quantised anew in every step, by the range of the whole tensor: it spans zero, and misses
    nothing that is zero.
    """
    size = size_of(n.shape(2)[1], "the hidden state")
    yield Lock(n.x(0, 0), "the recurrence runs over the axis")
    yield Tie(n.x(0, 2), n.x(1, 1))
    if not n.zero(n.x(0, 2)):
        yield Lock(n.x(0, 2), f"{n.node.op} takes the range of the whole tensor")
    if not (n.is_weight(1) and n.is_weight(2)):
        raise Unknown(COMPUTED)
    if any((points := n.const(slot)) is not None and points.any() for slot in (9, 11)):
        raise Unknown("weights whose zero points are not zero")
    if not (_stays_at_zero(n) and all(n.zero(n.x(slot, 2)) for slot in (5, 6) if n.has(slot))):
        yield Lock(n.x(2, 1), f"{n.node.op} takes the range of the whole state, and removed units are not zero in it")
    rows = [(n.x(1, 2), 4), (n.x(2, 2), 4)]
    rows += [(n.x(slot, 1), count) for slot, count in ((3, 8), (7, 3)) if n.has(slot)]
    rows += [(n.x(slot, 1), 4) for slot in range(8, len(n.node.inputs)) if n.has(slot) and len(n.shape(slot)) == 2]
    yield from _states(n, n.x(2, 1), size, rows, batch=1)


@fixup(*GATES, QUANTISED)
def hidden_size(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of hidden units that remain."""
    axis = 1 if n.key == QUANTISED else 2
    remaining = kept(n.x(2, axis)).size
    if remaining != n.shape(2)[axis]:
        yield SetAttr("hidden_size", remaining)


@linear(*GATES)
def recurrent_linear(n: NodeView) -> tuple[Linear, ...]:
    """MACs: steps x batch x directions x gate rows x (inputs + hidden units)."""
    steps = float(prod(s for s in (*n.shape(0)[:2], n.shape(1)[0]) if isinstance(s, int)))
    hidden = n.x(2, 2)
    inputs = Linear(n.x(0, 2), n.x(1, 2), n.x(1, 1), hidden, (n.x(1, 1), n.x(1, 2)), steps)
    states = Linear(hidden, hidden, n.x(2, 1), hidden, (n.x(2, 1), hidden), steps)
    return inputs, states
