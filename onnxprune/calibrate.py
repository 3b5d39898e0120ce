"""One streaming run over the data that collects statistics of chosen values, each reduced inside the model.

The model that runs is a copy with nodes added (see `instrument`), so that a batch hands over a few numbers and sampled
rows instead of whole activations. Sums are kept in float64; memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, rows
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.histogram import Histogram
from onnxprune.instrument import PICKED, Probe, Want, instrumented, probes_of
from onnxprune.parts import Engine, Parts
from onnxprune.products import multiplied
from onnxprune.rules.base import Dim
from onnxprune.runtime import run
from onnxprune.solve import at_once
from onnxprune.tensors import Store

Floats = NDArray[np.float64]

ROWS = 16384  # places of a value that are sampled in all, at most; fewer are enough for few channels
PER_CHANNEL = 8
DENSE = 4096  # the most channels of which all pairs are kept
MAPS = 64  # samples whose maps are looked at, at most: singular values are dear, and samples differ little


@dataclass(eq=False)
class Statistics:
    """What was seen along one axis of a value.

    Attributes:
        samples: seen, over all batches.
        count: places seen, over all samples.
        total, squares: [channels], sums over all places of x and of x².
        rows: places that were sampled, for what follows; 0 where nothing of it is wanted.
        first: [channels], sums of x over those.
        second: [channels, channels], sums of x xᵀ over those; None where not wanted, or of too many channels.
        histogram: of x over those; None where not wanted.
        zeros: [channels], places of all at which x is 0; None where not wanted.
        absolute: [channels], sums over all places of |x|; None where not wanted.
        ranks: [channels], sums of the ranks of maps; None where not wanted.
        maps: samples of which maps were looked at.
    """

    total: Floats
    squares: Floats
    first: Floats
    second: Floats | None = None
    histogram: Histogram | None = None
    zeros: Floats | None = None
    absolute: Floats | None = None
    ranks: Floats | None = None
    maps: int = 0
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

    def add(self, made: Mapping[str, Array], samples: int) -> None:
        """Another batch: the outputs of a probe, and how many samples they are of."""
        count = int(made["shape"].prod()) // max(self.total.size, 1)
        self.samples += samples
        self.count += count
        self.total += made["total"]
        self.squares += made["squares"]
        if self.zeros is not None:
            self.zeros += count - made["nonzero"].astype(np.float64)
        if self.absolute is not None:
            self.absolute += made["absolute"]
        if self.ranks is not None:
            self.maps += len(made["maps"])
            self.ranks += _ranks(made["maps"]).sum(axis=0)
        if (sampled := made.get("sampled")) is not None:
            self.rows += len(sampled)
            self.first += sampled.sum(axis=0, dtype=np.float64)
            if self.second is not None:
                self.second += sampled.T @ sampled  # a batch in float32, the sum in float64
            if self.histogram is not None:
                self.histogram = self.histogram.joined(sampled)


def calibrate(
    graph: Graph,
    batches: Iterable[Feed],
    wanted: Mapping[Dim, Want],
    engine: Engine,
    samples: int | None = None,
    seed: int = 0,
) -> dict[Dim, Statistics]:
    """Run a model over inputs and collect what its values are like.

    Args:
        graph: the model.
        batches: its inputs; gone through once.
        wanted: axes of values, and what is collected there.
        engine: where it runs.
        samples: in the batches, if known: so many places are then taken of each that `ROWS` come together.
        seed: of the places sampled.

    Raises:
        DataError: NaN or infinity turned up; the first value that has it is named.
        ModelError: ONNX Runtime does not run the model.
    """
    probes = probes_of(graph, wanted)
    if not probes:
        return {}
    found = {p.dim: _nothing(p) for p in probes}
    ready, inputs, each, seen = None, list[str](), dict[Probe, int](), 0
    maps = any(Want.RANKS in p.want for p in probes)
    rng = np.random.default_rng(seed)
    for feed in batches:
        if ready is None:
            ready = engine.ready(partial(instrumented, graph, probes, feed))
            inputs = [name for name in ready.inputs if name in feed]
            sampling = [p for p in probes if p.samples]
            none = {p.name("drawn"): np.zeros(1, np.float32) for p in sampling}
            none |= {PICKED: np.zeros(1, np.float32)} if maps else {}
            names = [p.name("shape") for p in sampling]
            shapes = run(ready.session, {n: feed[n] for n in inputs} | none, names) if names else {}
            each = {p: _each(p, shapes[p.name("shape")], rows(feed), samples) for p in sampling}
        drawn = {p.name("drawn"): _drawn(rng, count * rows(feed)) for p, count in each.items()}
        if maps:
            drawn[PICKED] = _drawn(rng, _picked(seen + rows(feed), samples) - _picked(seen, samples))
        seen += rows(feed)
        results = run(ready.session, {n: feed[n] for n in inputs} | drawn)
        for probe in probes:
            if not all(np.isfinite(results[probe.name(what)]).all() for what in ("total", "squares")):
                raise DataError(
                    f"{graph.name}: {probe.dim.value!r} has NaN or infinite values on these inputs; check the data"
                )
        made = [{what: results[probe.name(what)] for what in probe.outputs} for probe in probes]
        pairs = zip((found[p.dim] for p in probes), made, strict=True)
        at_once(partial(_add, samples=rows(feed)), pairs, engine.workers)
    return found if seen else {}


def _add(pair: tuple[Statistics, Mapping[str, Array]], samples: int) -> None:
    stats, made = pair
    stats.add(made, samples)


def _each(probe: Probe, shape: Array, samples: int, in_all: int | None) -> int:
    """How many places of a value are sampled in a sample: as many as the moments of its channels need, if it has them.

    Args:
        probe: the value.
        shape: of the value in a batch.
        samples: in that batch.
        in_all: samples in all batches, if known.
    """
    wanted = -(-min(ROWS, max(ROWS // 8, PER_CHANNEL * probe.channels)) // (in_all or 128))
    return int(max(1, min(wanted, shape.prod() // max(probe.channels * samples, 1))))


def _picked(seen: int, in_all: int | None) -> int:
    """Of the first `seen` samples, those whose maps are looked at: evenly, or the first, where the end is not known."""
    return min(seen, MAPS) if in_all is None or in_all <= MAPS else seen * MAPS // in_all


def _ranks(maps: Array) -> NDArray[np.intp]:
    """[samples, channels]: the numerical ranks of maps, to the precision of their type (as `numpy.linalg.matrix_rank`).

    Args:
        maps: [samples, channels, height, width].
    """
    values = np.linalg.svd(maps.astype(np.result_type(maps, np.float32)), compute_uv=False)
    exact = np.finfo(maps.dtype if maps.dtype.kind == "f" else values.dtype).eps
    return np.asarray((values > values[..., :1] * (max(maps.shape[2:]) * exact)).sum(axis=2))


def _drawn(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Places as fractions, one in each of `count` equal stretches: none is drawn twice where there are as many."""
    return ((np.arange(count) + rng.random(count) * 0.999) / count).astype(np.float32)


