"""Leave out what a model does without."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.errors import OptionError
from onnxprune.graph import Graph
from onnxprune.opening import read_model
from onnxprune.passes import register
from onnxprune.rewrite import counted, operators, rewritten
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.tidying import tidied


@register("tidy")
@dataclass(frozen=True)
class Tidy:
    """Drop nodes that do nothing, do what another does, or are never read; compute beforehand what is constant.

    Attributes:
        largest: elements of a result that is computed beforehand; only small ones (1024) may need more room than what
            they are made of.
        weights: merge equal weights, too: the file gets smaller, but layers that share weights are not fitted anew
            after a cut.
    """

    largest: int = 1 << 20
    weights: bool = False

    def __post_init__(self) -> None:
        """Refuse a negative size."""
        if self.largest < 0:
            raise OptionError(f"tidy: largest = {self.largest}: give a number of elements, 0 for none")

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Leave out all that can be."""
        with context.stage("tidy"):
            rewrite = tidied(graph, self.largest, self.weights)
            model = context.make(lambda store: rewritten(graph, rewrite, store, sweep=True))
            made = model if isinstance(model, ModelProto) else read_model(model)
        gone = operators(graph.proto) - operators(made)
        fewer = _constants(graph.proto) - _constants(made)
        functions = len(graph.proto.functions) - len(made.functions)
        found = {"dropped": dict(gone), "computed": len(rewrite.constants), "constants": fewer, "functions": functions}
        notes = {"tidy": found}
        if rewrite.empty and not gone and not fewer and not functions:
            return Outcome(graph.proto, notes, said="nothing to tidy")
        parts = [f"dropped {counted(gone)}"] if gone else []
        parts += [f"computed {len(rewrite.constants)} constants beforehand"] if rewrite.constants else []
        parts += [f"{fewer} constants fewer"] if fewer > 0 else []
        parts += [f"{functions} functions that nothing calls"] if functions else []
        said = "; ".join(parts) or "shorter ways, nothing dropped"
        return Outcome(model, notes, proof=Proof(lambda: graph.path or graph.proto), said=said)


def _constants(model: ModelProto) -> int:
    return len(model.graph.initializer) + [node.op_type for node in model.graph.node].count("Constant")
