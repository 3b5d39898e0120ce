"""BatchNormalization that is still in the graph: its statistics follow what it reads in the cut model.

Running statistics are those of the training data, which a few samples do not replace. They are moved by what changed:
by the difference of the means, and by the ratio of the variances, that the same samples have in the original and in the
cut model. What follows then sees what it saw before (Li et al. 2020, EagleEye; here without the bias of small samples).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph, Node
from onnxprune.groups import Coupling
from onnxprune.patch import NOTHING, Patch
from onnxprune.refit import Layer, same_but
from onnxprune.rules.base import Dim

Array = NDArray[Any]
Floats = NDArray[np.float64]
Kept = Callable[[Dim], Any]

MEAN, VARIANCE = 3, 4  # slots
GROWTH = 4.0  # the most that a variance changes by


@dataclass(eq=False)
class _Sums:
    """Sums over places of the original's x, of the cut model's z, of their squares and of their product: [channels]."""

    count: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros((5, 1)))

    def add(self, x: Floats, z: Floats) -> None:
        self.count += len(x)
        self.sums = self.sums + np.stack([v.sum(axis=0) for v in (x, z, x * x, z * z, x * z)])

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.count + other.count, self.sums + other.sums)

    @property
    def moments(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Means of x and z, their variances and covariance."""
        x, z, xx, zz, xz = self.sums / max(self.count, 1)
        return x, z, np.maximum(xx - x * x, 0.0), np.maximum(zz - z * z, 0.0), xz - x * z

    def error(self, shift: Floats, scale: Floats) -> float:
        """Mean of (scale · (z - shift) - x)², over places, summed over channels."""
        x, z, vx, vz, cov = self.moments
        return float(np.sum(np.square(scale * (z - shift) - x) + scale**2 * vz - 2 * scale * cov + vx))


@dataclass(eq=False)
class Norm:
    """The statistics of one BatchNormalization.

    Attributes:
        graph: the cut model.
        a, b: the node in the original and in the cut model.
        kept: the channels that the cut model has.
        rescale: its variance follows, too, and not the mean alone.
    """

    graph: Graph
    a: Node
    b: Node
    kept: Any
    rescale: bool
    _sums: tuple[_Sums, _Sums] = field(default_factory=lambda: (_Sums(), _Sums()))

    @property
    def cut(self) -> bool:
        """It only reads what has changed."""
        return False

    @property
    def dense(self) -> tuple[int, list[str]]:
        """In front of the node."""
        return self.a.index, [self.a.inputs[0]]

    @property
    def thin(self) -> tuple[int, list[str]]:
        """In front of the node."""
        return self.b.index, [self.b.inputs[0]]

    def add(self, choosing: bool, dense: Mapping[str, Array], thin: Mapping[str, Array]) -> None:
        """A batch."""
        full, part = dense[self.a.inputs[0]], thin[self.b.inputs[0]]
        if not same_but(full, part, 1):  # what they pick before it differs in number
            return
        x, z = (np.moveaxis(v, 1, -1) for v in (full, part))
        x, z = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x[..., self.kept], z))
        self._sums[choosing].add(x, z)

    def best(self, everything: bool) -> tuple[Patch, Layer]:
        """Moved statistics, if what is normalised is nearer to the original on the samples that were held out."""
        fit, check = self._sums
        if not fit.count or not check.count:
            fit = check = fit + check
        if not fit.count:
            return NOTHING, Layer(self.b.label, "none", None, 0.0, 0.0)
        zero = np.zeros(fit.sums.shape[1])
        before = check.error(zero, zero + 1)
        power = max(float(check.moments[2].sum()), np.finfo(float).tiny)
        shift, scale = self._move(fit)
        after = check.error(shift, scale)
        if not after < before:
            return NOTHING, Layer(self.b.label, "none", None, before / power, before / power)
        loss = fit.error(shift, scale) / max(float(fit.moments[2].sum()), np.finfo(float).tiny)
        if everything and fit is not check:
            shift, scale = self._move(fit + check)
        # gamma (scale (z - shift) - mean) / sqrt(var) is what the node makes of z with other statistics.
        mean, variance = (self.graph.array(self.b.inputs[slot]).astype(np.float64) for slot in (MEAN, VARIANCE))
        epsilon = float(self.b.attrs.get("epsilon", 1e-5))
        new = np.maximum((variance + epsilon) / scale**2 - epsilon, 0.0)
        moved = {self.b.inputs[MEAN]: shift + mean / scale, self.b.inputs[VARIANCE]: new}
        return Patch(moved), Layer(self.b.label, "batchnorm", None, before / power, after / power, loss)

    def _move(self, sums: _Sums) -> tuple[Floats, Floats]:
        """What is taken from z, and by what the rest is multiplied, to have the original's mean (and variance)."""
        x, z, vx, vz, _ = sums.moments
        if not self.rescale:
            return z - x, np.ones_like(x)
        known = (vx > vz / GROWTH) & (vx < vz * GROWTH)
        scale = np.sqrt(np.divide(vx, vz, out=np.ones_like(vx), where=known))
        return z - x / scale, scale


def norms(
    original: Coupling, cut: Coupling, kept: Kept, rescale: bool, after: int, but: Collection[str]
) -> Iterator[Norm]:
    """Every BatchNormalization whose statistics can be moved.

    Args:
        original, cut: the analyses.
        kept: axis of the original -> its indices that the cut model has.
        rescale: variances follow, too.
        after: the first node of the cut model that reads something else than in the original.
        but: values that are fitted as they are; what reads them sees no other mean.
    """
    mine = {n.outputs[0]: n for n in original.graph.nodes if n.op == "BatchNormalization" and not n.domain}
    for b in cut.graph.nodes:
        a = mine.get(b.outputs[0]) if b.outputs else None
        if a is None or b.index < after or b.inputs[0] in but or b.attrs.get("training_mode"):
            continue
        if all(_own(cut.graph, b.inputs[slot]) for slot in (MEAN, VARIANCE)):
            yield Norm(cut.graph, a, b, kept(Dim(a.inputs[0], 1)), rescale)


def _own(graph: Graph, name: str) -> bool:
    """Whether a constant is read by one node alone."""
    return name in graph.constants and name not in graph.filled and len(graph.consumers.get(name, ())) == 1
