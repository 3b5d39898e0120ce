"""What `inspect` finds out: shares, groups, the lock ledger, and what the options would open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune import bodies
from onnxprune.coupling import couple
from onnxprune.explain import explain
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.outcome import cuttable, describe
from onnxprune.rules.base import Options

Record = dict[str, Any]
# What a lock's option is called among `Options`.
OPENS = {"--allow-inexact": "inexact", "--head-dims": "head_dims"}


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
