"""From a model to a smaller one: run passes in order, prove the result, keep the record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxprune import graph as graphs
from onnxprune import metric as metrics
from onnxprune import writing
from onnxprune.batches import batch_shapes
from onnxprune.data import SYNTHETIC, Feeds, read
from onnxprune.errors import GateError, ModelError, OptionError
from onnxprune.feeds import input_specs
from onnxprune.gates import failed_gate
from onnxprune.graph import Graph
from onnxprune.latency.meet import doubts
from onnxprune.likeness import likeness
from onnxprune.matching import matched
from onnxprune.metric import Metric
from onnxprune.order import check_order
from onnxprune.outcome import Found, Replay, joined, prepared, sizes
from onnxprune.parts import Engine
from onnxprune.plan import Plan
from onnxprune.stamps import changed
from onnxprune.steps import Context, Outcome, Pass, Proof
from onnxprune.validate import Checks, opened, validate

Model = str | os.PathLike[str] | ModelProto
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model, the plan that made it (None where no pass cuts) and the record of what happened.

    `made` is the model, or the file that was written where weights are in files: they were then never all in memory.
    """

    made: ModelProto | Path
    plan: Plan | None
    record: Record

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model in memory; read from its file, with all weights, where the run did without."""
        return writing.whole(self.made) if isinstance(self.made, Path) else self.made


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
        check_order(self.passes, [described(step)["name"] for step in self.passes])
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
        with _unchanged(original):
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
                return Result(writing.whole(made) if isinstance(made, Path) and out is None else made, plan, record)

    def _run(
        self,
        original: Graph,
        out: str | os.PathLike[str] | None,
        checks: Checks | None,
        metric: Metric | None,
        context: Context,
        record: Record,
    ) -> tuple[ModelProto | Path, Plan | None]:
        """The new model (its file, where weights stay in files) and the plan; the record is filled."""
        current, outcome = original, Outcome(original.proto)
        plan: Plan | None = None
        altered = False
        proofs: list[Proof] = []
        record["passes"] = []
        for number, step in enumerate(self.passes, 1):
            start = time.perf_counter()
            outcome = step(current, context)
            same = outcome.model is current.proto
            altered |= not same
            outcome = replace(outcome, model=context.whole(outcome.model, current.folder))
            record |= joined(record, outcome.notes)
            about = {"said": outcome.said, "changed": not same, "proved": outcome.proof is not None}
            record["passes"].append({**described(step), "seconds": time.perf_counter() - start, **about})
            repaired = "recover" in outcome.notes
            if outcome.plan or outcome.touched:
                plan = outcome.plan if current is original and outcome.replays else None
                context = replace(context, before=current, plan=outcome.plan, touched=outcome.touched)
                if not repaired:
                    record.pop("recovery", None)  # it was of an earlier cut
                    record["recover"] = "none"
            if repaired:
                context = replace(context, before=None)
            last = number == len(self.passes)
            if outcome.proof is not None:
                proofs.append(outcome.proof if last else replace(outcome.proof, cut=outcome.proof.cut or outcome.model))
            current = current if last or same else graphs.load(outcome.model, context.shapes, original.name)
        external = bool(graphs.data_files(original))
        with writing.draft(outcome.model, out, external) if out is not None else nullcontext() as path:
            record |= sizes(original, outcome.model, path)
            if checks is not None:
                if not altered or outcome.model == original.proto:
                    checks = replace(checks, seconds=0.0)  # a gate alone makes it worth a measurement
                pruned = outcome.model if path is None else path
                with context.stage("validation"):
                    pairs = opened(proofs, pruned)
                found = validate(original, pruned, pairs, checks, context)
                model, timed = record.get("latency_model"), found.get("latency_ms")
                off = doubts(model, timed) if model and timed else []
                record |= found | {"warnings": [*record.get("warnings", ()), *found["warnings"], *off]}
                _measure(metric, "after", original, pruned, context, record)
                record["seconds"] = dict(context.seconds)
                if failure := failed_gate(record, checks):
                    raise GateError(f"{original.name}: {failure}", record)
            _refuse_changed(original)
        return (Path(out) if isinstance(outcome.model, Path) and out is not None else outcome.model), plan


@contextmanager
def _unchanged(original: Graph) -> Iterator[None]:
    """Where a file of the model was changed meanwhile, say that in place of whatever came of it."""
    try:
        yield
    except Exception:
        _refuse_changed(original)
        raise


def _refuse_changed(original: Graph) -> None:
    if path := changed(original.stamps):
        raise ModelError(f"{path}: was changed while the model was in use; leave it as it is, and run again")


def described(step: Pass) -> Record:
    """The name and the options of a pass, for the record."""
    from onnxprune.passes import name_of

    names = () if isinstance(step, Replay | Found) else getattr(step, "__dataclass_fields__", ())
    return {"name": name_of(type(step)), "options": {name: getattr(step, name) for name in names}}


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
