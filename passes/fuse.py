"""Put together what exporters split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.errors import OptionError
from onnxprune.fusions import FUSIONS, fused
from onnxprune.graph import Graph
from onnxprune.passes import register
from onnxprune.rewrite import Rewrite, counted, names_of, rewritten, unique
from onnxprune.steps import Context, Outcome, Proof

OPS = tuple(dict.fromkeys(fusion.op for fusion in FUSIONS))


@register("fuse")
@dataclass(frozen=True)
class Fuse:
    """Put together the operators that exporters split, where the model's opset has a name for the whole.

    HardSigmoid and HardSwish (opset 14), LayerNormalization (17), Gelu (20), Swish (24).

    Attributes:
        skip: operators that are not to be made.
    """

    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse unknown operators."""
        if unknown := set(self.skip) - set(OPS):
            raise OptionError(f"fuse: skip = {min(unknown)!r}: choose among {', '.join(OPS)}")

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Fuse all that is found, from the end to the beginning: the larger expressions first."""
        with context.stage("fuse"):
            nodes: dict[int, list[NodeProto]] = {}
            made, gone, taken = Counter[str](), Counter[str](), names_of(graph)
            for node in reversed(graph.nodes):
                found = fused(graph, node, lambda wanted: unique(wanted, taken), frozenset(self.skip))
                if found is None or not found.gone.isdisjoint(nodes):
                    continue
                nodes |= {index: [] for index in found.gone} | {node.index: found.made}
                made += Counter(proto.op_type for proto in found.made)
                gone += Counter(graph.nodes[index].op for index in found.gone)
            notes = {"fuse": {"fused": dict(gone), "into": dict(made)}}
            if not nodes:
                return Outcome(graph.proto, notes, said="nothing to fuse")
            rewrite = Rewrite(nodes)
            model = context.make(lambda store: rewritten(graph, rewrite, store))
        said = f"fused {counted(gone)} into {counted(made)}"
        return Outcome(model, notes, proof=Proof(lambda: graph.path or graph.proto), said=said)
