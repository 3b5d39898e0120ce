"""If, Loop and Scan: what goes in and comes out stays as it is; what their bodies read from outside is locked too."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Dim, Lock, NodeView, rule


@rule("If", "Loop", "Scan", "SequenceMap")
def body(n: NodeView) -> Iterator[Constraint]:
    """A body works with sizes of its own, which the analysis does not enter."""
    for names, values, does in (
        (n.names, n.node.inputs, "reads"),
        (n.node.outputs, n.node.outputs, "makes"),
    ):
        for name, value in zip(names, values, strict=True):
            for axis in range(len(n.graph.shapes.get(value) or ())):
                yield Lock(Dim(name, axis), f"a subgraph of {n.node.op} {does} it")
