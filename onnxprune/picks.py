"""Values in front of what picks among them: a detector's boxes and scores, before some of them are kept.

What is picked is a matter of ranks. A slight change of scores swaps rows, or makes them more or fewer, and then answers
cannot be compared one by one; what they are picked from can.
"""

from __future__ import annotations

from collections.abc import Collection

from onnxprune.affine import CONTRACTIONS
from onnxprune.graph import Graph

# What picks by the numbers that it reads, and how many of its inputs, the first ones, those are in.
PICKS = {"TopK": 1, "NonMaxSuppression": 2, "NonZero": 1, "Compress": 2, "Unique": 1}


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
    """The nearest values that an output is made from and that can be compared.

    They depend on no pick; or a layer with weights made them, as in the second stage of a detector.

    Args:
        graph: the model.
        output: one of its outputs.
        chosen: `picked` values.
        computed: as for `picked`.
    """
    queue, found = [output], dict[str, None]()
    for value in queue:
        node = graph.producer.get(value)
        if node is None or value not in chosen or _weighs(graph, node.op, node.inputs):
            found[_whole(graph, value)] = None
            continue
        reads = node.inputs[: PICKS.get(node.op)] if not node.domain else node.inputs
        queue += [n for n in dict.fromkeys(reads) if n in computed and n not in queue]
    return list(found)


def _weighs(graph: Graph, op: str, inputs: Collection[str]) -> bool:
    return op in CONTRACTIONS and any(name in graph.fixed for name in inputs)


def _whole(graph: Graph, value: str) -> str:
    """The value before its axes of one were taken away: of samples, where only one is fed."""
    while (node := graph.producer.get(value)) is not None and node.op == "Squeeze" and not node.domain:
        value = node.inputs[0]
    return value
