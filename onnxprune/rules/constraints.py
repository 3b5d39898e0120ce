"""What a rule can say: ties, locks, sizes, choices; contractions with weights; edits of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.number import Number

Index = NDArray[np.intp]


class Dim(NamedTuple):
    """One axis of one value: a row of atoms, one an index."""

    value: str
    axis: int


NOWHERE = Dim("", 0)  # the missing axis of a vector operand


@dataclass(frozen=True, eq=False)
class Tie:
    """Index `ia[k]` of `a` lives and dies with index `ib[k]` of `b`; None stands for all indices in order."""

    a: Dim
    b: Dim
    ia: Index | None = None
    ib: Index | None = None


@dataclass(frozen=True, eq=False)
class Lock:
    """`dim` (or those indices of it) cannot move. `option` names what would open it."""

    dim: Dim
    reason: str
    index: Index | None = None
    option: str | None = None


def free(dim: Dim) -> Tie:
    """What a rule says of an axis that nothing is tied to and that may be cut: without it the axis would be locked."""
    return Tie(dim, dim)


@dataclass(frozen=True, eq=False)
class Sized:
    """The size of `dim` is written in `number`: a constant to rewrite, or a size that has to follow."""

    dim: Dim
    number: Number


@dataclass(frozen=True, eq=False)
class Alternative:
    """One way to cut: its constraints, and the dims of which at least one must have a free index left."""

    name: str
    constraints: tuple[Tie | Lock, ...]
    cuts: tuple[Dim, ...]
    levels: int  # how many widths it leaves to choose from; the preferred alternative has the most


@dataclass(frozen=True, eq=False)
class Choice:
    """Exactly one of the alternatives holds. The one that leaves most of the `counted` dims free is preferred."""

    alternatives: tuple[Alternative, ...]
    dims: tuple[Dim, ...]
    counted: tuple[Dim, ...] = ()  # all of `dims` where empty


Constraint = Tie | Lock | Sized | Choice


@dataclass(frozen=True)
class Linear:
    """A contraction with weights: y = W x + b over channels.

    MACs are `macs` (everything that no cut changes) times the sizes of the dims in `cost`. `padded`: zeros are added
    around x, so that a constant x does not give a constant y.
    """

    x: Dim
    w_in: Dim
    w_out: Dim
    y: Dim
    cost: tuple[Dim, ...]
    macs: float
    bias: str | None = None
    bias_slot: int | None = None
    groups: int = 1
    padded: bool = False


@dataclass(frozen=True)
class SetAttr:
    """Give a node's attribute another value; None removes it."""

    name: str
    value: Any


@dataclass(frozen=True, eq=False)
class SetInput:
    """Give a node's constant input another value, for this node alone."""

    slot: int
    value: NDArray[Any]
    computed: NDArray[np.bool_] | None = None  # where the node goes on with what the graph computes


Edit = SetAttr | SetInput
