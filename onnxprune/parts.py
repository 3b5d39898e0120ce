"""A model run part by part: the values that cross the cut between two parts are kept for every batch of inputs.

So a long walk through a model, stopping at every layer, costs one run of it; and what comes after a cut can be run
again and again, with other weights, without what comes before.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import ModelError
from onnxprune.feeds import Array, Feed
from onnxprune.graph import PROTOBUF_LIMIT, Graph
from onnxprune.patch import NOTHING, Patch
from onnxprune.runtime import LEAN, processors, run, session
from onnxprune.tensors import FLOATS, Bytes, Store, in_proto
from onnxprune.writing import INLINE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Types of weights that NumPy and ONNX Runtime both know; others may be sizes, by which shapes are inferred.
SHARED = FLOATS - {TensorProto.BFLOAT16} | {TensorProto.INT8, TensorProto.UINT8}
IN_MEMORY = 3 << 29  # bytes of values kept in memory; the rest goes to files


@dataclass(frozen=True)
class Engine:
    """Where parts run."""

    provider: str = "cpu"
    threads: int | None = None

    def session(self, model: ModelProto, weights: Mapping[str, Array] | None = None) -> InferenceSession:
        """A session that keeps no memory between runs: many come and go. `weights`: those beside the model."""
        return session(model, self.provider, self.threads, arena=False, config=LEAN, weights=weights)

    def ready(self, make: Callable[[Store], ModelProto]) -> Ready:
        """What runs the model that `make` makes with the store that it is given."""
        # Other providers take some weights from the message.
        apart = Apart() if self.provider == "cpu" else None
        model = make(in_proto if apart is None else apart)
        weights = None if apart is None else apart.weights
        return Ready(self.session(model, weights), tuple(i.name for i in model.graph.input))

    @property
    def workers(self) -> int:
        """How many things may be done at once: as many as threads were asked for, else processors."""
        return self.threads or processors()


class Apart:
    """A store for larger weights beside a model in memory: inside they would be copied with it, again and again.

    Attributes:
        weights: by name; read-only.
    """

    def __init__(self) -> None:
        """Empty."""
        self.weights: dict[str, Array] = {}

    def __call__(self, tensor: TensorProto, data: Bytes) -> None:
        """Keep the bytes of a tensor, and say in the tensor that they are elsewhere."""
        if len(data) < INLINE or tensor.data_type not in SHARED:
            in_proto(tensor, data)
            return
        array = np.frombuffer(data, helper.tensor_dtype_to_np_dtype(tensor.data_type))
        self.weights[tensor.name] = array.reshape(tuple(tensor.dims))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="apart")


@dataclass(frozen=True, eq=False)
class Ready:
    """A session, and the names of its inputs."""

    session: InferenceSession
    inputs: Sequence[str]

    def __call__(self, values: Mapping[str, _Kept], outputs: Sequence[str]) -> dict[str, Any]:
        """A run; of the values it takes those that it reads."""
        return run(self.session, {name: values[name].get() for name in self.inputs}, outputs)


@dataclass(frozen=True, eq=False)
class Parts:
    """How a model falls into parts: nodes by index, in the order of the file.

    Attributes:
        graph: the model.
        kept: values that are needed to the end, as outputs are.
    """

    graph: Graph
    kept: Collection[str] = ()

    def part(
        self,
        start: int,
        stop: int,
        inputs: Mapping[str, np.dtype[Any]],
        outputs: Sequence[str],
        patch: Patch = NOTHING,
        store: Store = in_proto,
    ) -> ModelProto:
        """The model that computes `outputs` from `inputs`, values that are there before node `start`.

        Weights, and what is made of weights alone, are part of it wherever they stand; they go into a store.

        Raises:
            ModelError: its weights are more than a message holds.
        """
        graph = self.graph
        needed, nodes = set(outputs), []
        for node in reversed(graph.nodes[:stop]):
            fixed = node.index < start and bool(node.outputs) and node.outputs[0] in graph.fixed
            if (node.index >= start or fixed) and needed.intersection(node.outputs):
                if node.outputs[0] in graph.constants:
                    continue
                nodes.append(node)
                needed.update(filter(None, (*node.inputs, *node.captures)))
        protos = [_copy(node.proto) for node in reversed(nodes)]
        fresh = patch.rewire(protos)
        # ONNX Runtime forgets what nothing reads any more, and refuses data for it.
        read = {*outputs, *(n for node in nodes for n in node.captures), *(n for p in protos for n in p.input)}
        needed |= read
        weights = [patch.put(TensorProto(), graph, name, store) for name in sorted(read & graph.constants.keys())]
        if sum(t.ByteSize() for t in weights) >= PROTOBUF_LIMIT:
            raise ModelError(f"{graph.name}: too big to be run in parts; use --criterion l2 and --recover none")
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
            for name, dtype in inputs.items()
            if name in needed and name not in graph.constants
        ]
        made = helper.make_graph(protos, "part", given, [ValueInfoProto(name=n) for n in outputs], [*weights, *fresh])
        model = helper.make_model(made, opset_imports=graph.proto.opset_import)
        model.ir_version = max(4, graph.proto.ir_version)
        model.functions.extend(graph.proto.functions)
        return model

    def crossing(self, stop: int) -> list[str]:
        """Values that nodes before `stop` compute, or inputs, and that are needed from there on."""
        return [name for name, last in self._last.items() if self._made.get(name, -1) < stop <= last]

    @cached_property
    def _made(self) -> dict[str, int]:
        return {name: node.index for node in self.graph.nodes for name in node.outputs if name}

    @cached_property
    def _last(self) -> dict[str, int]:
        """Value that is computed from inputs -> the last node that reads it; outputs are needed to the end."""
        graph, last = self.graph, {}
        for node in graph.nodes:
            for name in (*node.inputs, *node.captures):
                if name and name not in graph.fixed and name not in graph.constants:
                    last[name] = node.index
        computed = set(self._made) | set(graph.inputs)
        last |= {name: len(graph.nodes) for name in (*graph.outputs, *self.kept) if name in computed}
        return last


class Walk:
    """Runs a model over batches from its inputs to its outputs, in as many steps as the caller likes."""

    def __init__(self, graph: Graph, batches: Iterable[Feed], engine: Engine, kept: Collection[str] = ()) -> None:
        """At the inputs.

        Args:
            graph: the model.
            batches: what it is fed with; kept, as all values that cross the place where the walk stands.
            engine: where it runs.
            kept: values that `rest` will be asked for; they are kept, too, from where they are computed.
        """
        self.parts, self.engine, self.at, self.patch = Parts(graph, kept), engine, 0, NOTHING
        self._shelf = _Shelf()
        self._values = [{name: self._shelf.put(value) for name, value in feed.items()} for feed in batches]

    def __len__(self) -> int:
        return len(self._values)

    def close(self) -> None:
        """Forget all values."""
        self._values.clear()
        self._shelf.close()

    def advance(self, stop: int, wanted: Sequence[str] = ()) -> Iterator[dict[str, Array]]:
        """Run all nodes before `stop`; for each batch the wanted values. The iterator has to be used up.

        Args:
            stop: index of the first node that does not run yet.
            wanted: values that are there before `stop`.

        Raises:
            ModelError: ONNX Runtime does not run the model; a value that is no tensor crosses the cut.
        """
        crossing = self.parts.crossing(stop)
        here = self._values[0] if self._values else {}
        new = [n for n in dict.fromkeys((*wanted, *crossing)) if n not in here]
        ready = None
        if new and here:
            types = {n: v.dtype for n, v in here.items()}
            ready = self.engine.ready(partial(self.parts.part, self.at, stop, types, new, self.patch))
        for values in self._values:
            made = {}
            if ready:
                made = ready(values, new)
            result = {n: made[n] if n in made else values[n].get() for n in wanted}
            for name in [n for n in values if n not in crossing]:
                del values[name]
            for name in crossing:
                if name in made:
                    if not isinstance(made[name], np.ndarray):
                        raise ModelError(f"{self.parts.graph.name}: {name!r} is no tensor; use --recover none")
                    values[name] = self._shelf.put(made[name])
            yield result
        self.at = stop

    def go(self, stop: int) -> None:
        """Run all nodes before `stop`."""
        for _ in self.advance(stop):
            pass

    def here(self) -> Place:
        """Where the walk stands, with what is needed to go on from there; the walk may go on meanwhile."""
        return Place(self.parts, self.at, self.patch, tuple(dict(values) for values in self._values))

    def rest(self, patch: Patch, outputs: Sequence[str], engine: Engine) -> Iterator[dict[str, Array]]:
        """The outputs for every batch, if from here on the model had other weights; the walk stays where it is."""
        return self.here().rest(patch, outputs, engine)


@dataclass(frozen=True, eq=False)
class Place:
    """A cut through a model, and for every batch the values that cross it."""

    parts: Parts
    at: int
    patch: Patch
    values: tuple[Mapping[str, _Kept], ...]

    def rest(self, patch: Patch, outputs: Sequence[str], engine: Engine) -> Iterator[dict[str, Array]]:
        """The outputs for every batch, if from here on the model had other weights."""
        here = self.values[0]
        new = [name for name in outputs if name not in here]
        ready = None
        if new:
            stop, types = len(self.parts.graph.nodes), {n: v.dtype for n, v in here.items()}
            ready = engine.ready(partial(self.parts.part, self.at, stop, types, new, self.patch | patch))
        for values in self.values:
            found = {n: values[n].get() for n in outputs if n in values}
            if ready:
                found |= ready(values, new)
            yield found


class _Kept:
    """A value on the shelf: the array, or the file that has it. It leaves the shelf when nobody holds it any more."""

    def __init__(self, value: Array | Path, array: Array) -> None:
        self.value, self.dtype = value, array.dtype

    def get(self) -> Array:
        return np.load(self.value) if isinstance(self.value, Path) else self.value


class _Shelf:
    """Arrays that wait: in memory as far as there is room, else in files."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._bytes = self._files = 0

    def put(self, array: Array) -> _Kept:
        if self._bytes + array.nbytes <= IN_MEMORY:
            self._bytes += array.nbytes
            kept = _Kept(array, array)
            weakref.finalize(kept, self._less, array.nbytes)
            return kept
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, array)
        kept = _Kept(path, array)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def _less(self, nbytes: int) -> None:
        self._bytes -= nbytes

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _copy(proto: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(proto)
    return copy
