"""What a pass is given and what it gives back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from onnxprune.batches import of_batch
from onnxprune.calibrate import shapes_met
from onnxprune.cost import macs
from onnxprune.coupling import couple
from onnxprune.data import Feeds
from onnxprune.divergence import signatures
from onnxprune.errors import DataError
from onnxprune.feeds import Feed, input_specs, random_feeds
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.padding import without_padding
from onnxprune.parts import Engine
from onnxprune.plan import Plan
from onnxprune.rules.base import Options
from onnxprune.samples import Samples, check, clusters, split, thinned
from onnxprune.tensors import Store, copied, in_proto, tensors_of
from onnxprune.writing import stream

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What every pass may use.

    Attributes:
        provider: the execution provider that the model is for, by its short name.
        threads: threads inside an operator; None: ONNX Runtime's choice.
        data: the user's inputs, if given.
        shapes: input name -> shape, for inputs that the model leaves open.
        batch: samples in a run where latency is measured; None: as the data have them, else 1.
        bench_seconds: the most time for a comparison of latencies; 0: nothing is run to be timed.
        before: the model that the last cut was made of; None: nothing was cut yet.
        plan: that cut; None: no channels went.
        touched: results of contractions that lost none, but whose inputs the cut changed (see `Outcome`).
        memo: what a pass found out that another may need.
        shared: other runs on the same model, data and options have the memo, too.
        on_stage: told the name of every stage as it begins.
        seconds: stage -> seconds, filled as stages end.
        file: set where weights are external: passes then write their models (`make`) under this name, each in a
            temporary folder of its own beside this one, and never hold all weights.
    """

    provider: str = "cpu"
    threads: int | None = None
    data: Feeds | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    on_stage: Callable[[str], None] = lambda name: None
    seconds: dict[str, float] = field(default_factory=dict)
    file: Path | None = None
    before: Graph | None = None
    plan: Plan | None = None
    touched: frozenset[str] = frozenset()
    memo: dict[Hashable, Any] = field(default_factory=dict)
    shared: bool = False
    bench_seconds: float = 0.0
    batch: int | None = None

    def whole(self, model: ModelProto | Path, folder: Path | None) -> ModelProto | Path:
        """A model with all its weights: a pass that copies one leaves external data in the `folder` of the original."""
        if isinstance(model, Path) or not any(map(uses_external_data, tensors_of(model))):
            return model
        return self.make(lambda store: copied(model, folder, store))

    def make(self, maker: Callable[[Store], ModelProto], name: str | None = None) -> ModelProto | Path:
        """What `maker` makes with the store that it is given: a model in memory; a file, where weights are external."""
        if self.file is None:
            return maker(in_proto)
        folder = Path(tempfile.mkdtemp(dir=self.file.parent))
        return stream(folder / (name or self.file.name), maker)

    def feeds(self, graph: Graph) -> list[Feed]:
        """What a latency is measured on: the data, or random inputs, which alone know of the sizes that were asked for.

        Raises:
            ShapeError, DataError: a size is missing, or there is no such batch.
        """
        data = None if self.shapes else self.data
        if self.batch is not None:
            return [of_batch(graph.proto, self.batch, data, self.shapes)]
        if data is not None:
            return list(islice(data, 1))
        return random_feeds(input_specs(graph.proto), shapes=self.shapes)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was first asked for under this key."""
        if key not in self.memo:
            self.memo[key] = make()
        return cast(T, self.memo[key])

    def couple(self, graph: Graph, options: Options) -> Coupling:
        """The analysis of a model, observed; made once for a graph and its options."""

        def make() -> Coupling:
            coupling = couple(graph, options)
            self.observe(coupling)
            return coupling

        return self.once(("coupling", graph, options), make)

    def observe(self, coupling: Coupling) -> None:
        """Let sizes that the model leaves open count in costs as the data have them."""
        feed = next(iter(self.data.samples()), None) if self.data is not None else None
        if feed is not None:
            coupling.observed = shapes_met(coupling, feed, Engine(self.provider, self.threads))

    def samples(self, coupling: Coupling) -> Samples:
        """The data in parts, by what the original answers to them.

        Args:
            coupling: the analysis of the original, observed.

        Raises:
            DataError: none are given, or too few.
        """
        graph = coupling.graph
        if self.data is None:
            raise DataError(f"{graph.name}: this needs inputs; give --data (or --data synthetic)")
        data = self.data

        def make() -> Samples:
            feeds, seen = thinned(data.samples())
            check(feeds, seen, graph.name)
            with self.stage("data"):
                short = [without_padding(feed, data.inputs) for feed in feeds]
                alike = clusters(signatures(graph, short, Engine(self.provider, self.threads)))
            return split(feeds, data.inputs, alike, seen, macs(coupling).before)

        return self.once("samples", make)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; the same name again adds up."""
        self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Proof:
    """What shows that a pass did what it says: two models that compute the same function.

    Attributes:
        oracle: makes the one, a model or its path: what the pass was given, with what it takes away set to zero, say.
        cut: the other one; None: the model that the pass made.
        exact: whether a difference beyond rounding is an error.
        what: the oracle in words.
    """

    oracle: Callable[[], ModelProto | Path]
    cut: ModelProto | Path | None = None
    exact: bool = True
    what: str = "the masked original"


@dataclass(frozen=True, eq=False)
class Outcome:
    """The model that a pass made.

    Attributes:
        model: the new model or its file; the old one is untouched.
        notes: entries for the record.
        plan: the channels that were cut, if any were.
        replays: the plan alone makes the model: no other weights changed.
        touched: where something else was cut: first outputs of the contractions that read what this changed, and whose
            weights `reconstruct` is to fit anew. Nodes that stay keep the names of their outputs.
        proof: that the function is the one that it should be; None: there is nothing to compare with.
        said: what was done and what it brings, in a sentence for the table.
    """

    model: ModelProto | Path
    notes: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    replays: bool = True
    touched: frozenset[str] = frozenset()
    proof: Proof | None = None
    said: str = ""


class Pass(Protocol):
    """A frozen dataclass whose fields are its options."""

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Make a new model from `graph`."""
