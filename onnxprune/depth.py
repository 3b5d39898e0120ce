"""Which blocks of a model go: one after the other, the next always chosen for the model as it is without the others.

How much a block matters is measured

- by divergence: how far the answers are from the original's without it. What comes before it runs once for all blocks;
- by influence: 1 - cosine of its entry and its exit (Men et al. 2024, ShortGPT);
- by angle: the angle between the two, over half a turn (Gromov et al. 2024, The Unreasonable Ineffectiveness of the
  Deeper Layers);
- by weights: the size of what its last layer makes of inputs of size 1. Needs no data, and knows nothing of runs.

What goes first is what matters least for what it saves: a gate that costs next to nothing stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.blocks import SUMS, Block
from onnxprune.bypass import Bypass, bypassed
from onnxprune.calibrate import calibrate
from onnxprune.divergence import distance_of, off
from onnxprune.errors import TargetError
from onnxprune.expected.analysis import expectations
from onnxprune.expected.laws import Laws
from onnxprune.feeds import Array, Feed, rows
from onnxprune.folds import contraction, foldable
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING
from onnxprune.rules.base import Dim
from onnxprune.samples import Samples
from onnxprune.savings import Savings
from onnxprune.without import divergences

Floats = NDArray[np.float64]
MEASURES = ("divergence", "influence", "angular", "weights")


@dataclass(frozen=True, eq=False)
class Step:
    """A look at a model: what was there to go, and what went.

    Attributes:
        bypasses: without each of the blocks that were there.
        scores: how much each matters.
        chosen: the number of that which went.
    """

    bypasses: Sequence[Bypass]
    scores: Floats
    chosen: int

    @property
    def bypass(self) -> Bypass:
        """What went."""
        return self.bypasses[self.chosen]


@dataclass(frozen=True, eq=False)
class Goal:
    """What is to be reached.

    Attributes:
        savings: the cost that counts.
        share: of it that may remain.
        worth: what blocks are weighed by, where that is not the same.
        whole: blocks count as a whole: a run that has more than are to go does not go.
        measured: the share that remains by the clock, where the cost is a prediction.
    """

    savings: Savings
    share: float
    worth: Savings | None = None
    whole: bool = False
    measured: Callable[[Sequence[Bypass]], float] | None = None


@dataclass(eq=False)
class Search:
    """Finds the blocks that go.

    Attributes:
        coupling: the analysis of the original.
        measure: one of `MEASURES`.
        engine: where models run.
        samples: the data; None: what is expected by the weights stands for them, where it is known.
        kind: how answers are compared.
        tell: told about progress.
    """

    coupling: Coupling
    measure: str
    engine: Engine
    samples: Samples | None = None
    kind: str = "auto"
    tell: Callable[[str], None] = lambda text: None
    steps: list[Step] = field(default_factory=list)

    @property
    def bypasses(self) -> list[Bypass]:
        """Of what went so far."""
        return [step.bypass for step in self.steps]

    @property
    def gone(self) -> list[Block]:
        """What went so far."""
        return [step.bypass.block for step in self.steps]

    def run(self, blocks: Sequence[Block], goal: Goal) -> float:
        """Let blocks go until so much is saved.

        Args:
            blocks: what may go.
            goal: what is to be reached.

        Returns:
            The share that remains.

        Raises:
            TargetError: without all blocks more than that remains.
            DataError, ModelError: as `calibrate`.
        """
        needed = goal.savings.before * (1 - goal.share)
        while True:
            share = self._share(goal)
            if share <= goal.share + 1e-9:
                return share
            saved = goal.savings(self.gone)
            if saved >= needed * (1 - 1e-9):  # by the clock it is less
                needed = saved * min(max((1 - goal.share) / max(1 - share, 1e-6), 1.01), 2.0)
            if not self._step(blocks, goal, needed - saved):
                raise TargetError(f"without all blocks that may go, {share:.3f} remain, more than {goal.share:.3f}")

    def _share(self, goal: Goal) -> float:
        """What remains: as it is predicted, and by the clock once that is little enough."""
        share = goal.savings.left(self.gone) / max(goal.savings.before, 1e-300)
        if share > goal.share + 1e-9 or goal.measured is None or not self.steps:
            return share
        return goal.measured(self.bypasses)

    def _step(self, blocks: Sequence[Block], goal: Goal, needed: float) -> bool:
        """Let one more block go; whether there was one."""
        taken = frozenset[int]().union(*(block.weighted for block in self.gone))
        longest = needed + 0.5 if goal.whole else np.inf
        longest = 1 if self.measure == "weights" else longest
        left = [block for block in blocks if block.parts <= longest and not block.weighted & taken]
        worth, enough = (goal.savings, needed) if goal.worth is None else (goal.worth, np.inf)
        before = worth(self.gone)
        gains = np.array([worth([*self.gone, block]) - before for block in left])
        left = [block for block, gain in zip(left, gains, strict=True) if gain > 0]
        if not left:
            return False
        now = bypassed(self.coupling.graph, self.bypasses)
        bypasses = [Bypass(b, shift) for b, shift in zip(left, self._shifts(now, left), strict=True)]
        scores, base = self._scores(now, bypasses)
        # What a block saves beyond what is needed counts for nothing.
        price = (scores - base) / np.minimum(gains[gains > 0], enough)
        if not np.isfinite(price).any():
            return False
        self.steps.append(Step(bypasses, scores, int(np.argmin(price))))
        return True

    def _shifts(self, now: Graph, blocks: Sequence[Block]) -> list[Floats]:
        """For each block: [channels], the mean of its exit less that of its entry."""
        if self.samples is None:
            return [self._expected(block) for block in blocks]
        fit = self.samples.turn(len(self.steps)).fit
        dims = {Dim(name, b.axis): Want.SUMS for b in blocks for name in (b.entry, b.exit)}
        found = calibrate(now, fit, dims, self.engine, sum(map(rows, fit)))
        return [found[Dim(b.exit, b.axis)].mean - found[Dim(b.entry, b.axis)].mean for b in blocks]

    def _expected(self, block: Block) -> Floats:
        """The same by the weights; 0 where it is not known."""
        graph = self.coupling.graph
        size = (graph.shapes[block.exit] or ())[block.axis]
        assert isinstance(size, int)
        laws, maker = self._laws, graph.producer[block.exit]
        if maker.op in SUMS and block.entry in maker.inputs:
            branch = next(name for name in maker.inputs if name != block.entry)
            mean = laws.of(branch).along(block.axis, size)[0]
        else:
            mean = laws.of(block.exit).along(block.axis, size)[0] - laws.of(block.entry).along(block.axis, size)[0]
        return np.nan_to_num(mean)

    @cached_property
    def _laws(self) -> Laws:
        return expectations(self.coupling)

    def _scores(self, now: Graph, bypasses: Sequence[Bypass]) -> tuple[Floats, float]:
        """How much each block matters, and what all that went so far did, where that is in it, too."""
        blocks = [bypass.block for bypass in bypasses]
        if self.measure == "weights":
            return np.array([size_of(self.coupling, block) for block in blocks]), 0.0
        assert self.samples is not None
        choose = self.samples.turn(len(self.steps)).choose
        if self.measure != "divergence":
            return turned(now, blocks, choose, self.engine, self.measure == "angular"), 0.0
        distance = distance_of(self.coupling.graph, choose, self.engine, self.kind)
        base = off(distance, now, choose, self.engine) if self.steps else 0.0
        return divergences(now, bypasses, choose, distance, self.engine, self.tell), base


def turned(now: Graph, blocks: Sequence[Block], batches: Sequence[Feed], engine: Engine, angle: bool) -> Floats:
    """[blocks]: 1 - cosine of entry and exit, or the angle between them over π; the mean over all places."""
    names = list(dict.fromkeys(name for block in blocks for name in (block.entry, block.exit)))
    total, count = np.zeros(len(blocks)), 0
    for values in Walk(now, batches, engine).rest(NOTHING, names, engine):
        count += 1
        for number, block in enumerate(blocks):
            x, y = (_places(values[name], block.axis) for name in (block.entry, block.exit))
            sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosine = np.divide((x * y).sum(axis=1), sizes, out=np.zeros_like(sizes), where=sizes > 0).clip(-1, 1)
            total[number] += np.mean(np.arccos(cosine) / np.pi if angle else 1 - cosine)
    return total / max(count, 1)


def size_of(coupling: Coupling, block: Block) -> float:
    """How large a block's last layer makes inputs of size 1; infinite where its weights are not known."""
    graph = coupling.graph
    last = max(block.weighted)
    spec = next((spec for node, spec in foldable(coupling) if node.index == last), None)
    each = None if spec is None else contraction(coupling, graph.nodes[last], spec)
    weights = None if each is None else each.rows({})
    if each is None or weights is None:
        return float("inf")
    sizes = abs(each.alpha) * np.sqrt(np.square(weights, dtype=np.float64).sum(axis=(1, 2)))
    norm = next((n for n, slot in graph.consumers.get(graph.nodes[last].outputs[0], ()) if slot == 0), None)
    if norm is not None and norm.op == "BatchNormalization" and all(n in graph.constants for n in norm.inputs[1:]):
        gamma, _, _, variance = (graph.array(n).astype(np.float64) for n in norm.inputs[1:])
        sizes = sizes * np.abs(gamma) / np.sqrt(variance + float(norm.attrs.get("epsilon", 1e-5)))
    return float(np.sqrt(np.mean(np.square(sizes))))


def _places(value: Array, axis: int) -> Floats:
    """[places, channels]."""
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float64)
