"""One model or many, pruned for several targets: what each target costs and what it brings.

The work is cut into tasks that any executor may run. Latencies are not part of them: they are measured afterwards, in
this process and one at a time, since models that run beside each other say nothing about themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from onnx import ModelProto

from onnxprune import graph as graphs
from onnxprune import writing
from onnxprune.compare import curve_of, kept, latencies
from onnxprune.data import read
from onnxprune.errors import OptionError, OutputError, one_of
from onnxprune.pipeline import Model
from onnxprune.shares import shares_of
from onnxprune.target import KINDS, parse_target
from onnxprune.tasks import Executor, Task, Tell, here, sent
from onnxprune.tradeoff import Curve


@overload
def sweep(models: Model, targets: str | Iterable[float], cost: str = ..., **options: Any) -> Curve: ...
@overload
def sweep(models: Sequence[Model], targets: str | Iterable[float], cost: str = ..., **options: Any) -> list[Curve]: ...
def sweep(
    models: Model | Sequence[Model],
    targets: str | Iterable[float],
    cost: str = "macs",
    executor: Executor | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    seconds: float = 5.0,
    on_stage: Tell = lambda text: None,
    **options: Any,
) -> Curve | list[Curve]:
    """Prune for several targets and compare what comes out.

    Without an executor the targets of a model share its analysis, its calibration and its latency table. With one they
    are dealt to tasks, and those in a task share them.

    Args:
        models: a path or a model in memory; a sequence of them gives a list of curves.
        targets: the shares that may remain, as numbers or as `--targets` takes them (see `shares_of`).
        cost: what is bounded: macs, params, channels or latency.
        executor: runs the tasks; None: in this process, one after the other. Other processes and machines must find
            models and data under the same paths. Not for cost "latency", which is measured undisturbed.
        out: folder for the pruned models, `<stem>-<cost>=<share>.onnx`; None: they are not kept.
        workers: how many tasks the executor runs at once: targets are dealt so that all are busy; None: a task for
            each.
        seconds: the longest comparison of latencies, of a pruned model with its original; 0 leaves it out.
        on_stage: told what is being done.
        options: of `prune`: criterion, data, scope, recover, provider, threads, metric and so on.

    Raises:
        OptionError: there is no such cost.
        TargetError: the targets make no sense. One that a model cannot meet is a point with an `error` instead.
        ExecutorError: a worker died, or lacks a package.
        OnnxPruneError: one line that says what is wrong; nothing is written.
    """
    one = isinstance(models, str | os.PathLike | ModelProto)
    each = [models] if isinstance(models, str | os.PathLike | ModelProto) else list(models)
    shares = {f"{cost}={share:g}": share for share in shares_of(targets)}
    for target in shares:
        parse_target(target)
    one_of("--cost", cost, KINDS)  # a threshold is a target, and no cost
    if not each:
        raise OptionError("a sweep needs a model; name at least one")
    if executor is not None and cost == "latency":
        raise OptionError("--cost latency is measured undisturbed, one model at a time: leave --executor out")
    if seconds <= 0 and cost == "latency":
        raise OptionError("--cost latency runs the models: leave --bench-seconds above 0")
    if isinstance(options.get("data"), Iterator):
        options["data"] = list(options["data"])
    tasks = [Task(model, {t: f"{_stem(model)}-{t}.onnx" for t in shares}, options) for model in each]
    if out is not None:
        _check_names(tasks)
    written = [] if out is None else [Path(out) / file for task in tasks for file in task.files.values()]
    for task in tasks:
        on_stage(f"load {task.label}")
        _check(task, written)
    with writing.workspace(_beside(out)) as folder:
        homes = [folder / str(number) for number in range(len(tasks))]
        for home in homes:
            home.mkdir()
        if executor is None:
            answers = [here(task, home, on_stage) for task, home in zip(tasks, homes, strict=True)]
        else:
            count = len(shares) if workers is None else -(-workers // len(tasks))
            answers = sent(executor, [task.dealt(count) for task in tasks], homes, on_stage)
        curves = []
        for task, home, found in zip(tasks, homes, answers, strict=True):
            benches = latencies(task, home, found, seconds, on_stage)
            curve = curve_of(task, cost, shares, found, benches)
            curves.append(curve if out is None else kept(curve, task.files, Path(out)))
        if out is not None:
            _keep(tasks, homes, Path(out))
    return curves[0] if one else curves


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | os.PathLike) else "model"


def _check_names(tasks: Sequence[Task]) -> None:
    """Refuse two models whose files would have one name."""
    stems = [_stem(task.model) for task in tasks]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise OutputError(f"{twice[0]}: two models have this name, and their files would, too; sweep them apart")


def _beside(out: str | os.PathLike[str] | None) -> Path | None:
    """A path in whose folder there is room for drafts."""
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is no folder; choose another one for the models")
    return folder / "model.onnx" if folder.is_dir() else folder


def _check(task: Task, written: Sequence[Path]) -> None:
    """See that the model and its data can be read, before hours go into others.

    Raises:
        OnnxPruneError: they cannot, or what is to be written would replace a file of the model.
    """
    graph = graphs.load(task.model, task.options.get("shapes"))
    for path in written:
        writing.check_output(graph, path)
    if task.options.get("data") is not None:
        read(task.options["data"], graph.proto)


def _keep(tasks: Sequence[Task], homes: Sequence[Path], out: Path) -> None:
    """Move the models to where they stay.

    Raises:
        OutputError: that is not possible.
    """
    try:
        out.mkdir(exist_ok=True)
        for task, home in zip(tasks, homes, strict=True):
            for file in task.files.values():
                if (home / file).exists():
                    writing.move(home / file, out / file)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from error
