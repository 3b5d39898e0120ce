"""Units that share their parameters: the centroids of clusters in place of what makes each unit.

A unit is what its producers make of it: filters, biases, what BatchNormalization and other operators do to each channel.
Where BatchNormalization alone reads a contraction, filters are compared and averaged as it scales them,

    y = s (W x + b - mean) + beta,   s = gamma / sqrt(var + eps):   s W, s b, s mean and beta are averaged,

so that it does not matter how the scale is split between the two (Wang et al. 2025, Forget the Data and Fine-Tuning!
Just Fold the Network to Compress).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxprune import uses
from onnxprune.folds import FLOATS, exclusive
from onnxprune.groups import Coupling, Group, Member
from onnxprune.lossless.search import positions
from onnxprune.patch import Patch
from onnxprune.rules.base import Dim

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]

LEAST = 1 / 16  # of the mean square that a cluster keeps: what is less was a sum of opposites, and noise


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization and the contraction that it alone reads.

    Attributes:
        gamma, beta, mean, var: the names under which it reads its constants.
        scaled: axes of the contraction's weights and of its bias that run over the channels.
        epsilon: what is added to the variance.
    """

    gamma: str
    beta: str
    mean: str
    var: str
    scaled: tuple[Dim, ...]
    epsilon: float


