"""What a pass is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from onnx import ModelProto

from onnxprune.data import Feeds
from onnxprune.graph import Graph
from onnxprune.plan import Plan


@dataclass(frozen=True)
class Context:
    """What every pass may use.

    Attributes:
        provider: the execution provider that the model is for, by its short name.
        threads: threads inside an operator; None: ONNX Runtime's choice.
        data: the user's inputs, if given.
        shapes: input name -> shape, for inputs that the model leaves open.
        on_stage: told the name of every stage as it begins.
        seconds: stage -> seconds, filled as stages end.
    """

    provider: str = "cpu"
    threads: int | None = None
    data: Feeds | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    on_stage: Callable[[str], None] = lambda name: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; the same name again adds up."""
        self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Outcome:
    """The model that a pass made.

    Attributes:
        model: the new model; the old one is untouched.
        notes: entries for the record.
        plan: what was cut, if anything was.
        masked: makes the oracle, a model (or its path) that must compute the same function; None: there is none.
    """

    model: ModelProto
    notes: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    masked: Callable[[], ModelProto | Path] | None = None


class Pass(Protocol):
    """A frozen dataclass whose fields are its options."""

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Make a new model from `graph`."""
