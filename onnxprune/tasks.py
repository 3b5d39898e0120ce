"""The parts of a sweep that may be done anywhere: prune a model for some targets, here or where an executor does it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from onnxprune import words
from onnxprune.data import SYNTHETIC, Data
from onnxprune.errors import ExecutorError, OutputError, TargetError, one_line
from onnxprune.metric import file_of
from onnxprune.pipeline import Model
from onnxprune.pruning import prune
from onnxprune.runtime import model_name
from onnxprune.target import parse_target
from onnxprune.validate import Checks

Answer = dict[str, Any]
Tell = Callable[[str], None]
LEAST_SECONDS = 1.0
FIGURES = ("params", "macs", "file_bytes", "fidelity", "metric")


@dataclass(frozen=True)
class Task:
    """A model and targets that share its analysis and its calibration.

    Attributes:
        model: a path, or a model in memory.
        files: target -> the name of the file that it gets.
        options: of `prune`.
    """

    model: Model
    files: Mapping[str, str]
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What the user calls the model."""
        return model_name(self.model)

    def dealt(self, count: int) -> list[Task]:
        """The targets on so many tasks: every so many of them in each, since small models take longest to find."""
        items = list(self.files.items())
        count = min(count, len(items))
        return [replace(self, files=dict(items[first::count])) for first in range(count)]

    def portable(self) -> Task:
        """The same for a process that is in another folder."""
        model = self.model if not isinstance(self.model, str | os.PathLike) else os.path.abspath(self.model)
        options = {**self.options, "data": _portable(self.options.get("data"))}
        metric = options.get("metric")
        if isinstance(metric, str) and file_of(metric):
            options["metric"] = os.path.abspath(metric)
        return replace(self, model=model, options=options)


class Executor(Protocol):
    """What is asked of an executor: those of `concurrent.futures` have it, and Dask's `Client.get_executor()`."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A future, with `result()` and `cancel()`."""


def here(task: Task, folder: Path, tell: Tell) -> list[Answer]:
    """Prune for every target, and leave the models in a folder; latencies are not measured.

    Returns:
        For each target a dict with `target`, `seconds`, and `error` or the figures of its record.

    Raises:
        OnnxPruneError: anything but a target that cannot be met.
    """
    memo: dict[Hashable, Any] = {}
    return [_pruned(task, target, folder / file, memo, tell) for target, file in task.files.items()]


def away(task: Task) -> list[Answer]:
    """As `here`, in another process or on another machine: the models come back as `files`, name -> bytes."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        answers = here(task, folder, lambda text: None)
        for answer in answers:
            file = task.files[answer["target"]]
            paths = (folder / file, folder / f"{file}.data")
            answer["files"] = {path.name: path.read_bytes() for path in paths if path.exists()}
        return answers


def sent(
    executor: Executor, tasks: Sequence[Sequence[Task]], folders: Sequence[Path], tell: Tell
) -> list[list[Answer]]:
    """Let an executor do all tasks, and put the models that come back into folders.

    Args:
        executor: where they are done.
        tasks: rows of them.
        folders: one for each row.
        tell: told about progress.

    Returns:
        The answers of each row.

    Raises:
        ExecutorError: a worker died, or lacks a package.
        OnnxPruneError: as `here`; what has not begun is not begun any more.
    """
    rows: list[list[Any]] = []
    try:
        for row in tasks:
            rows.append([])
            for task in row:
                rows[-1].append(executor.submit(away, task.portable()))
        total, done, found = sum(map(len, rows)), 0, list[list[Answer]]()
        for row, folder in zip(rows, folders, strict=True):
            found.append([])
            for future in row:
                done += 1
                tell(f"task {done}/{total}")
                found[-1] += [_stored(answer, folder) for answer in future.result()]
        return found
    except BrokenExecutor as error:
        said = one_line(error)
        raise ExecutorError(f"a worker is gone ({said}); it may lack memory: use fewer workers") from error
    except CancelledError as error:
        raise ExecutorError("the tasks were cancelled: see whether the cluster is still there") from error
    except ImportError as error:
        raise ExecutorError(
            f"a worker lacks a package ({one_line(error)}); install it where the workers run"
        ) from error
    finally:
        for row in rows:
            for future in row:
                future.cancel()


def _pruned(task: Task, target: str, file: Path, memo: dict[Hashable, Any], tell: Tell) -> Answer:
    start, answer = time.perf_counter(), {"target": target}
    timed = parse_target(target).kind == "latency"  # then the cut is chosen by the clock
    try:
        record = prune(
            task.model,
            target,
            out=file,
            checks=Checks(seconds=LEAST_SECONDS if timed else 0.0),
            on_stage=lambda stage: tell(f"{target}: {stage}"),
            memo=memo,
            **task.options,
        ).record
        figures = {name: record[name] for name in FIGURES if name in record}
        answer |= figures | {"notes": words.warnings(record)}
    except TargetError as error:
        answer["error"] = str(error)
    return answer | {"seconds": time.perf_counter() - start}


def _stored(answer: Answer, folder: Path) -> Answer:
    try:
        for name, data in answer.pop("files").items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error
    return answer


def _portable(data: Any) -> Any:
    """Data by an absolute path, if they are a path."""
    if isinstance(data, Data):
        return replace(data, source=_portable(data.source))
    if data == SYNTHETIC if isinstance(data, str) else not isinstance(data, os.PathLike):
        return data
    return os.path.abspath(data)
