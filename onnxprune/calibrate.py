"""One streaming run over the data that collects statistics of chosen values, each reduced inside the model.

The model that runs is a copy with nodes added: a value is summed and sampled where it arises, so that a batch hands
over a few numbers and sampled rows instead of whole activations. Sums are kept in float64; memory does not grow with
the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, rows
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.parts import Engine, Parts
from onnxprune.rules.base import Dim
from onnxprune.runtime import run

Floats = NDArray[np.float64]

ROWS = 16384  # places of a value that are sampled in all, at most; fewer are enough for few channels
PER_CHANNEL = 8
DENSE = 4096  # the most channels of which all pairs are kept
DRAWN = "onnxprune_drawn"


@dataclass(eq=False)
class Statistics:
    """What was seen along one axis of a value.

    Attributes:
        samples: seen, over all batches.
        count: places seen, over all samples.
        total, squares: [channels], sums over all places of x and of x².
        rows: places that were sampled, for what follows.
        first: [channels], sums of x over those.
        second: [channels, channels], sums of x xᵀ over those; None where not wanted, or of too many channels.
    """

    total: Floats
    squares: Floats
    first: Floats
    second: Floats | None
    samples: int = 0
    count: int = 0
    rows: int = 0

    @property
    def mean(self) -> Floats:
        """[channels]."""
        return self.total / max(self.count, 1)

    @property
    def variance(self) -> Floats:
        """[channels]."""
        return np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0.0)

    @property
    def covariance(self) -> Floats:
        """[channels, channels] of the sampled places; a diagonal of variances where pairs were not kept."""
        if self.second is None:
            return np.diag(self.variance)
        mean = self.first / max(self.rows, 1)
        return self.second / max(self.rows, 1) - np.outer(mean, mean)

    def add(self, total: Array, squares: Array, sampled: Array, count: int, samples: int) -> None:
        """Another batch."""
        self.samples += samples
        self.total += total
        self.squares += squares
        self.count += count
        self.rows += len(sampled)
        self.first += sampled.sum(axis=0, dtype=np.float64)
        if self.second is not None:
            self.second += sampled.T @ sampled  # a batch in float32, the sum in float64


def calibrate(
    graph: Graph,
    batches: Iterable[Feed],
    wanted: Mapping[Dim, bool],
    engine: Engine,
    samples: int | None = None,
    seed: int = 0,
) -> dict[Dim, Statistics]:
    """Run a model over inputs and collect what its values are like.

    Args:
        graph: the model.
        batches: its inputs; gone through once.
        wanted: axes of values; true where all pairs of channels are wanted.
        engine: where it runs.
        samples: in the batches, if known: so many places are then taken of each that `ROWS` come together.
        seed: of the places sampled.

    Raises:
        DataError: NaN or infinity turned up; the first value that has it is named.
        ModelError: ONNX Runtime does not run the model.
    """
    order = {name: node.index for node in graph.nodes for name in node.outputs}
    dims = sorted(wanted, key=lambda d: (order.get(d.value, -1), d))
    found: dict[Dim, Statistics] = {}
    session, inputs, each = None, [], []
    rng = np.random.default_rng(seed)
    for feed in batches:
        if session is None:
            model = _instrumented(graph, dims, feed)
            session, inputs = engine.session(model), [i.name for i in model.graph.input if i.name in feed]
            none = {f"{DRAWN}_{number}": np.zeros(1, np.float32) for number in range(len(dims))}
            shapes = run(session, {n: feed[n] for n in inputs} | none, [_names(n)[3] for n in range(len(dims))])
            each = [_each(graph, d, s, rows(feed), samples) for d, s in zip(dims, shapes.values(), strict=True)]
        drawn = {f"{DRAWN}_{number}": _drawn(rng, count * rows(feed)) for number, count in enumerate(each)}
        made = run(session, {n: feed[n] for n in inputs} | drawn)
        for number, dim in enumerate(dims):
            total, squares, sampled, shape = (made[name] for name in _names(number))
            if not (np.isfinite(total).all() and np.isfinite(squares).all()):
                raise DataError(
                    f"{graph.name}: {dim.value!r} has NaN or infinite values on these inputs; check the data"
                )
            stats = found.setdefault(dim, _nothing(total.size, wanted[dim]))
            stats.add(total, squares, sampled, int(shape.prod()) // max(total.size, 1), rows(feed))
    return found


def _each(graph: Graph, dim: Dim, shape: Array, samples: int, in_all: int | None) -> int:
    """How many places of a value are sampled in a sample: as many as the moments of its channels need, if it has them.

    Args:
        graph, dim: the value, and the axis of its channels.
        shape: of the value in a batch.
        samples: in that batch.
        in_all: samples in all batches, if known.
    """
    channels = _width(graph, dim)
    wanted = -(-min(ROWS, max(ROWS // 8, PER_CHANNEL * channels)) // (in_all or 128))
    return int(max(1, min(wanted, shape.prod() // max(channels * samples, 1))))


def _drawn(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Places as fractions, one in each of `count` equal stretches: none is drawn twice where there are as many."""
    return ((np.arange(count) + rng.random(count) * 0.999) / count).astype(np.float32)


