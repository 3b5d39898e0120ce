"""How far a model's answers are from the original's, without labels: a distance that suits what the outputs are.

What is compared is chosen from the graph and from the values that the original gives:

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
from onnx import TensorProto

from onnxprune.boxes import Boxes, find_boxes
from onnxprune.errors import DataError, one_of
from onnxprune.feeds import Array, Feed
from onnxprune.graph import Graph, Node
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING, Patch
from onnxprune.picks import in_front, picked

Floats = NDArray[np.float64]
Outputs = Mapping[str, Array]

KINDS = ("auto", "logits", "vectors", "boxes", "values")
FEW = 4  # samples, whose mean says something
FAR, HALF = 1e30, 3e4  # numbers from here on, and of half precision, are masks, as is -inf
STILL = 1e-9  # of the mean square: answers that vary by less never change
SIZE = 0.1  # of vectors: what a size that is off by a factor of e counts
FEATURES = 3  # of a vector, at least: fewer are measures of their own
SOFT = frozenset({"Softmax", "LogSoftmax"})
CHOICES = frozenset({"ArgMax", "Hardmax"})  # what an answer may have gone through after its logits
BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Clip"})  # what each of its numbers is says something
PLAIN = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})


@dataclass(frozen=True)
class Target:
    """A value that is compared. `axis`: of the classes, the features or the anchors' features."""

    value: str
    kind: str
    axis: int


def targets(graph: Graph, kind: str = "auto", met: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Target, ...]:
    """The values that are compared: the outputs, or the numbers that they are made from.

    Args:
        graph: the model.
        kind: "auto", or one of `KINDS` for all outputs.
        met: the shapes that values had in a run, for those of which the model tells not even the rank.

    Raises:
        OptionError: there is no such kind.
        DataError: no output is made from numbers that could be compared.
    """
    one_of("--distance", kind, KINDS)
    weighted = _weighted(graph)
    found: dict[str, Target] = {}
    chosen = picked(graph, weighted)
    nearest = [n for output in graph.outputs for n in in_front(graph, output, chosen, weighted)]
    for value in dict.fromkeys(nearest):
        for name, soft in _sources(graph, value):
            if name not in weighted:
                continue
            shape = graph.shapes.get(name) or (met or {}).get(name) or ()
            rank = len(shape)
            if soft is not None and kind in ("auto", "logits"):
                axis = int(soft.attrs.get("axis", -1 if graph.opset >= 13 or soft.op == "ArgMax" else 1))
                axis = 0 if soft.op == "ArgMax" and "axis" not in soft.attrs else axis
                found[name] = Target(name, "logits", axis % max(rank, 1))
            else:
                maker = graph.producer.get(name)
                free = maker is None or maker.op not in BOUNDED
                direction = free and rank == 2 and isinstance(shape[1], int) and shape[1] >= FEATURES
                made = kind if kind != "auto" else "vectors" if direction else "values"
                found[name] = Target(name, made, _features(shape))
    if not found:
        raise DataError(
            f"{graph.name}: no output is made from numbers to compare; prune without: --criterion l2 --recover none"
        )
    return tuple(found.values())


def _features(shape: Sequence[Any]) -> int:
    """The axis of the features: the last, of maps that behind the samples; but not one whose size is open."""
    usual, other = (1, -1) if len(shape) > 3 else (-1, 1)
    open_sizes = [not isinstance(size, int) for size in shape]
    axis = other if len(shape) > 2 and open_sizes[usual] and not open_sizes[other] else usual
    return axis % max(len(shape), 1)


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
    return np.asarray(np.abs(values.astype(np.float64)) >= far)


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


def _sources(graph: Graph, output: str) -> Iterable[tuple[str, Node | None]]:
    """The numbers that an output is made from, each with the Softmax or ArgMax that reads them."""
    name, chooser = output, None
    while (node := graph.producer.get(name)) is not None and not node.domain:
        if node.op in SOFT:
            return [(node.inputs[0], node)]
        if node.op in CHOICES:
            chooser = node if node.op == "ArgMax" else chooser
        elif node.op not in PLAIN:
            break
        name = node.inputs[0]
    if chooser is not None:
        return [(name, chooser)]
    return [(output, None)] if _is_float(graph, output) else [(n, None) for n in _floats_behind(graph, output)]


def _floats_behind(graph: Graph, name: str) -> list[str]:
    """The nearest float values from which an integer value is computed."""
    queue, seen, found = [name], {name}, list[str]()
    for value in queue:
        node = graph.producer.get(value)
        for source in () if node is None else node.inputs:
            if source and source not in seen and source not in graph.fixed:
                seen.add(source)
                (found if _is_float(graph, source) else queue).append(source)
    return found


def _is_float(graph: Graph, name: str) -> bool:
    infos = (*graph.shell.graph.output, *graph.shell.graph.value_info, *graph.shell.graph.input)
    kind = next((i.type.tensor_type.elem_type for i in infos if i.name == name), TensorProto.FLOAT)
    return kind in _FLOAT_TYPES


_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


def _weighted(graph: Graph) -> frozenset[str]:
    """Values that depend on inputs and on weights."""
    found: set[str] = set()
    parameters = set(graph.parameters)
    fixed_by_weights: set[str] = set(parameters)
    for node in graph.nodes:
        if node.op in ("Shape", "Size") and not node.domain:  # weights have no say in it
            continue
        reads = (*node.inputs, *node.captures)
        if any(n in fixed_by_weights for n in reads) or node.captures:
            fixed_by_weights.update(node.outputs)
        if any(n in fixed_by_weights for n in reads):
            found.update(n for n in node.outputs if n not in graph.fixed)
    return frozenset(found)


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
