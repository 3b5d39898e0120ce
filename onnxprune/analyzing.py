"""Sensitivity analysis: which groups, or which layers, a model can best do without, and the ratios that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxprune import graph as graphs
from onnxprune import metric as metrics
from onnxprune.allocation import bound_of, measure_of
from onnxprune.errors import OptionError, TargetError, at_least, one_of
from onnxprune.formats import is_half
from onnxprune.gates import loss
from onnxprune.latency.block import resolve_align
from onnxprune.look import Look, look
from onnxprune.parts import Engine
from onnxprune.patch import Patch, patched
from onnxprune.pipeline import Model, feeds_of
from onnxprune.problem import Limits, problem_of
from onnxprune.rules.base import Options
from onnxprune.sensitivity import Row, Sensitivity, Site, chosen, groups, layers, measured
from onnxprune.steps import Context
from onnxprune.target import parse_target

BY = ("group", "layer")
METHODS = ("none", "bias", "channel")
CUTS = (0.1, 0.25, 0.5, 0.75)


def analyze(
    model: Model,
    data: Any = None,
    ratios: str | Iterable[float] = CUTS,
    *,
    by: str = "group",
    target: str | None = None,
    criterion: str = "auto",
    recover: str = "channel",
    metric: Callable[..., Any] | str | None = None,
    distance: str = "auto",
    align: str | int = "auto",
    keep: str | Sequence[str] = (),
    seed: int = 0,
    allow_inexact: bool = False,
    head_dims: bool = False,
    provider: str = "cpu",
    threads: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Sensitivity:
    """Cut every group (or every layer's share of one) alone by several ratios, and measure what the answers lose.

    Args:
        model: path or `ModelProto`; never changed.
        data: unlabelled inputs, as for `prune`: weights are repaired on some, the loss is measured on others.
        ratios: shares of the units that go: numbers, or a text with commas between.
        by: "group" or "layer": a contraction that alone loses columns of its weights.
        target: `macs=X`, `params=X` or `channels=X`: also the share of each group that stays for that (by group only).
        criterion: in which order units go; "auto" is by the error that their consumers make without them.
        recover: the repair that the loss is measured with: none, bias or channel.
        metric: the user's measure: its fall is measured, on whole models, in place of the distance of the answers.
        distance: how answers are compared: auto, logits, vectors, boxes or values.
        align: widths that the target's ratios keep to, as for `prune`.
        keep: regular expression or several; groups with a matching tensor or node are left out.
        seed: of the places that are sampled in the data.
        allow_inexact, head_dims: as for `prune`.
        provider, threads, shapes, on_stage: as for `Pipeline.run`.

    Raises:
        DataError: there are no data, or too few.
        OnnxPruneError: anything else, in one line.
    """
    cuts, wanted = cuts_of(ratios), None if target is None else parse_target(target)
    one_of("--by", by, BY)
    at_least("--seed", seed, 0)
    if recover not in METHODS:
        raise OptionError(f"--recover {recover}: what is cut alone is repaired by one of {', '.join(METHODS)}")
    if wanted is not None and by != "group":
        raise OptionError(f"--target {target}: groups are cut whole; drop --by {by}")
    if wanted is not None and wanted.kind not in ("channels", "params", "macs"):
        raise OptionError(f"--target {target}: give channels=X, params=X or macs=X here")
    measure = None if metric is None else metrics.load(metric)
    context = Context(provider, threads, shapes=dict(shapes or {}), on_stage=on_stage)
    with threadpool_limits(1):
        with context.stage("load"):
            graph = graphs.load(model, shapes)
        if data is not None:
            context = replace(context, data=feeds_of(data, graph, context))
        with context.stage("analysis"):
            multiple = 1 if wanted is None else resolve_align(align, provider, True, is_half(graph.proto))
            coupling = context.couple(graph, Options(multiple, allow_inexact, head_dims))
        turn, engine = context.samples(coupling).turn(0), Engine(provider, threads)
        ranked = None if criterion in ("auto", "obs") else criterion
        with context.stage("statistics"):
            seen = look(graph, coupling, turn, engine, recover, distance, ranked, seed, keep=True)
        nothing = np.zeros(coupling.units)
        free = ~problem_of(coupling, nothing, Limits(1, keep)).frozen
        sites = list(groups(seen, free) if by == "group" else layers(seen, free, ranked))
        if not sites:
            raise TargetError(f"{graph.name}: nothing can be cut; see `onnxprune inspect`")
        with context.stage("sensitivity"):
            what, rows = _rows(seen, sites, cuts, measure, context)
    ordered = tuple(sorted(rows, key=lambda row: -row.mean))
    found = Sensitivity(graph.name, by, cuts, what, criterion, recover, ordered)
    if wanted is None:
        return found
    limits = Limits(multiple, keep)
    problem = problem_of(coupling, nothing, limits)
    cost = measure_of(problem, wanted)
    made = chosen(problem, seen.curves, sites, rows, cost, bound_of(problem, cost, wanted, limits))
    if made is None:
        raise TargetError(f"{graph.name}: --target {target} leaves too little of the groups; see `onnxprune inspect`")
    ratios_made, after = made
    return replace(found, target=str(wanted), ratios=tuple(ratios_made), remains=after / cost.before, align=multiple)


def cuts_of(ratios: str | Iterable[float]) -> tuple[float, ...]:
    """The shares of units that go, smallest first.

    Raises:
        OptionError: one is no number between 0 and 1, or there are none.
    """
    text = ratios if isinstance(ratios, str) else ",".join(str(ratio) for ratio in ratios)
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < cut < 1 for cut in found):
        raise OptionError(
            f"--ratios {text}: write shares of the units that go, as in 0.1,0.25,0.5, each between 0 and 1"
        )
    return tuple(found)


def _rows(
    seen: Look, sites: Sequence[Site], cuts: Sequence[float], measure: metrics.Metric | None, context: Context
) -> tuple[str, list[Row]]:
    """What is measured, in words, and the figures."""
    if measure is None:
        return f"distance of {seen.gauge.distance.kind}", measured(seen, sites, cuts, None, context.on_stage)
    metric, graph = measure, seen.gauge.coupling.graph
    before = _numbers(metric, graph.path or graph.proto, context, "the original model")

    def judge(patch: Patch) -> tuple[float, Mapping[str, float]]:
        after = _numbers(metric, patched(graph, patch), context, "a masked model")
        return loss({"metric": {"before": before, "after": after}}).amount, after

    return f"fall of {' or '.join(before)}", measured(seen, sites, cuts, judge, context.on_stage)


def _numbers(measure: metrics.Metric, model: ModelProto | Path, context: Context, which: str) -> dict[str, float]:
    return metrics.measure(measure, model, context.provider, context.threads, which=which)
