"""Take scales and shifts of channels into the weights beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from onnxprune.absorb import absorb
from onnxprune.affine import ELEMENTWISE
from onnxprune.graph import Graph
from onnxprune.passes import register
from onnxprune.rewrite import counted, rewritten
from onnxprune.steps import Context, Outcome, Proof


@register("fold_batchnorm")
@dataclass(frozen=True)
class FoldBatchnorm:
    """Fold BatchNormalization, and scales and shifts of channels, into the contractions before or after them.

    Conv, ConvTranspose, Gemm and MatMul with constant weights take them in, computed in float64. What stands before a
    contraction goes only if all that read it take it in, and a shift never where zero padding lies between.

    Attributes:
        chains: fold Mul, Add, Sub, Div and Neg with constants for channels, too.
    """

    chains: bool = True

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Fold all that can be."""
        with context.stage("fold"):
            found = absorb(graph, frozenset({"BatchNormalization"}) | (ELEMENTWISE if self.chains else frozenset()))
            notes = {
                "fold_batchnorm": {
                    "folded": dict(found.gone),
                    "into": dict(found.into),
                    "kept": [asdict(each) for each in found.left],
                }
            }
            stay = f"; {len(found.left)} BatchNormalization kept" if found.left else ""
            if found.rewrite.empty:
                return Outcome(graph.proto, notes, said=f"nothing to fold{stay}")
            model = context.make(lambda store: rewritten(graph, found.rewrite, store))
        said = f"folded {counted(found.gone)} into {counted(found.into)}{stay}"
        return Outcome(model, notes, proof=Proof(lambda: graph.path or graph.proto), said=said)
