"""What `inspect` finds out: shares, groups, the lock ledger, and what the options would open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import bodies
from onnxprune import graph as graphs
from onnxprune.coupling import couple
from onnxprune.explain import explain
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.outcome import cuttable, describe, prepared
from onnxprune.rules.base import Options

Record = dict[str, Any]
# What a lock's option is called among `Options`.
OPENS = {"--allow-inexact": "inexact", "--head-dims": "head_dims"}


def inspect(
    model: str | os.PathLike[str] | ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    align: int = 1,
    *,
    allow_inexact: bool = False,
    head_dims: bool = False,
    explain: str | None = None,
) -> Record:
    """What can be cut of a model, and what is locked and why.

    Args:
        model: path or `ModelProto`.
        shapes: input or inner value -> shape, where the model leaves it open.
        align: widths that will be kept to; decides only between ways to cut a grouped operator.
        allow_inexact, head_dims: as for `prune`.
        explain: a tensor or a node; the record then tells, for each of its axes, the group or the way to what locks it.

    Raises:
        ModelError, ShapeError: as `load`.
        OptionError: nothing has the name that is to be explained.
    """
    original = graphs.load(model, shapes)
    options = Options(align=align, inexact=allow_inexact, head_dims=head_dims)
    record: Record = {"version": 1, "model": original.name}
    record |= prepared(original)
    if explain is not None:
        return record | {"explain": explanation(original, options, explain)}
    return record | survey(original, options)


def survey(graph: Graph, options: Options) -> Record:
    """What can be cut, what is locked, and what more each option that a lock names would allow."""
    coupling = couple(graph, options)
    record = describe(coupling, np.zeros(coupling.units, dtype=bool)) | {"params": bodies.total(graph)}
    record["opened"] = {}
    for option, wider in _wider(graph, coupling, (lock.option for lock in coupling.locked)):
        record["opened"][option] = cuttable(wider)
        still = {(lock.value, lock.axis) for lock in wider.locked}
        for lock in record["locked"]:
            if lock.get("option") == option:
                lock["opened"] = (lock["value"], lock["axis"]) not in still
    inner = dict.fromkeys(part.node.op for part in bodies.inner(graph))
    if inner:
        record["warnings"] = [f"MACs leave out what is inside the body of {' and '.join(inner)}"]
    return record


def explanation(graph: Graph, options: Options, name: str) -> list[Record]:
    """`explain`, with what would become of a lock (`then`) if the option were given that it names.

    Raises:
        OptionError: nothing has this name.
    """
    coupling = couple(graph, options)
    values = explain(coupling, name)
    locks = [(value, axis, lock) for value in values for axis in value["axes"] for lock in axis["locks"]]
    for option, wider in _wider(graph, coupling, (lock.get("option") for _, _, lock in locks)):
        then = {_key(value, axis): axis for value in explain(wider, name) for axis in value["axes"]}
        for value, axis, lock in locks:
            if lock.get("option") == option:
                lock["then"] = {key: then[_key(value, axis)][key] for key in ("groups", "locks")}
    return values


def _wider(graph: Graph, coupling: Coupling, named: Iterable[str | None]) -> Iterator[tuple[str, Coupling]]:
    """The analysis once more for every option that is named."""
    for option in dict.fromkeys(named):
        if option in OPENS:
            more: dict[str, Any] = {OPENS[option]: True}
            yield option, couple(graph, replace(coupling.options, **more))


def _key(value: Record, axis: Record) -> tuple[str, int, str]:
    return value["value"], axis["axis"], axis.get("reader", "")