def _nothing(probe: Probe) -> Statistics:
    total, squares, first, zeros, absolute, ranks = np.zeros((6, probe.channels))
    return Statistics(
        total,
        squares,
        first,
        np.zeros((probe.channels,) * 2) if Want.PAIRS in probe.want and probe.channels <= DENSE else None,
        Histogram.empty(probe.channels) if Want.HISTOGRAM in probe.want else None,
        zeros if Want.ZEROS in probe.want else None,
        absolute if Want.ABSOLUTE in probe.want else None,
        ranks if Want.RANKS in probe.want else None,
    )


def shapes_met(coupling: Coupling, feed: Feed, engine: Engine) -> dict[str, tuple[int, ...]]:
    """The shapes that values have on an input whose sizes the model leaves open, as far as its costs depend on them."""
    graph = coupling.graph
    names = {d.value for _, spec in coupling.linears for d in spec.cost}
    names |= {d.value for _, dims in multiplied(coupling) for d in dims}
    names = {n for n in names if any(not isinstance(s, int) for s in graph.shapes.get(n) or ())} - graph.fixed
    found = {n: feed[n].shape for n in names if n in feed}
    wanted = sorted(names - set(feed) - set(graph.constants))
    if not wanted:
        return found

    def shaped(store: Store) -> ModelProto:
        model = Parts(graph).part(0, len(graph.nodes), {n: v.dtype for n, v in feed.items()}, wanted, store=store)
        del model.graph.output[:]
        for name in wanted:
            model.graph.node.append(helper.make_node("Shape", [name], [f"onnxprune_shape_{name}"]))
            model.graph.output.append(helper.make_empty_tensor_value_info(f"onnxprune_shape_{name}"))
        return model

    ready = engine.ready(shaped)
    shapes = run(ready.session, {name: feed[name] for name in ready.inputs}).values()
    return found | {n: tuple(s.tolist()) for n, s in zip(wanted, shapes, strict=True)}
