"""How far a model's answers are from the original's, without labels: a distance that suits what the outputs are.

What is compared (see `answers`) is chosen from the graph and from the values that the original gives:

- logits: in front of a Softmax or an ArgMax, less their mean over the classes (a saturated softmax shows nothing);
- boxes: [samples, anchors, features] with scores and boxes; an anchor counts as much as its score says (see `boxes`);
  where some are picked, those that they are picked from (see `picks`);
- vectors: a few numbers a sample (embeddings, logits that no Softmax shows), less the mean of each feature;
- values: everything else (maps of probabilities, regressions), less the mean of each feature.

Values are errors relative to their own variance: 0 is equal, 1 as bad as no answer. Logits and vectors are judged by
their direction, of all samples together: 1 - correlation², and a little for their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.answers import Target, targets
from onnxprune.boxes import Boxes, find_boxes
from onnxprune.feeds import Array, Feed
from onnxprune.graph import Graph
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING, Patch

Floats = NDArray[np.float64]
Outputs = Mapping[str, Array]

FEW = 4  # samples, whose mean says something
FAR, HALF = 1e30, 3e4  # numbers from here on, and of half precision, are masks, as is -inf
STILL = 1e-9  # of the mean square: answers that vary by less never change
SIZE = 0.1  # of vectors: what a size that is off by a factor of e counts


@dataclass(eq=False)
class Distance:
    """The distance of other outputs from those of the original on the same batches.

    Attributes:
        compared: the values that are compared.
        reference: what the original gives for each batch.
    """

    compared: tuple[Target, ...]
    reference: Sequence[Outputs]
    _boxes: tuple[Boxes, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Recognise boxes."""
        known = [t for t in self.compared if t.kind != "logits" or len(self.compared) > 1]
        asked = any(t.kind == "boxes" for t in self.compared)
        self._boxes = find_boxes([t.value for t in known], self.reference, asked)

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        plain = {t.kind for t in self._plain}
        return " and ".join(sorted(plain | ({"boxes"} if self._boxes else set())))

    @property
    def values(self) -> list[str]:
        """What has to be fetched."""
        return [t.value for t in self.compared]

    @property
    def _plain(self) -> list[Target]:
        taken = {name for boxes in self._boxes for name in boxes.names}
        return [t for t in self.compared if t.value not in taken]

    def __call__(self, others: Iterable[Outputs]) -> float:
        """Mean over the compared values; infinite where numbers are not finite.

        An answer of another shape is none: how many boxes are left may change in one of many batches.
        """
        sums = np.zeros((len(self._plain), 3))  # a², b², a b of the original's a and the other's b
        boxes = np.zeros((len(self._boxes), 4))
        for mine, other in zip(self.reference, others, strict=True):
            for number, target in enumerate(self._plain):
                a, b = np.atleast_1d(mine[target.value], other[target.value])
                there = a.shape == b.shape
                masked = _masked(a)
                a = self._centred(target, a, masked)
                b = self._centred(target, b, masked) if there else np.zeros_like(a)
                sums[number] += np.vdot(a, a), np.vdot(b, b), np.vdot(a, b)
            for number, each in enumerate(self._boxes):
                boxes[number] += each.off(mine, other)
        if not np.isfinite(sums).all():
            return float("inf")
        parts = [_apart(target, *each) for target, each in zip(self._plain, sums, strict=True)]
        parts += [wrong / max(sure, 1e-12) + apart / max(weight, 1e-12) for wrong, sure, apart, weight in boxes]
        result = float(np.mean(parts))
        return result if np.isfinite(result) else float("inf")

    def _centred(self, target: Target, values: Array, masked: NDArray[np.bool_]) -> Floats:
        """Logits less their mean over the classes, anything else less the original's mean of each feature."""
        wide = values.astype(np.float64)
        if masked.any():
            wide[masked] = 0.0
        with np.errstate(invalid="ignore"):  # infinite ones are found later
            if target.kind == "logits":
                count = np.maximum((~masked).sum(axis=target.axis, keepdims=True), 1)
                wide -= wide.sum(axis=target.axis, keepdims=True) / count
            else:
                wide = np.asarray(wide - self._mean(target))
        if masked.any():
            wide[masked] = 0.0
        return wide

    def _mean(self, target: Target) -> Any:
        """Of each feature, over all batches; zero of so few samples that they would lie about it."""
        if target.value not in self._means:
            parts = [_rows(outputs[target.value], target.axis) for outputs in self.reference]
            if len({part.shape[1] for part in parts}) > 1:  # as many as there are: they are no features
                parts = [part.reshape(-1, 1) for part in parts]
            flat = np.concatenate(list(map(_seen, parts)))
            mean = flat.mean(axis=0) if len(flat) >= FEW else np.zeros(flat.shape[1])
            if np.square(flat - mean).sum() <= STILL * np.square(flat).sum():  # then there is nothing but the mean
                mean = np.zeros_like(mean)
            shape = [1] * max(self.reference[0][target.value].ndim, 1)
            shape[target.axis] = -1
            self._means[target.value] = mean.reshape(shape)
        return self._means[target.value]

    _means: dict[str, Floats] = field(default_factory=dict)


