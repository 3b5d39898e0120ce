"""Latency tables are measured here: networks of many widths, cut from a model and run.

Networks of random widths are cut from the model and run, one after another, each between two runs of the original,
which tell how fast the machine is by then. On providers that tell what every operator took, the operators are fitted
one by one, in their real neighbourhood: fused additions, layouts and all. On others the whole is fitted, by kinds.

As HALP (Shen et al. 2022) and ZipLM (Kurtic et al. 2023), but of whole networks instead of single layers.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from onnxprune.calls import quiet, runner, timed
from onnxprune.cost import Counts
from onnxprune.errors import TargetError
from onnxprune.feeds import Feed
from onnxprune.formats import is_half
from onnxprune.graph import Graph, is_big
from onnxprune.groups import Coupling
from onnxprune.latency import shelf
from onnxprune.latency.block import block
from onnxprune.latency.clock import PER_NODE, QUANTILE, events
from onnxprune.latency.fit import Reading, by_kind, by_node, latency
from onnxprune.latency.operators import Operators, made
from onnxprune.latency.table import DOUBTFUL, Table, parsed
from onnxprune.plan import make_plan
from onnxprune.problem import Limits, Problem, problem_of
from onnxprune.runtime import run, session
from onnxprune.shapes import without_weights
from onnxprune.surgery import cut
from onnxprune.tensors import FLOATS
from onnxprune.timing import burst_of, steady

NETWORKS, CHECKS = 24, 6  # of random widths: to fit, and to compare the fit with
LEAST = 10  # networks that are fitted to, however long it takes
SECONDS = 40.0  # after which no more are measured
RUNS, TURN = 24, 0.25  # the most runs of a network, and the seconds after which there are no more
TURNS = 50  # the most turns of a network and the original, where only the whole is timed
FEW = 4  # elements of a float constant that is no weight
NARROW = 0.15  # the narrowest share of a group


def table_of(
    coupling: Coupling,
    feed: Feed,
    provider: str = "cpu",
    threads: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
    by_node: bool | None = None,
) -> Table:
    """The table of a model: from the disk, or measured.

    Args:
        coupling: the analysis.
        feed: what the model is run on.
        provider, threads: where.
        tell: told about progress.
        by_node: fit operators one by one; None: where the provider tells their times.

    Raises:
        ModelError, ProviderError: the model does not run there on this feed.
        TargetError: it has 2 GB or more.
    """
    if is_big(coupling.graph):
        raise TargetError(f"{coupling.graph.name}: latency is not measured beyond 2 GB; use --target macs=X")
    singly = provider in PER_NODE if by_node is None else by_node
    width = block(provider, is_half(coupling.graph.proto))
    conditions = {
        "what": "table",
        "model": _structure(coupling.graph),
        "options": asdict(coupling.options),
        "block": width,
        "by_node": singly,
        "inputs": {name: [array.dtype.name, *array.shape] for name, array in feed.items()},
        "provider": provider,
        "threads": threads,
        **shelf.machine(),
    }
    kept = parsed(shelf.fetch(conditions))
    if kept is not None and kept.fits(coupling):
        return kept
    tell("latency table")
    found = replace(_Bench(coupling, feed, provider, threads, singly).table(width, tell), conditions=conditions)
    if found.error <= DOUBTFUL:
        shelf.keep(conditions, {k: v for k, v in asdict(found).items() if k != "conditions"})
    return found


def _structure(graph: Graph) -> str:
    """The hash of a model without its weights; whole numbers (shapes) and single ones (bounds) count."""
    shell = without_weights(graph.proto)
    for tensor in shell.graph.initializer:
        if tensor.data_type in FLOATS and prod(tensor.dims) > FEW:
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return hashlib.sha256(shell.SerializeToString(deterministic=True)).hexdigest()


class _Bench:
    """Runs networks that are cut from a model, each between two runs of the original."""

    def __init__(self, coupling: Coupling, feed: Feed, provider: str, threads: int | None, by_node: bool) -> None:
        """Warm up."""
        self.coupling, self.feed, self.by_node = coupling, feed, by_node
        self.provider, self.threads = provider, threads
        self.operators = Operators(coupling)
        self.original = self._runner(coupling.graph.path or coupling.graph.proto)
        self.burst = burst_of(timed(self.original))

    def table(self, block: int, tell: Callable[[str], None]) -> Table:
        """Measure, fit, check."""
        start, readings, checks = time.perf_counter(), list[Reading](), list[Reading]()
        first = problem_of(self.coupling, np.zeros(self.coupling.units), Limits(block))
        for drawn, gone in enumerate(_networks(first)):
            if drawn >= LEAST + CHECKS and time.perf_counter() - start > SECONDS:
                break
            tell(f"latency table {drawn}/{NETWORKS + CHECKS}")
            check = drawn % (NETWORKS // CHECKS + 1) == NETWORKS // CHECKS  # spread over time
            (checks if check else readings).append(self._read(first, gone, not check and self.by_node))
        pace = statistics.median(r.pace for r in (*readings, *checks))
        steady = [r.at(pace) for r in readings]
        fit = by_node if self.by_node else by_kind
        parts = fit(self.coupling, _unwatched(steady) if self.by_node else steady, block)
        cost = latency(self.coupling, parts, block)
        nodes, scale = self.coupling.graph.nodes, pace / max(cost.before, np.finfo(float).tiny)
        return Table(
            conditions={},
            block=block,
            parts={made(nodes[n]): [scale * ms for ms in p] for n, p in parts.items() if any(p)},
            before=pace,
            checked=[(cost(r.gone) / cost.before, r.total / r.pace) for r in checks],
            networks=len(readings),
            by_node=self.by_node,
            seconds=time.perf_counter() - start,
            model=self.coupling.graph.name,
        )

    def _read(self, problem: Problem, gone: Counts, by_node: bool) -> Reading:
        removed = problem.gone(gone)
        model = cut(self.coupling, make_plan(self.coupling, removed), removed)
        if by_node:
            before = self._pace()
            found = events(model, self.feed, self.provider, self.threads, RUNS, TURN)
            spent = self.operators.spent(found)
            ms = {node: sum(times) for node, times in spent.items()}
            kernels = {node: len(times) for node, times in spent.items()}
            return Reading(gone, float(found.ms.sum()), min(before, self._pace()), ms, kernels)
        return self._turns(gone, self._runner(model))

    def _turns(self, gone: Counts, call: Callable[[], Any]) -> Reading:
        """Many short turns: a machine that slows down meanwhile slows both."""
        pairs = list[tuple[float, float]]()
        start = time.perf_counter()
        while len(pairs) < 3 or (len(pairs) < TURNS and time.perf_counter() - start < TURN):
            pairs.append((steady(call, self.burst), steady(self.original, self.burst)))
        pace = float(np.quantile([original for _, original in pairs], QUANTILE))
        return Reading(gone, pace * statistics.median(ms / original for ms, original in pairs), pace)

    def _pace(self) -> float:
        return steady(self.original, max(self.burst, 2))

    def _runner(self, model: ModelProto | Path) -> Callable[[], Any]:
        ready = session(model, self.provider, self.threads, config=quiet(self.threads))
        run(ready, self.feed)
        call = runner(ready, self.feed, self.provider)
        call()
        return call


def _networks(problem: Problem) -> Iterator[Counts]:
    """Units gone of every group: of the original, then of networks whose widths are a Latin hypercube."""
    rng = np.random.default_rng(0)
    yield np.zeros(len(problem.count), dtype=np.intp)
    count = NETWORKS + CHECKS - 1
    strata = np.stack([rng.permutation(count) for _ in problem.count], axis=1)
    for row in strata:
        share = NARROW + (1 - NARROW) * (row + rng.random(len(row))) / count
        yield problem.removed(problem.count * share)


def _unwatched(readings: list[Reading]) -> list[Reading]:
    """Without what watching adds to every kernel: of the original, the first, is known what it takes unwatched."""
    first = readings[0]
    each = max(first.total - first.pace, 0.0) / max(sum(first.kernels.values()), 1)
    return [reading.without(each) for reading in readings]
