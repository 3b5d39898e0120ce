"""What every operator of a model takes on a provider, now and half as wide."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxprune import graph as graphs
from onnxprune.coupling import couple
from onnxprune.data import read
from onnxprune.formats import is_half
from onnxprune.latency import shelf
from onnxprune.latency.block import resolve_align
from onnxprune.latency.networks import table_of
from onnxprune.pipeline import Model, Record
from onnxprune.problem import Limits, problem_of
from onnxprune.rules.base import Options
from onnxprune.steps import Context


def timetable(
    model: Model,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    data: Any = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    align: str | int = "auto",
    allow_inexact: bool = False,
    head_dims: bool = False,
    batch: int | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Record:
    """Measure a model's latency table, or take it from the disk.

    Args:
        model: a path or a model in memory.
        provider, threads: where it runs.
        data: inputs as for `prune`; without them, or with `shapes`, random ones.
        shapes: input name -> shape, where the model leaves it open.
        align, allow_inexact, head_dims: as for `prune`, which then finds the table on the disk.
        batch: samples in a run; None: as the data have them, else 1.
        on_stage: told the name of every stage as it begins.

    Returns:
        A record: `latency_model` says what the table is worth, `operators` has the milliseconds of every node, in the
        original and with half of all units gone, the longest first.

    Raises:
        ModelError, ProviderError, TargetError: as `latency.table.table_of`.
    """
    on_stage("analysis")
    graph = graphs.load(model, shapes)
    feeds = None if data is None else read(data, graph.proto)
    given = {name: shape for name, shape in (shapes or {}).items() if name in graph.inputs}
    context = Context(provider, threads, feeds, given, on_stage, batch=batch)
    width = resolve_align(align, provider, measure=True, half=is_half(graph.proto))
    coupling = couple(graph, Options(width, allow_inexact, head_dims))
    context.observe(coupling)
    table = table_of(coupling, context.feeds(graph)[0], provider, threads, on_stage)
    cost = table.cost(coupling)
    problem = problem_of(coupling, np.zeros(coupling.units), Limits(width))
    half = dict(cost.largest(problem.removed(problem.count / 2), len(cost.names)))
    now = cost.largest(np.zeros(len(coupling.groups), dtype=np.intp), len(cost.names))
    return {
        "version": 1,
        "model": graph.name,
        "provider": provider,
        "threads": threads,
        "cpus": os.cpu_count(),
        "onnxruntime": shelf.machine()["onnxruntime"],
        "inputs": table.conditions["inputs"],
        "latency_model": table.summary(),
        "operators": [{"node": name, "ms": ms, "half_ms": half[name]} for name, ms in now],
    }
