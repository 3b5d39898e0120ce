"""A copy of a model that also reduces chosen values where they arise: it hands over a few numbers, not activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import DataError
from onnxprune.feeds import Feed
from onnxprune.graph import Graph
from onnxprune.parts import Parts
from onnxprune.rules.base import Dim
from onnxprune.tensors import Store, in_proto


class Want(Flag):
    """What is collected of a value's channels besides the sums of x and x²."""

    SUMS = 0
    PAIRS = auto()  # products of all pairs of channels, at sampled places
    ZEROS = auto()  # how often each is exactly 0
    HISTOGRAM = auto()  # of each, at sampled places
    ABSOLUTE = auto()  # sums of |x|
    RANKS = auto()  # of the maps of each, in a few samples; for values that are maps (see `maps_of`)


PICKED = "onnxprune_picked"  # input: the samples whose maps are wanted, as fractions of all


@dataclass(frozen=True)
class Probe:
    """What is collected along one axis of one value.

    Attributes:
        number: of this probe in its model; part of the names of what is added for it.
        dim: the axis of the channels.
        channels: how many.
        want: what is collected.
    """

    number: int
    dim: Dim
    channels: int
    want: Want

    @property
    def samples(self) -> bool:
        """Whether places are sampled; the input `drawn` says which, as fractions of all."""
        return bool(self.want & (Want.PAIRS | Want.HISTOGRAM))

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the model gives: [channels] sums, the shape, [samples, channels, ...] maps, [places, channels] rows."""
        more = {Want.ZEROS: "nonzero", Want.ABSOLUTE: "absolute", Want.RANKS: "maps"}
        found = (name for want, name in more.items() if want in self.want)
        return "total", "squares", "shape", *found, *(("sampled",) if self.samples else ())

    def name(self, what: str) -> str:
        """How a value that is added for this probe is called in the model."""
        return f"onnxprune_{what}_{self.number}"


def probes_of(graph: Graph, wanted: Mapping[Dim, Want]) -> list[Probe]:
    """Probes in the order in which their values are computed.

    Raises:
        DataError: the number of channels is not known.
    """
    order = {name: node.index for node in graph.nodes for name in node.outputs}
    dims = sorted(wanted, key=lambda d: (order.get(d.value, -1), d))
    return [Probe(number, dim, _width(graph, dim), wanted[dim]) for number, dim in enumerate(dims)]


def _width(graph: Graph, dim: Dim) -> int:
    size = (graph.shapes[dim.value] or ())[dim.axis]
    if not isinstance(size, int):
        raise DataError(f"{graph.name}: the channels of {dim.value!r} are not known; give --shape")
    return size


def instrumented(graph: Graph, probes: Sequence[Probe], feed: Feed, store: Store = in_proto) -> ModelProto:
    """The model up to the values, and nodes that reduce them.

    Args:
        graph: the model; not changed.
        probes: what is collected.
        feed: an input such as it will get.
        store: where the weights go.
    """
    values = list(dict.fromkeys(p.dim.value for p in probes if p.dim.value not in feed))
    model = Parts(graph).part(0, len(graph.nodes), {n: v.dtype for n, v in feed.items()}, values, store=store)
    known = {i.name for i in model.graph.input}
    for name in {p.dim.value: None for p in probes if p.dim.value in feed and p.dim.value not in known}:
        kind = helper.np_dtype_to_tensor_dtype(feed[name].dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    constants = {"axis": np.array([0], np.int64), "first": np.array(0, np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(v, f"onnxprune_{n}") for n, v in constants.items())
    del model.graph.output[:]
    if any(Want.RANKS in p.want for p in probes):
        model.graph.input.append(helper.make_tensor_value_info(PICKED, TensorProto.FLOAT, None))
    for probe in probes:
        rank = len(graph.shapes[probe.dim.value] or ())
        flat = np.array([-1, probe.channels], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(flat, probe.name("flat")))
        model.graph.node.extend(_sums(probe, rank, opset))
        if Want.RANKS in probe.want:
            model.graph.node.extend(_maps(probe, rank))
        if probe.samples:
            model.graph.input.append(helper.make_tensor_value_info(probe.name("drawn"), TensorProto.FLOAT, None))
            model.graph.node.extend(_sampled(probe))
        model.graph.output.extend(helper.make_empty_tensor_value_info(probe.name(what)) for what in probe.outputs)
    return model


def _sums(probe: Probe, rank: int, opset: int) -> Iterator[NodeProto]:
    """Nodes that bring the axis to the end, flatten the others, and sum over them."""
    value, axis, n = probe.dim.value, probe.dim.axis, probe.name
    yield helper.make_node("Shape", [value], [n("shape")])
    yield helper.make_node("Cast", [value], [n("float")], to=TensorProto.FLOAT)
    perm = [a for a in range(rank) if a != axis] + [axis]
    yield helper.make_node("Transpose", [n("float")], [n("last")], perm=perm)
    yield helper.make_node("Reshape", [n("last"), n("flat")], [n("rows")])
    yield helper.make_node("Mul", [n("rows"), n("rows")], [n("sq")])
    summed = {"rows": "total", "sq": "squares"}
    if Want.ZEROS in probe.want:
        yield helper.make_node("Cast", [n("rows")], [n("is")], to=TensorProto.BOOL)
        yield helper.make_node("Cast", [n("is")], [n("one")], to=TensorProto.FLOAT)
        summed["one"] = "nonzero"
    if Want.ABSOLUTE in probe.want:
        yield helper.make_node("Abs", [n("rows")], [n("abs")])
        summed["abs"] = "absolute"
    for source, name in summed.items():
        if opset < 13:
            yield helper.make_node("ReduceSum", [n(source)], [n(name)], axes=[0], keepdims=0)
        else:
            yield helper.make_node("ReduceSum", [n(source), "onnxprune_axis"], [n(name)], keepdims=0)


def _maps(probe: Probe, rank: int) -> Iterator[NodeProto]:
    """Nodes that take the samples that are picked, channels before the axes of the map, in the value's own type."""
    n, axis = probe.name, probe.dim.axis
    yield helper.make_node("Gather", [n("shape"), "onnxprune_first"], [n("batch")])
    yield from _places(PICKED, n("batch"), n("sample"))
    yield helper.make_node("Gather", [probe.dim.value, n("sample")], [n("picked")])
    perm = [0, axis, *(a for a in range(1, rank) if a != axis)]
    yield helper.make_node("Transpose", [n("picked")], [n("maps")], perm=perm)


def _sampled(probe: Probe) -> Iterator[NodeProto]:
    """Nodes that take the rows at the places that are drawn."""
    n = probe.name
    yield helper.make_node("Shape", [n("rows")], [n("size")])
    yield helper.make_node("Gather", [n("size"), "onnxprune_first"], [n("places")])
    yield from _places(n("drawn"), n("places"), n("index"))
    yield helper.make_node("Gather", [n("rows"), n("index")], [n("sampled")])


def _places(fractions: str, count: str, index: str) -> Iterator[NodeProto]:
    """Nodes that make indices of fractions of a count."""
    yield helper.make_node("Cast", [count], [f"{index}_many"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [fractions, f"{index}_many"], [f"{index}_at"])
    yield helper.make_node("Cast", [f"{index}_at"], [index], to=TensorProto.INT64)
