"""Let onnxslim simplify the graph."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.errors import ModelError, OptionError, one_line
from onnxprune.graph import Graph, is_big
from onnxprune.passes import register
from onnxprune.rewrite import counted, operators
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.tensors import copied, declare, in_proto


@register("simplify")
@dataclass(frozen=True)
class Simplify:
    """Simplify the graph with onnxslim: what it fuses, folds and drops; inputs, outputs and opsets stay.

    Attributes:
        shapes: write the shapes that onnxslim infers into the model.
        largest: bytes of a result that it may compute beforehand; None: any.
        skip: its fusions that are not to be done, such as FusionGemm.
    """

    shapes: bool = False
    largest: int | None = None
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what onnxslim would misread."""
        if self.largest is not None and self.largest < 1:
            raise OptionError(f"simplify: largest = {self.largest}: give a number of bytes, or leave it out")

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Call it on a copy.

        Raises:
            OptionError: it is not installed, or knows no fusion that is to be skipped.
            ModelError: it fails, or the model does not fit into memory as one message.
        """
        if is_big(graph):
            raise ModelError(f"{graph.name}: simplify holds the whole model, and this one is over 2 GB; use tidy")
        with context.stage("simplify"):
            made = self._slimmed(graph)
        before, after = operators(graph.proto), operators(made)
        gone, fresh = before - after, after - before
        notes = {"simplify": {"library": "onnxslim", "dropped": dict(gone), "added": dict(fresh)}}
        if before == after:
            return Outcome(graph.proto, notes, said="onnxslim found nothing to simplify")
        said = f"onnxslim took out {counted(gone) or 'nothing'}" + (f", put in {counted(fresh)}" if fresh else "")
        model = context.make(lambda store: copied(made, None, store))
        return Outcome(model, notes, proof=Proof(lambda: graph.path or graph.proto), said=said)

    def _slimmed(self, graph: Graph) -> ModelProto:
        try:
            import onnxslim
            from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS
        except ImportError as error:
            raise OptionError(
                "simplify: onnxslim is not installed; `pip install onnxprune[simplify]`, or use tidy and fuse"
            ) from error
        if unknown := set(self.skip) - set(DEFAULT_FUSION_PATTERNS):
            known = ", ".join(sorted(DEFAULT_FUSION_PATTERNS))
            raise OptionError(f"simplify: skip = {min(unknown)!r}: onnxslim has {known}")
        options = {"no_shape_infer": not self.shapes, "size_threshold": self.largest}
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                made = onnxslim.slim(
                    copied(graph.proto, graph.folder, in_proto), skip_fusion_patterns=list(self.skip) or None, **options
                )
        except Exception as error:  # whatever a library may raise
            raise ModelError(
                f"{graph.name}: onnxslim fails ({one_line(error, 200)}); leave simplify out, or use tidy and fuse"
            ) from error
        finally:
            logging.disable(level)
        assert isinstance(made, ModelProto)
        declare(made)
        return made
