"""Leave out whole blocks: the layers of a transformer, the residual blocks of a convolutional network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.answers import KINDS
from onnxprune.blocks import Block, blocks, names_in
from onnxprune.bypass import Bypass, bypassed, oracle, written
from onnxprune.depth import MEASURES, Goal, Search
from onnxprune.divergence import distance_of, off
from onnxprune.errors import ModelError, OptionError, TargetError, at_least, expressions, one_of
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.parts import Engine
from onnxprune.passes import register
from onnxprune.problem import each
from onnxprune.rules.base import Options
from onnxprune.savings import Savings, by_count, by_macs, by_params, by_time
from onnxprune.settle import settled
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.target import parse_target
from onnxprune.timing import bench
from onnxprune.without import touched

AUTO = "auto"
MOST = 3.0  # seconds of a comparison with the original
SHARES = ("macs", "params", "latency")


@register("drop_blocks")
@dataclass(frozen=True)
class DropBlocks:
    """Leave out whole blocks (residual branches, layers, stages that keep the shape), those that matter least first.

    Attributes:
        drop: how many blocks go: 1, where neither this nor a target is given.
        target: macs=, params= or latency= with the share that may remain, or latency=5ms.
        importance: what a block matters: "divergence" of the answers without it, "influence" (1 - cosine of what goes
            in and what comes out), "angular" (the angle between the two), "latency" (divergence for the time that
            goes), or "weights" (the size of its last layer); "auto" is divergence. All but weights need data.
        keep: regular expression or several; blocks with a matching node, output or weight stay.
        consecutive: up to how many blocks in a row are tried as one: 2 has the layers of a transformer beside their
            halves.
        distance: how answers are compared: auto, logits, vectors, boxes or values.
    """

    drop: int | None = None
    target: str | None = None
    importance: str = AUTO
    keep: str | Sequence[str] = ()
    consecutive: int = 2
    distance: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what is wrong by itself."""
        one_of("drop_blocks: importance =", self.importance, (AUTO, *MEASURES, "latency"))
        one_of("drop_blocks: distance =", self.distance, KINDS)
        for name in ("drop", "consecutive"):
            if (given := getattr(self, name)) is not None:
                at_least(f"drop_blocks: {name} =", given, 1)
        expressions("drop_blocks: keep =", self.keep)
        if self.drop is not None and self.target is not None:
            raise OptionError(f"drop_blocks: drop = {self.drop} and target = {self.target!r}: write one of the two")
        if self.target is not None and parse_target(self.target).kind not in SHARES:
            raise OptionError(
                f"drop_blocks: target = {self.target!r}: write macs=X, params=X, latency=X or latency=5ms"
            )

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Find blocks, choose, leave out."""
        engine = Engine(context.provider, context.threads)
        with context.stage("analysis"):
            coupling = context.couple(graph, Options())
            found = self._free(coupling, blocks(coupling, self.consecutive))
        measure = "divergence" if self.importance in (AUTO, "latency") else self.importance
        if context.data is None and measure != "weights":
            raise OptionError(
                f"drop_blocks: importance = {self.importance!r} is measured on inputs: give --data (or --data "
                "synthetic), or write importance = 'weights'"
            )
        samples = None if context.data is None else context.samples(coupling)
        search = Search(coupling, measure, engine, samples, self.distance, context.on_stage)
        with context.stage("blocks"):
            self._choose(search, found, coupling, context)
            if not search.steps:
                return Outcome(graph.proto, said="no block had to go")
            view, folded = settled(bypassed(coupling.graph, search.bypasses), search.bypasses)
        with context.stage("cut"):
            model = context.make(lambda store: written(coupling.graph, view, store))
        first, gone, macs = search.steps[0], search.gone, by_macs(coupling)
        notes = {
            "distance": self._distance(coupling, view, context, engine),
            "folded": folded,
            "blocks": int(by_count(found).before),
            "candidates": [
                told(coupling, bypass.block, score, macs)
                for bypass, score in zip(first.bypasses, first.scores, strict=True)
            ],
            "dropped": [told(coupling, step.bypass.block, step.scores[step.chosen], macs) for step in search.steps],
        }

        def whole() -> ModelProto | Path:
            return context.make(lambda store: oracle(coupling.graph, search.bypasses, store), "whole.onnx")

        # Where nothing comes after, there was a cut all the same.
        changed = touched(coupling, search.bypasses) or frozenset(block.exit for block in gone)
        cost = {"before": macs.before, "after": macs.left(gone)}
        said = _sentence(notes, cost)
        return Outcome(model, {"macs": cost, "drop_blocks": notes}, touched=changed, proof=Proof(whole), said=said)

    def _free(self, coupling: Coupling, found: Sequence[Block]) -> list[Block]:
        """The blocks that may go.

        Raises:
            ModelError: there are none.
            OptionError: a pattern that matches nothing, or all.
        """
        name = coupling.graph.name
        if not found:
            raise ModelError(f"{name}: drop_blocks finds no block to leave out: nothing with weights keeps its shape")
        stay = set[Block]()
        for pattern in each(self.keep):
            hit = {b for b in found if any(map(re.compile(pattern).search, names_in(coupling.graph, b)))}
            if not hit:
                raise OptionError(f"drop_blocks: keep = {pattern!r} matches no node, output or weight of a block")
            stay |= hit
        left = [block for block in found if block not in stay]
        if not left:
            raise OptionError(f"{name}: drop_blocks: keep leaves no block that may go; keep fewer")
        return left

    def _choose(self, search: Search, found: Sequence[Block], coupling: Coupling, context: Context) -> None:
        """Let blocks go until enough is saved.

        Raises:
            TargetError: all of them save too little.
        """
        try:
            search.run(found, self._goal(search, found, coupling, context))
        except TargetError as error:
            wish = f"drop = {self.drop or 1}" if self.target is None else f"target = {self.target!r}"
            raise TargetError(f"{coupling.graph.name}: drop_blocks: {wish} cannot be met: {error}") from error

    def _goal(self, search: Search, found: Sequence[Block], coupling: Coupling, context: Context) -> Goal:
        """What is to be saved, and by what blocks are weighed."""
        target = None if self.target is None else parse_target(self.target)
        timed = target is not None and target.kind == "latency"
        feed = context.feeds(coupling.graph)[0] if timed or self.importance == "latency" else None
        time = None if feed is None else by_time(coupling, feed, search.engine)
        worth = time if self.importance == "latency" else None
        if target is None:
            savings, drop = by_count(found), self.drop or 1
            if drop > savings.before:
                count = int(savings.before)
                raise TargetError(f"there {'is 1 block' if count == 1 else f'are {count} blocks'} that may go")
            return Goal(savings, 1 - drop / savings.before, worth or by_macs(coupling), whole=True)
        if target.kind != "latency":
            return Goal((by_macs if target.kind == "macs" else by_params)(coupling), target.amount, worth)
        assert time is not None
        assert feed is not None
        if context.bench_seconds <= 0:
            raise OptionError(f"drop_blocks: target = {self.target!r} runs the models: leave validation and timing on")
        original = coupling.graph.path or coupling.graph.proto
        where = (context.provider, context.threads)

        def remaining(bypasses: Sequence[Bypass]) -> float:
            view, _ = settled(bypassed(coupling.graph, bypasses), bypasses)
            both = bench(original, written(coupling.graph, view), *where, [feed], max_seconds=MOST)
            assert both.ratio is not None
            return both.ratio.value

        share = target.amount
        if target.absolute:
            share /= bench(original, None, *where, [feed], max_seconds=MOST).a.median.value
        return Goal(time, min(share, 1.0), worth, measured=remaining)

    def _distance(self, coupling: Coupling, view: Graph, context: Context, engine: Engine) -> float | None:
        """How far the answers to inputs that were put aside are off; None without data."""
        if context.data is None:
            return None
        aside = context.samples(coupling).aside
        return off(distance_of(coupling.graph, aside, engine, self.distance), view, aside, engine)


def told(coupling: Coupling, block: Block, score: float, savings: Savings) -> dict[str, Any]:
    """A block, for the record."""
    nodes = coupling.graph.nodes
    return {
        "entry": block.entry,
        "exit": block.exit,
        "parts": block.parts,
        "nodes": len(block.nodes),
        "layers": [nodes[index].label for index in sorted(block.weighted)],
        "score": float(score) if np.isfinite(score) else None,
        "macs": savings([block]),
    }


def _sentence(notes: dict[str, Any], macs: dict[str, float]) -> str:
    gone = notes["dropped"]
    count = sum(block["parts"] for block in gone)
    share = macs["after"] / max(macs["before"], 1e-300)
    said = f"{count} of {notes['blocks']} blocks left out, {share:.0%} of MACs remain"
    return said if notes["distance"] is None else f"{said}; answers are {notes['distance']:.3g} off the original's"
