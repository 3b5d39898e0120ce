"""What sparsity brought, for the record and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from onnxprune.sparsity.layerwise import Done
from onnxprune.sparsity.patterns import Pattern
from onnxprune.sparsity.worth import Bytes

NEAR = 0.02  # of the share that was asked for: whole rows and blocks are not nearer


@dataclass(frozen=True)
class Told:
    """What was done to a model.

    Attributes:
        pattern: what became zero together.
        criterion: by which it was chosen.
        done: the layers with zeros.
        left: the layers that stay dense, and why.
        cut: channels and other units that went as a whole.
        rounded: constant channels that stay, since rounding would be felt.
        sparse: weights that are stored as sparse tensors; None: that was not asked for.
        bound: weights in Constant nodes of an opset that knows no sparse ones.
        asked: the share that was to become zero; None: a threshold said what.
    """

    pattern: Pattern
    criterion: str
    done: Sequence[Done]
    left: Mapping[str, str]
    cut: int
    rounded: int
    sparse: Sequence[str] | None
    bound: int = 0
    asked: float | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """For the record."""
        before, after = (reduce(add, (getattr(d, side) for d in self.done), Bytes()) for side in ("before", "after"))
        return {
            "pattern": self.pattern.text,
            "criterion": self.criterion,
            "weights": sum(d.weights for d in self.done),
            "zeros": sum(d.zeros for d in self.done),
            "bytes": {
                "dense": after.dense,
                "sparse": after.sparse,
                "deflated": {"before": before.deflated, "after": after.deflated},
            },
            "units_cut": self.cut,
            "constant_units_kept": self.rounded,
            "sparse_tensors": list(self.sparse or ()),
            "layers": [
                {
                    "node": d.node,
                    "tensor": d.constant,
                    "weights": d.weights,
                    "zeros": d.zeros,
                    "error": d.error,
                    "damping": d.damping,
                }
                for d in self.done
            ],
            "dense": [{"node": node, "reason": reason} for node, reason in self.left.items()],
        }

    @property
    def sentence(self) -> str:
        """For the table."""
        found = self.notes
        stored, count = found["bytes"], len(self.done)
        parts = [
            f"{found['zeros'] / max(found['weights'], 1):.1%} of the {found['weights']} weights of {count} "
            f"{'layer is' if count == 1 else 'layers are'} zero ({self.pattern.text}, {self.criterion})"
        ]
        if self.asked is not None and abs(found["zeros"] / max(found["weights"], 1) - self.asked) > NEAR:
            parts[0] += f", where {self.asked:.1%} were asked for: the layers do not divide into so many"
        parts += [f"{len(self.left)} more stay dense"] if self.left else []
        parts += [f"{self.cut} channels or other units went as a whole"] if self.cut else []
        if self.rounded:
            parts.append(f"{self.rounded} constant channels stay, as a cut would show in the outputs' rounding")
        ratio = stored["deflated"]["after"] / max(stored["deflated"]["before"], 1)
        parts.append(f"compressed (DEFLATE) they take {ratio:.0%} of what they took")
        if self.sparse is not None:
            parts.append(f"{len(self.sparse)} are stored sparse, as many as get smaller by it")
            parts[-1] += f" ({self.bound} in Constant nodes stay: opset 11 has sparse ones)" if self.bound else ""
        parts.append("no faster on ONNX Runtime's CPU provider, which computes zeros like other numbers")
        if self.pattern.text == "2:4":
            parts.append("2:4 pays on TensorRT with sparse kernels enabled")
        return "; ".join(parts)
