"""The main jobs in one call: prune a model, and replay a plan."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune import graph as graphs
from onnxprune import writing
from onnxprune.errors import OptionError
from onnxprune.graph import Graph
from onnxprune.outcome import Found, Replay
from onnxprune.pipeline import Model, Pipeline, Record, Result
from onnxprune.plan import Plan, digest, read_plan
from onnxprune.recovery import resolve_method
from onnxprune.smallest import smallest
from onnxprune.steps import Pass
from onnxprune.target import automatic
from onnxprune.validate import Checks

# Of the record of the run that made a model, what the last look at it says anew.
ANEW = ("version", "model", "provider", "threads", "params", "file_bytes", "warnings", "seconds", "passes", "metric")


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


def _repair(recover: str, data: Any, seed: int = 0, distance: str = "auto") -> list[Pass]:
    """The pass that repairs what was cut, where it is wanted.

    Raises:
        OptionError: what is wanted needs data, and there are none.
    """
    from onnxprune.passes import get

    wanted = resolve_method(recover, data is not None) != "none"
    return [get("reconstruct")(method=recover, seed=seed, distance=distance)] if wanted else []
