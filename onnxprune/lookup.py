"""Tensors and nodes by name, as a person writes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from onnxprune.errors import OptionError
from onnxprune.graph import Graph

FEW = 3  # names that an error suggests


def find(graph: Graph, name: str, others: Iterable[str] = ()) -> tuple[str, ...]:
    """The tensors that a name stands for: a tensor, a node's weights and outputs, or whose name alone starts so.

    Args:
        graph: the model.
        name: of a tensor or a node, or how one of them begins.
        others: names of further tensors.

    Raises:
        OptionError: no name fits, or several do.
    """
    values = dict.fromkeys((*graph.constants, *graph.inputs, *others))
    values |= dict.fromkeys(v for node in graph.nodes for v in (*node.inputs, *node.outputs) if v)
    nodes = {node.label: node for node in reversed(graph.nodes)}
    known = dict.fromkeys((*values, *nodes))
    if name not in known:
        starts = [n for n in known if name and n.startswith(name)]
        if len(starts) != 1:
            raise OptionError(_unknown(graph, name, starts, list(known)))
        name = starts[0]
    if name in values:
        return (name,)
    node = nodes[name]
    weights = [v for v in node.inputs if v in graph.parameters and len(graph.constants[v].dims) > 1]
    return (*dict.fromkeys(weights), *filter(None, node.outputs))


def _unknown(graph: Graph, name: str, starts: list[str], known: list[str]) -> str:
    if starts:
        more = f" and {len(starts) - FEW} more" if len(starts) > FEW else ""
        return (
            f"{name!r}: several tensors and nodes begin like this: {', '.join(starts[:FEW])}{more}; write one of them"
        )
    parts = [n for n in known if name and name.lower() in n.lower()]
    close = (difflib.get_close_matches(name, known, FEW) or parts)[:FEW]
    hint = (
        f"did you mean {', '.join(close[:-1])}{' or ' * (len(close) > 1)}{close[-1]}?"
        if close
        else "see the names in a viewer, or with --json"
    )
    return f"{name!r}: no tensor or node of {graph.name} has this name; {hint}"
