"""Whole blocks in the choice of what goes, beside units: what each saves, and what it does to the answers.

A block counts as a group of one unit. With it goes what its nodes cost, however wide they are by then, and the groups
inside it, which do no further damage. Its damage is measured as that of narrower groups is: on the same samples, from
the answers as they are by then, with the layers that read its exit repaired.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.blocks import Block, alive, around, blocks
from onnxprune.budget import Groups
from onnxprune.bypass import Bypass
from onnxprune.calibrate import calibrate
from onnxprune.cost import Cost, Counts
from onnxprune.divergence import Distance, off
from onnxprune.feeds import Feed, rows
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.problem import ONE, each
from onnxprune.recovery import Pair, recover
from onnxprune.rules.base import Dim
from onnxprune.samples import Turn
from onnxprune.without import cut_down, divergences, touched, without

Floats = NDArray[np.float64]

CLOSER = 3  # blocks of a model that are measured with a repair, which takes longest


@dataclass(frozen=True, eq=False)
class Deep(Cost):
    """A cost of units gone of every group and, behind them, of blocks that are gone (1) or not (0).

    Attributes:
        lost: [blocks, terms], the terms that go with a block.
    """

    lost: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def products(self, removed: Counts) -> Floats:
        """As those of the groups, and 0 for what went with a block."""
        count = len(removed) - len(self.lost)
        gone = self.lost.T.astype(np.intp) @ removed[count:]
        return np.where(gone > 0, 0.0, super().products(removed[:count]))


@dataclass(frozen=True, eq=False)
class Depth:
    """The blocks of a model that may go.

    Attributes:
        coupling: the analysis of the model.
        bypasses: it without each of them; no two of these have a part in common, unless one lies in the other.
        cost: with and without them.
        inside: [blocks, groups and blocks], those that go with each as a whole.
    """

    coupling: Coupling
    bypasses: Sequence[Bypass]
    cost: Deep
    inside: NDArray[np.bool_]

    @property
    def groups(self) -> Groups:
        """Each is a group of one."""
        one = np.ones(len(self.bypasses), dtype=np.intp)
        return Groups(one, one, one, np.zeros_like(one), inside=self.inside)

    def gone(self, count: Counts) -> list[Bypass]:
        """Those that go, for a number of units gone of every group and block; none that lies in another."""
        taken = np.flatnonzero(count[len(count) - len(self.bypasses) :])
        within = self.inside[np.ix_(taken, taken + self.inside.shape[1] - len(self.bypasses))].any(axis=0)
        return [self.bypasses[number] for number in taken[~within].tolist()]

    def told(self, gone: Sequence[Bypass]) -> dict[str, Any]:
        """For the record: how many there are, and those that went."""
        return {"before": len(self.bypasses), "gone": [{"entry": b.block.entry, "exit": b.block.exit} for b in gone]}

    def said(self, gone: Sequence[Bypass]) -> str:
        """How many went, in words."""
        if not self.bypasses:
            return "no block to leave out: no branch goes past layers, from channels to the same channels"
        return f"{len(gone)} of {len(self.bypasses)} blocks left out"

    def damages(
        self,
        now: Coupling,
        removed: NDArray[np.bool_],
        turn: Turn,
        distance: Distance,
        engine: Engine,
        method: str,
        seed: int,
        tell: Callable[[str], None],
        saved: Floats,
    ) -> Floats:
        """[blocks]: what each does to the answers when it goes next; infinite for those that are gone.

        All are measured as they are, and those that do least for what they save once more, repaired.

        Args:
            now: the model as it is by now.
            removed: [units of the original], those that it lacks.
            turn: layers are fitted, and damage is measured, as in `look`.
            distance: from the answers that it has.
            engine: where models run.
            method: the repair that damage is measured with.
            seed: of the places sampled.
            tell: told about progress.
            saved: [blocks], by each.
        """
        found = np.full(len(self.bypasses), np.inf)
        values = now.graph.producer.keys() | set(now.graph.inputs)
        every = cut_down(self.coupling, removed, self.bypasses, now.graph)
        there = [n for n, b in enumerate(every) if saved[n] > 0 and {b.block.entry, b.block.exit} <= values]
        found[there] = divergences(now.graph, [every[n] for n in there], turn.choose, distance, engine, tell)
        nearest = sorted(there, key=lambda n: float(found[n] / saved[n]))[:CLOSER] if method != "none" else []
        for number, which in enumerate(nearest):
            tell(f"block repaired {number + 1}/{len(nearest)}")
            found[which] = min(found[which], _repaired(now, every[which], turn, distance, engine, method, seed))
        return found


def depth_of(
    coupling: Coupling, cost: Cost, keep: str | Sequence[str], batches: Sequence[Feed], engine: Engine
) -> Depth:
    """The blocks that may go, and what they do on average: not the stages whose ends are made narrower one by one.

    Args:
        coupling: the analysis of the original, observed.
        cost: MACs or parameters.
        keep: regular expression or several; blocks with a matching node stay.
        batches: inputs, over which the mean of what a block adds is taken.
        engine: where the model runs.
    """
    graph = coupling.graph
    patterns = [re.compile(pattern) for pattern in each(keep) if not pattern.startswith(ONE)]
    found: list[Block] = []
    for block in blocks(coupling):
        names = [*(graph.nodes[index].label for index in block.nodes), graph.producer[block.exit].label, block.exit]
        if any(pattern.search(name) for pattern in patterns for name in names):
            continue
        if _tied(coupling, block) and all(_apart(block.weighted, other.weighted) for other in found):
            found.append(block)
    dims = {Dim(name, b.axis): Want.SUMS for b in found for name in (b.entry, b.exit)}
    seen = calibrate(graph, batches, dims, engine, sum(map(rows, batches)))
    means = [seen[Dim(b.exit, b.axis)].mean - seen[Dim(b.entry, b.axis)].mean for b in found]
    lost = np.array([_lost(cost, block) for block in found]).reshape(len(found), len(cost.factors))
    deep = Deep(**{name: getattr(cost, name) for name in Cost.__dataclass_fields__}, lost=lost)
    whole = deep.per_group()
    left = [shallower(cost, [block]).per_group() for block in found]
    groups = np.array([(whole > 0) & (rest == 0) for rest in left]).reshape(len(found), len(whole))
    nested = np.array([[a.weighted > b.weighted for b in found] for a in found]).reshape(len(found), len(found))
    bypasses = [Bypass(block, mean) for block, mean in zip(found, means, strict=True)]
    return Depth(coupling, bypasses, deep, np.concatenate([groups, nested], axis=1))


def shallower(cost: Cost, blocks: Sequence[Block]) -> Cost:
    """A cost without some blocks."""
    lost = [_lost(cost, block) for block in blocks]
    return replace(cost, factors=np.where(np.any(lost, axis=0), 0.0, cost.factors)) if lost else cost


def _repaired(
    now: Coupling, bypass: Bypass, turn: Turn, distance: Distance, engine: Engine, method: str, seed: int
) -> float:
    """How far the answers are off without a block, the layers that read its exit repaired."""
    made = without(now.graph, [bypass])
    pair = Pair(now, np.zeros(now.units, dtype=bool), made, touched(now, [bypass], deep=False))
    # As for narrower groups: by the channels' covariance, whatever the result is repaired with.
    patch, _ = recover(pair, *turn, "bias" if method == "bias" else "channel", engine, seed)
    return off(distance, made, turn.choose, engine, patch)


def _lost(cost: Cost, block: Block) -> list[bool]:
    """Terms that count what nobody needs without a block."""
    graph = cost.coupling.graph
    nodes = alive(graph, around([block])) - {graph.producer[block.exit].index}
    read = {n for i in nodes for n in (*graph.nodes[i].inputs, *graph.nodes[i].captures, *graph.nodes[i].outputs)}
    names = zip(cost.names, cost.nodes, strict=True)
    return [name not in read if node is None else node not in nodes for name, node in names]


def _tied(coupling: Coupling, block: Block) -> bool:
    """Whether entry and exit lose the same channels, so that the one can stand for the other however narrow it is."""
    entry, exit_ = (coupling.unit_of(Dim(name, block.axis)) for name in (block.entry, block.exit))
    return entry is exit_ if entry is None or exit_ is None else np.array_equal(entry, exit_)


def _apart(one: Collection[int], other: Collection[int]) -> bool:
    """Whether two blocks have nothing in common, or one is part of the other."""
    a, b = set(one), set(other)
    return a.isdisjoint(b) or a < b or b < a
