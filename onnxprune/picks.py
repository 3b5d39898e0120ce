"""Values in front of what picks among them: a detector's boxes and scores, before some of them are kept.

What is picked is a matter of ranks. A slight change of scores swaps rows, or makes them more or fewer, and then answers
cannot be compared one by one; what they are picked from can. Where layers with weights work on what was picked (the
second stage of a detector), only their own results say what those layers are worth.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxprune.folds import constant_value
from onnxprune.graph import Graph, Node
from onnxprune.routes import MOVES
from onnxprune.rules.elementwise import BROADCAST, UNARY

# What picks by the numbers that it reads, and how many of its inputs, the first ones, those are in.
PICKS = {"TopK": 1, "NonMaxSuppression": 2, "NonZero": 1, "Compress": 2, "Unique": 1}
GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
# What decodes and arranges boxes and scores. Anything else, as a layer with weights, makes something new of them.
PLAIN = frozenset({*MOVES, *UNARY, *BROADCAST, *GATHERS, *PICKS, "Concat", "Tile"})


def picked(graph: Graph, computed: Collection[str]) -> frozenset[str]:
    """Values that depend on what was picked by computed numbers.

    Args:
        graph: the model.
        computed: values that depend on inputs and on weights.
    """
    found = set[str]()
    for node in graph.nodes:
        looks = node.inputs[: PICKS.get(node.op, 0)] if not node.domain else []
        if any(n in computed for n in looks) or any(n in found for n in (*node.inputs, *node.captures)):
            found.update(node.outputs)
    return frozenset(found)


def in_front(graph: Graph, output: str, chosen: Collection[str], computed: Collection[str]) -> list[str]:
    """The nearest values that an output is made from and that can be compared; else the output itself.

    Args:
        graph: the model.
        output: one of its outputs.
        chosen: `picked` values.
        computed: as for `picked`.
    """
    if output not in chosen:
        return [output]
    queue, found = [(output, False)], dict[str, None]()
    for value, behind in queue:  # behind: a pick lies between the output and it
        node = graph.producer.get(value)
        if node is None or value not in chosen:
            found[_batch(graph, value)] = None
        elif node.domain or node.captures or node.op not in PLAIN:
            if not behind:
                return [output]
            found[value] = None
        else:
            picks = node.op in PICKS or (node.op in GATHERS and node.inputs[1] in chosen)
            reads = [n for n in dict.fromkeys(node.inputs[: PICKS.get(node.op)]) if n in computed]
            queue += [(n, behind or picks) for n in reads if (n, behind or picks) not in queue]
    return list(found) or [output]


def _batch(graph: Graph, value: str) -> str:
    """The value before the axis of its samples was taken away, where only one is fed."""
    node = graph.producer.get(value)
    if node is None or node.domain or not _takes_first(graph, node):
        return value
    return node.inputs[0]


def _takes_first(graph: Graph, node: Node) -> bool:
    if node.op not in ("Squeeze", "Gather") or (graph.shapes.get(node.inputs[0]) or [0])[0] != 1:
        return False
    given = constant_value(graph, node.inputs[1], {}) if len(node.inputs) > 1 else None
    where = node.attrs.get("axes") if given is None and node.op == "Squeeze" else given
    return where is not None and np.size(where) == 1 and int(np.ravel(where)[0]) == 0 and not node.attrs.get("axis", 0)