def _nothing(channels: int, pairs: bool) -> Statistics:
    second = np.zeros((channels, channels)) if pairs and channels <= DENSE else None
    total, squares, first = np.zeros((3, channels))
    return Statistics(total, squares, first, second)


def _instrumented(graph: Graph, dims: Sequence[Dim], feed: Feed) -> ModelProto:
    """The model up to the values, and nodes that reduce them."""
    values = list(dict.fromkeys(d.value for d in dims if d.value not in feed))
    model = Parts(graph).part(0, len(graph.nodes), {n: v.dtype for n, v in feed.items()}, values)
    known = {i.name for i in model.graph.input}
    for name in {d.value: None for d in dims if d.value in feed and d.value not in known}:
        kind = helper.np_dtype_to_tensor_dtype(feed[name].dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    constants = {"axis": np.array([0], np.int64), "first": np.array(0, np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(v, f"onnxprune_{n}") for n, v in constants.items())
    del model.graph.output[:]
    for number, dim in enumerate(dims):
        flat = np.array([-1, _width(graph, dim)], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(flat, f"onnxprune_flat_{number}"))
        model.graph.input.append(helper.make_tensor_value_info(f"{DRAWN}_{number}", TensorProto.FLOAT, None))
        model.graph.node.extend(_reductions(dim, len(graph.shapes[dim.value] or ()), number, opset))
        model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in _names(number))
    return model


def _width(graph: Graph, dim: Dim) -> int:
    size = (graph.shapes[dim.value] or ())[dim.axis]
    if not isinstance(size, int):
        raise DataError(f"{graph.name}: the channels of {dim.value!r} are not known; give --shape")
    return size


def _names(number: int) -> list[str]:
    return [f"onnxprune_{what}_{number}" for what in ("total", "squares", "sampled", "shape")]


def _reductions(dim: Dim, rank: int, number: int, opset: int) -> Iterator[NodeProto]:
    """Nodes that bring one axis to the end, flatten the others, sum over them and sample them."""
    total, squares, sampled, shape = _names(number)
    n = {
        name: f"onnxprune_{name}_{number}" for name in ("float", "last", "rows", "size", "places", "at", "index", "sq")
    }
    yield helper.make_node("Shape", [dim.value], [shape])
    yield helper.make_node("Cast", [dim.value], [n["float"]], to=TensorProto.FLOAT)
    perm = [a for a in range(rank) if a != dim.axis] + [dim.axis]
    yield helper.make_node("Transpose", [n["float"]], [n["last"]], perm=perm)
    yield helper.make_node("Reshape", [n["last"], f"onnxprune_flat_{number}"], [n["rows"]])
    yield helper.make_node("Mul", [n["rows"], n["rows"]], [n["sq"]])
    for source, name in ((n["rows"], total), (n["sq"], squares)):
        if opset < 13:
            yield helper.make_node("ReduceSum", [source], [name], axes=[0], keepdims=0)
        else:
            yield helper.make_node("ReduceSum", [source, "onnxprune_axis"], [name], keepdims=0)
    yield helper.make_node("Shape", [n["rows"]], [n["size"]])
    yield helper.make_node("Gather", [n["size"], "onnxprune_first"], [n["places"]])
    yield helper.make_node("Cast", [n["places"]], [n["places"] + "f"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{DRAWN}_{number}", n["places"] + "f"], [n["at"]])
    yield helper.make_node("Cast", [n["at"]], [n["index"]], to=TensorProto.INT64)
    yield helper.make_node("Gather", [n["rows"], n["index"]], [sampled])


def shapes_met(coupling: Coupling, feed: Feed, engine: Engine) -> dict[str, tuple[int, ...]]:
    """The shapes that values have on an input whose sizes the model leaves open, as far as its costs depend on them."""
    graph = coupling.graph
    names = {d.value for _, spec in coupling.linears for d in spec.cost}
    names |= {name for view in coupling.views if view.node.op == "MatMul" for name in view.node.inputs}
    names = {n for n in names if any(not isinstance(s, int) for s in graph.shapes.get(n) or ())} - graph.fixed
    found = {n: feed[n].shape for n in names if n in feed}
    wanted = sorted(names - set(feed) - set(graph.constants))
    if not wanted:
        return found
    model = Parts(graph).part(0, len(graph.nodes), {n: v.dtype for n, v in feed.items()}, wanted)
    del model.graph.output[:]
    for name in wanted:
        model.graph.node.append(helper.make_node("Shape", [name], [f"onnxprune_shape_{name}"]))
        model.graph.output.append(helper.make_empty_tensor_value_info(f"onnxprune_shape_{name}"))
    inputs = {i.name: feed[i.name] for i in model.graph.input}
    shapes = run(engine.session(model), inputs).values()
    return found | {n: tuple(s.tolist()) for n, s in zip(wanted, shapes, strict=True)}