class Makers:
    """What makes the units of a group: [unit, ...] of every parameter of theirs that is not contracted.

    Attributes:
        members: the axes of these parameters.
        able: whether units can share them: integers come with scales that units do not share.
        values: name of a use -> [unit, numbers of a unit], averaged as the module says.
    """

    def __init__(self, coupling: Coupling, group: Group, norms: Mapping[str, Norm], patch: Patch) -> None:
        """Read them, as a patch has them."""
        self.coupling, self.group = coupling, group
        self.members = tuple(m for m in group.members if m.role != "in")
        graph = coupling.graph
        self.able = bool(self.members) and all(graph.constants[m.constant].data_type in FLOATS for m in self.members)
        self.norms = list(dict.fromkeys(norms[m.use] for m in self.members if m.use in norms))
        self.values: dict[Dim, Floats] = {}
        if self.able:
            for m in self.members:
                self.values[Dim(m.use, m.axis)] = self._rows(m, current(coupling, m, patch))
        for norm in self.norms:
            self._scale(norm)

    def _places(self, member: Member) -> Index:
        """[unit, its indices] along the axis."""
        units = self.coupling.unit_of(Dim(member.use, member.axis))
        assert units is not None
        order, start, number = positions(units, self.coupling.units)
        mine = self.group.units
        return order[start[mine][:, None] + np.arange(number[mine[0]])]

    def _rows(self, member: Member, array: Array) -> Floats:
        taken = np.moveaxis(array, member.axis, 0)[self._places(member)]
        return taken.reshape(len(taken), -1).astype(np.float64)

    def laid(self, member: Member, array: Array) -> Array:
        """An array with the values in their places."""
        made = np.array(array)
        view, places = np.moveaxis(made, member.axis, 0), self._places(member)
        rows = self.values[Dim(member.use, member.axis)]
        view[places] = rows.reshape(*places.shape, *view.shape[1:]).astype(made.dtype)
        return made

    def _scale(self, norm: Norm) -> None:
        gamma, var, mean = (self.values[Dim(n, 0)] for n in (norm.gamma, norm.var, norm.mean))
        s = gamma / np.sqrt(np.maximum(var, 0.0) + norm.epsilon)
        for dim in norm.scaled:
            self.values[dim] = _each(self.values[dim], s)
        self.values[Dim(norm.mean, 0)] = mean * s
        self.values[Dim(norm.gamma, 0)] = np.abs(gamma)
        self.values[Dim(norm.var, 0)] = np.abs(s)

    def tie(self, mean: csr_array, keep_variance: bool) -> None:
        """Give all units of a cluster what they are on average: mean is [unit, unit], rows of sum one."""
        norm_of = {dim: norm for norm in self.norms for dim in norm.scaled}
        before = dict(self.values)
        for dim, rows in before.items():
            self.values[dim] = mean @ rows
        for member in self.members:
            dim = Dim(member.use, member.axis)
            if member.role == "out" and dim not in norm_of and keep_variance:
                self.values[dim] = self.values[dim] / faded(before[dim], self.values[dim], mean)
        for norm in self.norms:
            self._unscale(norm, before, mean, keep_variance)

    def _unscale(self, norm: Norm, before: Mapping[Dim, Floats], mean: csr_array, keep_variance: bool) -> None:
        dims = [Dim(n, 0) for n in (norm.gamma, norm.var, norm.mean)]
        w = norm.scaled[0]
        k = before[dims[0]].shape[1]
        fade = faded(before[w].reshape(-1, before[w].shape[1] // k), self.values[w].reshape(-1, before[w].shape[1] // k), csr_kron(mean, k)).reshape(-1, k)
        rms = np.sqrt(mean @ np.square(before[dims[0]]))
        s = self.values[dims[1]]
        back = np.divide(1.0, s, out=np.zeros_like(s), where=s > 0)
        for dim in norm.scaled:
            self.values[dim] = _each(self.values[dim], back)
        self.values[dims[2]] = self.values[dims[2]] * back
        truth = rms * fade  # the deviation of what the shared filters make, by the statistics of the original ones
        gamma = rms if keep_variance else truth
        scale = s / fade if keep_variance else s
        self.values[dims[0]] = gamma
        deviation = np.divide(gamma, scale, out=np.ones_like(s), where=scale > 0)
        self.values[dims[1]] = np.maximum(np.square(deviation) - norm.epsilon, 0.0)


def csr_kron(mean: csr_array, k: int) -> csr_array:
    from scipy.sparse import eye_array, kron
    return mean if k == 1 else csr_array(kron(mean, eye_array(k)))


def faded(before: Floats, after: Floats, mean: csr_array) -> Floats:
    """[unit, 1]: the root mean square of what filters make after they were averaged, over what it was: (0, 1]."""
    was = mean @ np.square(before).sum(axis=1, keepdims=True)
    now = np.square(after).sum(axis=1, keepdims=True)
    ratio = np.divide(now, was, out=np.ones_like(was), where=was > 0)
    return np.sqrt(np.clip(ratio, LEAST, 1.0))


def _each(rows: Floats, scale: Floats) -> Floats:
    """Numbers of a unit times what belongs to each of its indices: [unit, indices * rest] and [unit, indices]."""
    return (rows.reshape(*scale.shape, -1) * scale[:, :, None]).reshape(rows.shape)


def current(coupling: Coupling, member: Member, patch: Patch) -> Array:
    """A parameter as one of its users reads it."""
    if member.use != member.constant:
        node, slot = uses.reader(member.use)
        found = patch.inputs.get((coupling.graph.nodes[node].outputs[0], slot))
    else:
        found = patch.weights.get(member.constant)
    return coupling.graph.array(member.constant) if found is None else found


def put(coupling: Coupling, member: Member, array: Array) -> Patch:
    """A parameter as one of its users is to read it."""
    if member.use == member.constant:
        return Patch({member.constant: array})
    node, slot = uses.reader(member.use)
    return Patch(inputs={(coupling.graph.nodes[node].outputs[0], slot): array})


def norms(self) -> list[Norm]:
        """The BatchNormalizations among them."""
        mine = {m.use for m in self.members}
        return [n for n in norms(self.coupling) if {n.gamma, n.beta, n.mean, n.var, *(d.value for d in n.scaled)} <= mine]


def norms(coupling: Coupling) -> Iterator[Norm]:
    """Every BatchNormalization that alone reads a contraction whose weights nobody else reads."""
    graph = coupling.graph
    made = {node.outputs[0]: spec for node, spec in coupling.linears}
    for view in coupling.views:
        spec = made.get(view.node.inputs[0]) if view.node.op == "BatchNormalization" and not view.node.domain else None
        if spec is None or not exclusive(graph, view.node.inputs[0]):
            continue
        scaled = [spec.w_out]
        if spec.bias is not None:
            scaled.append(Dim(spec.bias, len(graph.shapes.get(coupling.source.get(spec.bias, spec.bias)) or ()) - 1))
        names = [coupling.source.get(d.value, d.value) for d in scaled]
        size = graph.size(view.node.inputs[1]) if view.node.inputs[1] in graph.constants else -1
        whole = all(n in graph.constants and graph.constants[n].dims[d.axis] == size for n, d in zip(names, scaled))
        alone = exclusive(graph, names[0]) and (len(names) < 2 or names[1] != scaled[1].value or exclusive(graph, names[1]))
        if whole and alone:
            yield Norm(*view.names[1:5], tuple(scaled), float(view.node.attrs.get("epsilon", 1e-5)))
