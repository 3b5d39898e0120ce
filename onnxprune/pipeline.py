"""From a model to a smaller one: run passes in order, prove the result, keep the record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxprune import graph as graphs
from onnxprune import inspection, writing
from onnxprune import metric as metrics
from onnxprune.batches import batch_shapes
from onnxprune.data import SYNTHETIC, Feeds, read
from onnxprune.errors import GateError, OptionError
from onnxprune.feeds import input_specs
from onnxprune.gates import failed_gate
from onnxprune.graph import Graph
from onnxprune.latency.meet import doubts
from onnxprune.likeness import likeness
from onnxprune.matching import matched
from onnxprune.metric import Metric
from onnxprune.outcome import Found, Replay, joined, prepared, sizes
from onnxprune.parts import Engine
from onnxprune.plan import Plan, digest, read_plan
from onnxprune.recovery import resolve_method
from onnxprune.rules.base import Options
from onnxprune.smallest import smallest
from onnxprune.steps import Context, Outcome, Pass, Proof
from onnxprune.target import automatic
from onnxprune.validate import Checks, opened, validate

Model = str | os.PathLike[str] | ModelProto
Record = dict[str, Any]

# Of the record of the run that made a model, what the last look at it says anew.
ANEW = ("version", "model", "provider", "threads", "params", "file_bytes", "warnings", "seconds", "passes", "metric")


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model, the plan that made it (None where no pass cuts) and the record of what happened.

    `made` is the model, or the file that was written where weights are external: then they were never all in memory.
    """

    made: ModelProto | Path
    plan: Plan | None
    record: Record

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model in memory; read from its file, with all weights, where the run did without."""
        return onnx.load(self.made) if isinstance(self.made, Path) else self.made


@dataclass(frozen=True)
class Pipeline:
    """Passes in order: `Pipeline([PruneChannels(target="macs=0.5")]).run("model.onnx")`."""

    passes: Sequence[Pass]

    def run(
        self,
        model: Model,
        *,
        out: str | os.PathLike[str] | None = None,
        data: Any = None,
        provider: str = "cpu",
        threads: int | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        checks: Checks | None = None,
        metric: Callable[..., Any] | str | None = None,
        on_stage: Callable[[str], None] = lambda name: None,
        memo: dict[Hashable, Any] | None = None,
    ) -> Result:
        """Run all passes, check the result, and write it.

        Args:
            model: a path or a model in memory; never changed.
            out: where the result goes; moved into place only when every check has passed.
            data: inputs for the checks: a path as `--data` takes it, or an iterable of feeds.
            provider: short name of the execution provider.
            threads: threads inside an operator.
            shapes: input or inner value -> shape, where the model leaves it open.
            checks: what is measured and which gates must hold; None: nothing is run.
            metric: the user's measure of a model, run on the original before the work and on the result after it: a
                function of a `metric.Run` that returns a number or a dict of them, or its name as `--metric` takes it.
            on_stage: told the name of every stage as it begins.
            memo: what earlier runs on the same model, data and options found out; this one adds to it. Only the
                target may differ between them.

        Raises:
            GateError: a gate failed; `record` has the figures, and nothing is written.
            OnnxPruneError: one line that says what is wrong; nothing is written.
        """
        if metric is not None and checks is None:
            raise OptionError("--metric runs the models: leave validation on")
        measured = None if metric is None else metrics.load(metric)
        context = Context(
            provider,
            threads,
            shapes=dict(shapes or {}),
            on_stage=on_stage,
            memo={} if memo is None else memo,
            shared=memo is not None,
            bench_seconds=0.0 if checks is None else checks.seconds,
            batch=None if checks is None else checks.batch,
        )
        with context.stage("load"):
            original = context.once("original", lambda: graphs.load(model, shapes))
            if out is not None:
                writing.check_output(original, out)
        # An inner value's shape is for the analysis of this model: it is not fed, and a pass may change it.
        context = replace(context, shapes={n: s for n, s in context.shapes.items() if n in original.inputs})
        if context.batch is not None:
            batch_shapes(input_specs(original.proto), context.batch, context.shapes)  # what it lacks is said at once
        if data is not None:
            context = replace(context, data=context.once("data", lambda: feeds_of(data, original, context)))
        record: Record = {"version": 1, "model": original.name, "provider": provider, "threads": threads}
        record |= prepared(original)
        if context.data is not None:
            samples = context.data.samples
            with context.stage("data"):
                alike = context.once("likeness", lambda: likeness(original, samples(), Engine(provider, threads)))
                record["warnings"] = list(alike)
        _measure(measured, "before", original, original.path or original.proto, context, record)
        streams = graphs.is_external(original) and (out is not None or graphs.is_big(original))
        workspace = writing.workspace(out) if streams else nullcontext()
        # Threads of BLAS wait for each other actively: on busy processors that takes ten times as long as one.
        with threadpool_limits(1), workspace as folder:
            if folder is not None:
                context = replace(context, file=folder / Path(out or "model.onnx").name)
            made, plan = self._run(original, out, checks, measured, context, record)
            record["seconds"] = dict(context.seconds)
            return Result(onnx.load(made) if isinstance(made, Path) and out is None else made, plan, record)

    def _run(
        self,
        original: Graph,
        out: str | os.PathLike[str] | None,
        checks: Checks | None,
        metric: Metric | None,
        context: Context,
        record: Record,
    ) -> tuple[ModelProto | Path, Plan | None]:
        """The new model (its file, where it is too big for memory) and the plan; the record is filled."""
        current, outcome = original, Outcome(original.proto)
        plan: Plan | None = None
        proofs: list[Proof] = []
        record["passes"] = []
        for number, step in enumerate(self.passes, 1):
            start = time.perf_counter()
            outcome = step(current, context)
            if context.settled and outcome.plan is not None and outcome.model is not current.proto:
                raise OptionError(
                    f"{described(step)['name']}: cuts what {context.settled} did to the weights; put it before that"
                )
            same = outcome.model is current.proto
            outcome = replace(outcome, model=context.whole(outcome.model, current.folder))
            record |= joined(record, outcome.notes)
            record["passes"].append({**described(step), "seconds": time.perf_counter() - start, "said": outcome.said})
            if outcome.plan or outcome.touched:
                record.setdefault("recover", "none")
                plan = outcome.plan if current is original and outcome.replays else None
                context = replace(context, before=current, plan=outcome.plan, touched=outcome.touched)
            if outcome.settles:
                context = replace(context, settled=record["passes"][-1]["name"])
            last = number == len(self.passes)
            if outcome.proof is not None:
                proofs.append(outcome.proof if last else replace(outcome.proof, cut=outcome.proof.cut or outcome.model))
            current = current if last or same else graphs.load(outcome.model, context.shapes)
        external = graphs.is_external(original)
        with writing.draft(outcome.model, out, external) if out is not None else nullcontext() as path:
            record |= sizes(original, outcome.model, path)
            if checks is not None:
                if isinstance(outcome.model, ModelProto) and outcome.model == original.proto:
                    checks = replace(checks, seconds=0.0)  # a gate alone makes it worth a measurement
                pruned = outcome.model if path is None else path
                with context.stage("validation"):
                    pairs = opened(proofs, pruned)
                if path is not None and not context.shared:
                    original.release()
                found = validate(original, pruned, pairs, checks, context)
                model, timed = record.get("latency_model"), found.get("latency_ms")
                off = doubts(model, timed) if model and timed else []
                record |= found | {"warnings": [*record.get("warnings", ()), *found["warnings"], *off]}
                _measure(metric, "after", original, pruned, context, record)
                record["seconds"] = dict(context.seconds)
                if failure := failed_gate(record, checks):
                    raise GateError(f"{original.name}: {failure}", record)
        return (Path(out) if isinstance(outcome.model, Path) and out is not None else outcome.model), plan


def prune(
    model: Model,
    target: str = "macs=0.5",
    criterion: str = "auto",
    data: Any = None,
    validate: bool = True,
    *,
    out: str | os.PathLike[str] | None = None,
    scope: str = "auto",
    align: str | int = "auto",
    keep: str | Sequence[str] = (),
    ratios: Sequence[tuple[str, float]] = (),
    combine: str = "mean",
    normalise: str = "mean",
    seed: int = 0,
    allow_inexact: bool = False,
    head_dims: bool = False,
    recover: str = "auto",
    distance: str = "auto",
    iterations: int = 1,
    depth: bool = False,
    provider: str = "cpu",
    threads: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    checks: Checks | None = None,
    metric: Callable[..., Any] | str | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
    memo: dict[Hashable, Any] | None = None,
) -> Result:
    """Prune a model: the whole main job in one call.

    Args:
        model: path or `ModelProto`; never changed.
        target: `channels=X`, `params=X`, `macs=X` or `latency=X` (X: the share that may remain; "auto": the smallest
            whose loss stays within `checks.max_drop`), `latency=5ms`, `threshold=X` (the least score that stays), or
            `lossless`.
        criterion: how units are scored, or a weighted sum as in `0.7*wanda+0.3*l1`; "auto" looks at the data, if there
            are any.
        data: unlabelled inputs: widths are chosen and weights are repaired with them; without them the checks use
            random ones.
        validate: prove the result with ONNX Runtime.
        out: where to write the result.
        scope, align, keep, ratios, combine, normalise, seed, allow_inexact, head_dims, distance,
            iterations, depth: see `PruneChannels`.
        recover: the repair of the remaining weights: none, bias, channel, full, or auto: full where there are data,
            else expected values in biases (bias).
        provider, threads, shapes, checks, metric, on_stage, memo: see `Pipeline.run`.

    Raises:
        OnnxPruneError: one line that says what is wrong; nothing is written.
    """
    from onnxprune.passes import get

    chosen = {
        "criterion": criterion,
        "scope": scope,
        "align": align,
        "keep": keep,
        "ratios": tuple(ratios),
        "combine": combine,
        "normalise": normalise,
        "seed": seed,
        "allow_inexact": allow_inexact,
        "head_dims": head_dims,
        "recover": recover,
        "distance": distance,
        "iterations": iterations,
        "depth": depth,
    }
    wanted = (checks or Checks()) if validate else None
    given: dict[str, Any] = {
        "provider": provider,
        "threads": threads,
        "shapes": shapes,
        "metric": metric,
        "on_stage": on_stage,
    }

    def made(target: str) -> Pipeline:
        step = get("prune_channels")(target=target, **chosen)
        return Pipeline([step, *_repair("none" if target == "lossless" else recover, data, seed, distance)])

    if kind := automatic(target):
        return _smallest(made, kind, model, out, wanted, {} if memo is None else memo, {**given, "data": data})
    return made(target).run(model, out=out, data=data, checks=wanted, memo=memo, **given)


def _smallest(
    made: Callable[[str], Pipeline],
    kind: str,
    model: Model,
    out: str | os.PathLike[str] | None,
    checks: Checks | None,
    memo: dict[Hashable, Any],
    given: Mapping[str, Any],
) -> Result:
    """The smallest model that stays within `max_drop` (see `smallest`); only that is timed.

    Raises:
        OptionError: nothing is measured, or there is no bound.
    """
    if checks is None or checks.max_drop is None:
        lacks = "measures models: drop --no-validate" if checks is None else "needs --max-drop, as in --max-drop 0.01"
        raise OptionError(f"--target {kind}=auto, the smallest model that is good enough, {lacks}")
    if "original" not in memo:
        memo["original"] = graphs.load(model, given["shapes"])
    original: Graph = memo["original"]
    if out is not None:
        writing.check_output(original, out)
    # A clock that chooses needs the time; what nobody asked for is not measured again and again.
    each = replace(checks, seconds=min(checks.seconds, 1.0) if kind == "latency" else 0.0, min_speedup=None)
    with writing.workspace(out) if out is not None else nullcontext() as folder:
        draft = None if folder is None or out is None else folder / Path(out).name  # of the smallest that passed

        def attempt(share: float) -> tuple[Result, Record]:
            found = made(f"{kind}={share:g}").run(model, out=draft, checks=each, memo=memo, **given)
            return found, found.record

        start = time.perf_counter()
        search = smallest(original.name, kind, checks.max_drop, attempt, given["on_stage"])
        seconds, best = time.perf_counter() - start, search.best.record
        notes = {name: what for name, what in best.items() if name not in ANEW}
        notes["search"] = search.to_dict(kind, checks.max_drop)
        last = Pipeline([Found(search.best.made, search.best.plan, notes)])
        result = last.run(model, out=out, checks=checks, memo=memo, **given)
        result.record.update(passes=best["passes"], seconds={"search": seconds, **result.record["seconds"]})
        return result


def described(step: Pass) -> Record:
    """The name and the options of a pass, for the record."""
    from onnxprune.passes import name_of

    names = () if isinstance(step, Replay | Found) else getattr(step, "__dataclass_fields__", ())
    return {"name": name_of(type(step)), "options": {name: getattr(step, name) for name in names}}


def _repair(recover: str, data: Any, seed: int = 0, distance: str = "auto") -> list[Pass]:
    """The pass that repairs what was cut, where it is wanted.

    Raises:
        OptionError: what is wanted needs data, and there are none.
    """
    from onnxprune.passes import get

    wanted = resolve_method(recover, data is not None) != "none"
    return [get("reconstruct")(method=recover, seed=seed, distance=distance)] if wanted else []


def apply(
    model: Model,
    plan: Plan | str | os.PathLike[str],
    validate: bool = True,
    *,
    out: str | os.PathLike[str] | None = None,
    recover: str = "none",
    distance: str = "auto",
    **options: Any,
) -> Result:
    """Replay a plan on its model or on a re-export of it.

    Args:
        model: path or `ModelProto`; never changed.
        plan: a plan or its file.
        validate: prove the result with ONNX Runtime.
        out: where to write the result.
        recover: as for `prune`; with "none" the plan alone says what the result is.
        distance: how answers are compared when repairs are chosen, as for `prune`.
        options: data, provider, threads, shapes, checks, metric, on_stage as in `Pipeline.run`.

    Raises:
        PlanError: the plan does not fit the model.
        OnnxPruneError: anything else, in one line; nothing is written.
    """
    made = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    same = made.model_sha256 == digest(graphs.load(model))
    # Folds hold for the weights that they were made of.
    given = options.pop("checks", None)
    checks = (given or Checks()) if validate else None
    step = Replay(made, same or not made.folds)
    passes = [step, *_repair(recover, options.get("data"), distance=distance)]
    result = Pipeline(passes).run(model, out=out, checks=checks, **options)
    if not same:
        note = "the plan was made for another file: its cut is replayed, whatever these weights would have asked for"
        result.record["warnings"] = [*result.record.get("warnings", ()), note]
    return result


def inspect(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    align: int = 1,
    *,
    allow_inexact: bool = False,
    head_dims: bool = False,
    explain: str | None = None,
) -> Record:
    """What can be cut of a model, and what is locked and why.

    Args:
        model: path or `ModelProto`.
        shapes: input or inner value -> shape, where the model leaves it open.
        align: widths that will be kept to; decides only between ways to cut a grouped operator.
        allow_inexact, head_dims: as for `prune`.
        explain: a tensor or a node; the record then tells, for each of its axes, the group or the way to what locks it.

    Raises:
        ModelError, ShapeError: as `load`.
        OptionError: nothing has the name that is to be explained.
    """
    original = graphs.load(model, shapes)
    options = Options(align=align, inexact=allow_inexact, head_dims=head_dims)
    record: Record = {"version": 1, "model": original.name}
    record |= prepared(original)
    if explain is not None:
        return record | {"explain": inspection.explanation(original, options, explain)}
    return record | inspection.survey(original, options)


def feeds_of(data: Any, original: Graph, context: Context) -> Feeds:
    """The user's inputs as feeds; those that are generated, in the range that the model wants."""
    feeds = data if isinstance(data, Feeds) else read(data, original.proto)
    return matched(original, feeds, Engine(context.provider, context.threads)) if feeds.kind == SYNTHETIC else feeds


def _measure(
    metric: Metric | None, side: str, original: Graph, model: ModelProto | Path, context: Context, record: Record
) -> None:
    """What the user's metric, if there is one, says of the original ("before") or of the result, into the record."""
    if metric is None:
        return
    which = f"the {'original' if side == 'before' else 'pruned'} model"
    engine = (context.provider, context.threads)

    def make() -> dict[str, float]:
        with context.stage("metric"):
            return metrics.measure(metric, model, *engine, which=which, lean=graphs.is_big(original))

    found = context.once("metric", make) if side == "before" else make()
    record.setdefault("metric", {"name": metric.name})[side] = found
