"""The user's own measure of a model: a function that is given something to run, and says how good it is."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune import runtime
from onnxprune.errors import MESSAGE_LIMIT, MetricError, one_line
from onnxprune.feeds import input_specs, suited

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

WANTED = "return a number, or a dict from names to numbers"


@dataclass(frozen=True, eq=False)
class Run:
    """A model as the function sees it: `run({"x": images})["y"]`.

    Attributes:
        inputs, outputs: the names.
    """

    session: InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs for an array for each input."""
        if not hasattr(feed, "items"):
            raise TypeError(f"run() takes a dict from input name to array, as in {{'{self.inputs[0]}': array}}")
        given = {name: np.asarray(array) for name, array in feed.items()}
        return runtime.run(self.session, suited(given, input_specs(self.session)))


@dataclass(frozen=True)
class Metric:
    """A function that measures a model.

    Attributes:
        name: what the user calls it, as in `metric.py:accuracy`.
        function: takes a `Run`; returns a number, or a dict from names to numbers.
        label: the name of a single number.
        folders: what it may import from besides what is installed.
    """

    name: str
    function: Callable[[Run], Any]
    label: str
    folders: tuple[str, ...] = ()


def load(source: object) -> Metric:
    """The metric that a callable or `MODULE:FUNCTION` stands for; MODULE may be a `.py` file.

    Raises:
        MetricError: there is none, or it does not load.
    """
    if isinstance(source, Metric):
        return source
    if isinstance(source, str):
        return _named(source)
    if not callable(source):
        raise MetricError(f"--metric {source!r}: give a function, or MODULE:FUNCTION as in metric.py:accuracy")
    label = getattr(source, "__name__", type(source).__name__)
    return Metric(label, source, label)


def file_of(text: str | None) -> str | None:
    """The file that `MODULE:FUNCTION` names, if it names one."""
    module = (text or "").rpartition(":")[0]
    return module if module.endswith(".py") else None


def measure(
    metric: Metric,
    model: runtime.Model,
    provider: str,
    threads: int | None,
    *,
    which: str,
    lean: bool = False,
) -> dict[str, float]:
    """What the metric says of a model, by name.

    Args:
        metric: the metric.
        model: a path or a model in memory.
        provider: the execution provider by its short name.
        threads: threads inside an operator.
        which: what messages call the model.
        lean: for a model whose weights are better not copied.

    Raises:
        MetricError: the function raises, or returns something else.
        ModelError, ProviderError: as `runtime.session`.
    """
    config = runtime.LEAN if lean else None
    ready = runtime.session(model, provider, threads, optimize=not lean, arena=not lean, config=config)
    names = [tuple(each.name for each in side) for side in (ready.get_inputs(), ready.get_outputs())]
    try:
        with _importing(metric.folders):
            answer = metric.function(Run(ready, *names))
    except (Exception, SystemExit) as error:
        text = f"the function raised {_told(error)} on {which}; ONNXPRUNE_DEBUG=1 shows where"
        raise MetricError(f"--metric {metric.name}: {text}") from error
    return _numbers(metric, answer, which)


def _named(text: str) -> Metric:
    """The metric that the command line names."""
    start = f"--metric {text}: "
    name, _, label = text.rpartition(":")
    if not name or not label:
        raise MetricError(f"{start}write MODULE:FUNCTION, as in metric.py:accuracy")
    file = file_of(text)
    if file and not os.path.isfile(file):
        raise MetricError(f"{start}{file}: no such file; check the path")
    folders = (*([str(Path(file).resolve().parent)] if file else []), os.getcwd())
    importlib.invalidate_caches()
    try:
        with _importing(folders):
            module = _executed(Path(file)) if file else importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if missing or name.startswith("."):
            text = f"no module {name}, here or installed; a file is named with its .py"
            raise MetricError(start + text) from error
        raise MetricError(f"{start}{name} does not load ({_told(error)}); correct it first") from error
    if not hasattr(module, label):
        near = get_close_matches(label, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the name"
        raise MetricError(f"{start}{name} has no {label!r}; {hint}")
    function = getattr(module, label)
    if not callable(function):
        raise MetricError(f"{start}{label} is a {type(function).__name__}, not a function; name one")
    return Metric(text, function, label, folders)


def _executed(path: Path) -> ModuleType:
    """A file as a module, under a name that takes no other's place."""
    module = ModuleType(f"onnxprune_metric_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


@contextmanager
def _importing(folders: tuple[str, ...]) -> Iterator[None]:
    """Let modules be found in these folders, too, and leave no byte code there."""
    sys.path[:0] = folders
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = kept
        for folder in folders:
            if folder in sys.path:
                sys.path.remove(folder)


def _told(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}".rstrip(": "), MESSAGE_LIMIT)


def _numbers(metric: Metric, answer: Any, which: str) -> dict[str, float]:
    """The answer as a dict of floats; infinity is one."""
    start = f"--metric {metric.name}: returned"
    if isinstance(answer, Mapping):
        if not answer:
            raise MetricError(f"{start} an empty dict; {WANTED}")
        for name in answer:
            if not isinstance(name, str):
                raise MetricError(f"{start} a dict with the name {name!r}; {WANTED}")
    found = {}
    for name, value in answer.items() if isinstance(answer, Mapping) else [(metric.label, answer)]:
        of = f" for {name!r}" if isinstance(answer, Mapping) else ""
        plain: Any = value.item() if getattr(value, "ndim", None) == 0 else value  # of NumPy, or of a framework
        if isinstance(plain, bool) or not isinstance(plain, Real):
            raise MetricError(f"{start} a {type(plain).__name__}{of}; {WANTED}")
        if math.isnan(plain):
            raise MetricError(f"{start} NaN{of} on {which}; {WANTED}")
        found[name] = float(plain)
    return found
