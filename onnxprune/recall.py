"""Statistics of a model that met the same data before: from the disk, to the digit, without a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.cache import fetch, folder, keep, key_of
from onnxprune.calibrate import Statistics, calibrate
from onnxprune.feeds import Array, Feed
from onnxprune.graph import Graph
from onnxprune.histogram import Histogram
from onnxprune.instrument import Probe, Want, instrumented, probes_of
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.stamps import changed


def recall(
    graph: Graph,
    batches: Sequence[Feed],
    wanted: Mapping[Dim, Want],
    engine: Engine,
    samples: int | None = None,
    seed: int = 0,
) -> dict[Dim, Statistics]:
    """As `calibrate`, of which the outcome is kept on disk (see `cache`).

    Raises:
        DataError, ModelError: as `calibrate`.
    """
    if folder() is None or not batches or not wanted:
        return calibrate(graph, batches, wanted, engine, samples, seed)
    probes = probes_of(graph, wanted)
    asked = repr((engine, samples, seed)).encode()
    key = key_of(chain((asked, *_machine()), _model(graph, probes, batches[0]), _data(batches)))
    if (kept := fetch(key)) is not None:
        with suppress(TypeError, ValueError):  # another file under this name
            return {p.dim: _unpacked(kept, p) for p in probes}
    found = calibrate(graph, batches, wanted, engine, samples, seed)
    if changed(graph.stamps) is None:  # else what was found may be of another model than the key
        keep(key, {name: array for p in probes for name, array in _packed(found[p.dim], p)})
    return found


@cache
def _machine() -> tuple[bytes, ...]:
    """What computes: libraries, processors, and this package as it is, also between two versions."""
    import onnxruntime

    code = sorted(Path(__file__).parent.glob("*.py"))
    return (
        repr((onnxruntime.__version__, np.__version__, os.cpu_count())).encode(),
        *(path.read_bytes() for path in code),
    )


def _model(graph: Graph, probes: Sequence[Probe], feed: Feed) -> Iterator[bytes]:
    """What runs, weights and all, and what is collected."""
    yield repr(probes).encode()
    model = instrumented(graph, probes, feed)
    for tensor in model.graph.initializer:
        yield tensor.SerializeToString(deterministic=True)
    del model.graph.initializer[:]  # all in one message may be too many
    yield model.SerializeToString(deterministic=True)


def _data(batches: Sequence[Feed]) -> Iterator[bytes | memoryview]:
    for feed in batches:
        for name, array in feed.items():
            yield repr((name, array.dtype.name, array.shape)).encode()
            whole = np.ascontiguousarray(array).reshape(-1)
            yield repr(whole.tolist()).encode() if array.dtype.hasobject else whole.view(np.uint8).data


def _packed(stats: Statistics, probe: Probe) -> Iterator[tuple[str, Array]]:
    """All fields that have a value, under names of this probe."""
    for part in (stats, stats.histogram):
        for name, value in vars(part).items() if part is not None else ():
            if value is not None and not isinstance(value, Histogram):
                yield probe.name(name), np.asarray(value)


def _unpacked(kept: Mapping[str, Array], probe: Probe) -> Statistics:
    def of(kind: type[Statistics | Histogram]) -> dict[str, Any]:
        found = {f.name: kept[probe.name(f.name)] for f in fields(kind) if probe.name(f.name) in kept}
        return {name: value if value.ndim else int(value) for name, value in found.items()}

    histogram = of(Histogram)
    return Statistics(**of(Statistics), histogram=Histogram(**histogram) if histogram else None)