def _masked(values: Array) -> NDArray[np.bool_]:
    """Which numbers are masks: they say nothing."""
    far = HALF if values.dtype == np.float16 else FAR
    return np.asarray(np.abs(values) >= far)


def _seen(values: Array) -> Floats:
    """Numbers; zero where they are masked, or none."""
    return np.asarray(np.nan_to_num(np.where(_masked(values), 0.0, values.astype(np.float64))))


def _rows(value: Array, axis: int) -> Array:
    """[everything else, features]."""
    wide = np.moveaxis(np.atleast_1d(value), axis, -1)
    return wide.reshape(-1 if wide.size else 0, wide.shape[-1])


def _apart(target: Target, aa: float, bb: float, ab: float) -> float:
    """How far b is from a: 0 is equal, 1 as bad as no answer.

    Of what is judged by its direction (which class is first, which vector is nearest) the size counts little.
    """
    if aa <= 0:  # a constant answer is right or wrong
        return float(bb > 0)
    if target.kind not in ("logits", "vectors"):
        return max(aa - 2 * ab + bb, 0.0) / aa
    if bb <= 0 or ab <= 0:
        return 1.0 + SIZE
    return max(1.0 - ab * ab / (aa * bb), 0.0) + SIZE * float(min(np.log(bb / aa) ** 2 / 4, 1.0))


def distance_of(graph: Graph, batches: Sequence[Feed], engine: Engine, kind: str = "auto") -> Distance:
    """The distance from a model's answers on some batches."""
    names = [t.value for t in targets(graph, kind)]
    reference = list(Walk(graph, batches, engine).rest(NOTHING, names, engine))
    met = {name: np.shape(value) for name, value in reference[0].items()} if reference else {}
    return Distance(targets(graph, kind, met), reference)


def off(distance: Distance, graph: Graph, batches: Sequence[Feed], engine: Engine, patch: Patch = NOTHING) -> float:
    """How far a model's answers on these batches are off."""
    walk = Walk(graph, batches, engine)
    return distance(walk.rest(patch, distance.values, engine))


def signatures(graph: Graph, feeds: Sequence[Feed], engine: Engine) -> Floats:
    """[feeds, anything]: what the model answers to each, in short: the mean of every feature of what is compared."""
    compared, found = targets(graph), list[Floats]()
    for outputs in Walk(graph, feeds, engine).rest(NOTHING, [t.value for t in compared], engine):
        compared = targets(graph, met={n: np.shape(v) for n, v in outputs.items()}) if not found else compared
        parts = [_rows(_seen(outputs[t.value]), t.axis) for t in compared]
        found.append(np.concatenate([part.sum(axis=0) / max(len(part), 1) for part in parts]))
    width = min(map(len, found))
    return np.stack([f[:width] for f in found])
