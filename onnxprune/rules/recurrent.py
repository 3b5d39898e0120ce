"""LSTM, GRU and RNN: a hidden unit owns one row in every gate, one column of the recurrence and one output."""

from __future__ import annotations

from collections.abc import Iterator
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
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

# Activations that leave zero alone, and which of a direction's functions make the state out of nothing.
FIXED = frozenset({"tanh", "relu", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"})
MAKERS = {"LSTM": (3, (1, 2)), "GRU": (2, (1,)), "RNN": (1, (0,))}


def _stays_at_zero(n: NodeView) -> bool:
    """With all its weights zero a hidden unit stays at f(0), or at its initial state, which is cut with it."""
    count, makers = MAKERS[n.node.op]
    functions = n.attrs.get("activations", [])
    return all(f.lower() in FIXED for i, f in enumerate(functions) if i % count in makers)


keeps_zero("all", *GATES, slots=(1, 2, 3, 5, 6), when=_stays_at_zero)


@rule(*GATES)
def recurrent(n: NodeView) -> Iterator[Constraint]:
    """X [S, B, I], W [D, gates*H, I], R [D, gates*H, H], B [D, 2*gates*H] -> Y [S, D, B, H], Y_h and Y_c [D, B, H].

    Both directions are as wide as each other, so the same unit goes in both.
    """
    if n.attrs.get("layout", 0):
        raise Unknown("the batch-first layout")
    hidden, gates = n.x(2, 2), GATES[n.node.op]
    size = size_of(n.shape(2)[2], "the hidden state")
    yield Lock(n.x(0, 0), "the recurrence runs over the axis")
    yield Tie(n.x(0, 2), n.x(1, 2))
    if not (n.zero(n.x(0, 2)) or n.zero(n.x(1, 2))):
        yield Lock(n.x(0, 2), COMPUTED)
    if not n.zero(hidden):
        yield Lock(hidden, COMPUTED)
    for dim, rows in _rows(n, gates):
        index = np.arange(rows * size)
        yield Tie(dim, hidden, index, index % size)
    for slot in (5, 6):  # initial states [D, B, H]
        if n.has(slot):
            yield Tie(n.x(slot, 2), hidden)
            yield Tie(n.x(slot, 1), n.x(0, 1))
    for slot in n.outputs():
        yield Tie(n.y(-1, slot), hidden)
        for dim, rows in _rows(n, gates):
            index = np.arange(rows * size)
            yield Tie(dim, n.y(-1, slot), index, index % size)
        for state in (5, 6):
            if n.has(state):
                yield Tie(n.y(-1, slot), n.x(state, 2))
        yield Tie(n.y(-2, slot), n.x(0, 1))


def _rows(n: NodeView, gates: int) -> Iterator[tuple[Dim, int]]:
    yield n.x(1, 1), gates
    yield n.x(2, 1), gates
    if n.has(3):
        yield n.x(3, 1), 2 * gates
    if n.node.op == "LSTM" and n.has(7):
        yield n.x(7, 1), 3


@fixup(*GATES)
def hidden_size(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of hidden units that remain."""
    remaining = kept(n.x(2, 2)).size
    if remaining != n.shape(2)[2]:
        yield SetAttr("hidden_size", remaining)


@linear(*GATES)
def recurrent_linear(n: NodeView) -> tuple[Linear, ...]:
    """MACs: steps x batch x directions x gate rows x (inputs + hidden units)."""
    steps = float(prod(s for s in (*n.shape(0)[:2], n.shape(1)[0]) if isinstance(s, int)))
    hidden = n.x(2, 2)
    inputs = Linear(n.x(0, 2), n.x(1, 2), n.x(1, 1), hidden, (n.x(1, 1), n.x(1, 2)), steps)
    states = Linear(hidden, hidden, n.x(2, 1), hidden, (n.x(2, 1), hidden), steps)
    return inputs, states
