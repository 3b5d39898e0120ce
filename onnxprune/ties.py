"""Units that share their parameters: the centroids of clusters take the place of what makes each unit.

A unit is what its makers make of it: filters, biases, what BatchNormalization and other operators do to each channel.
Where BatchNormalization alone reads a contraction, what it makes of the filters is averaged,

    y = s (W x + b - mean) + beta,   s = gamma / sqrt(var + eps):   s W, s b, s mean and beta,

so that it does not matter how a scale is split between the two (Wang et al. 2025, Forget the Data and Fine-Tuning! Just
Fold the Network to Compress).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune import uses
from onnxprune.clusters import Clusters
from onnxprune.folds import Array, Floats, exclusive
from onnxprune.groups import Coupling, Group, Member
from onnxprune.lossless.search import positions
from onnxprune.patch import NOTHING, Patch
from onnxprune.rules.base import Dim, Index
from onnxprune.tensors import FLOATS

LEAST = 1 / 16  # of the mean square that a cluster keeps: filters that cancel out do not grow from rounding


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization that alone reads a contraction.

    Attributes:
        y: what it reads.
        gamma, mean, var: axes of its constants.
        scaled: axes of the contraction's weights and bias that run over the channels.
        epsilon: what is added to the variance.
    """

    y: str
    gamma: Dim
    mean: Dim
    var: Dim
    scaled: tuple[Dim, ...]
    epsilon: float

    @property
    def dims(self) -> tuple[Dim, ...]:
        """All axes of constants that are averaged together."""
        return (self.gamma, self.mean, self.var, *self.scaled)

    def scale(self, gamma: Floats, var: Floats) -> Floats:
        """What channels are multiplied with."""
        return np.asarray(gamma / np.sqrt(np.maximum(var, 0.0) + self.epsilon))


def norms(coupling: Coupling) -> list[Norm]:
    """Every BatchNormalization that alone reads a contraction whose weights and bias are read by nobody else."""
    graph, found = coupling.graph, []
    specs = {node.outputs[0]: spec for node, spec in coupling.linears}
    for view in coupling.views:
        spec = specs.get(view.node.inputs[0]) if view.key == "BatchNormalization" else None
        if spec is None or not exclusive(graph, view.node.inputs[0]):
            continue
        scaled = [spec.w_out]
        if spec.bias is not None:
            scaled.append(Dim(spec.bias, len(graph.shapes.get(coupling.source.get(spec.bias, spec.bias)) or ()) - 1))
        if all(_own(coupling, dim, view.shape(1)[0]) for dim in scaled):
            gamma, _, mean, var = (Dim(name, 0) for name in view.names[1:5])
            epsilon = float(view.attrs.get("epsilon", 1e-5))
            found.append(Norm(view.node.inputs[0], gamma, mean, var, tuple(scaled), epsilon))
    return found


def _own(coupling: Coupling, dim: Dim, size: int | str | None) -> bool:
    """Whether an axis is of a constant that one node alone reads (or a private name of it), and runs over channels."""
    graph, name = coupling.graph, coupling.source.get(dim.value, dim.value)
    alone = name != dim.value or exclusive(graph, name)
    return alone and name in graph.constants and graph.constants[name].dims[dim.axis] == size


def places(coupling: Coupling, group: Group, dim: Dim) -> Index | None:
    """[unit of the group, its indices] along an axis; None where it has none."""
    units = coupling.unit_of(dim)
    if units is None or not np.isin(coupling.group_of[units[units >= 0]], coupling.group_of[group.units[0]]).any():
        return None
    order, start, number = positions(units, coupling.units)
    count = number[group.units]
    if not count[0] or (count != count[0]).any():
        return None
    return np.asarray(order[start[group.units][:, None] + np.arange(count[0])])


class Makers:
    """What makes the units of a group.

    Attributes:
        members: the parameters of the units that are not contracted over them.
        able: whether units can share these: integers come with scales that units do not share.
    """

    def __init__(self, coupling: Coupling, group: Group, norms: Mapping[Dim, Norm], patch: Patch = NOTHING) -> None:
        """Find them.

        Args:
            coupling: the analysis.
            group: the group.
            norms: axis -> the BatchNormalization that it is averaged with.
            patch: what has changed already.
        """
        self.coupling, self.group, self._norms, self._patch = coupling, group, norms, patch
        graph = coupling.graph
        self.members = tuple(m for m in group.members if m.role != "in" and m.constant not in graph.filled)
        self._places = {m: places(coupling, group, Dim(m.use, m.axis)) for m in self.members}
        plain = all(graph.constants[m.constant].data_type in FLOATS for m in group.members)
        self.able = bool(self.members) and plain and all(at is not None for at in self._places.values())

    def values(self, *roles: str) -> dict[Dim, Array]:
        """Axis of a parameter (with one of these roles, if some are given) -> [unit, numbers of a unit].

        They are float32, or float64 where the model has it so.
        """
        found = {}
        for m in self.members:
            if not roles or m.role in roles:
                rows = np.moveaxis(self._read(m), m.axis, 0)[self._places[m]]
                found[Dim(m.use, m.axis)] = rows.reshape(len(rows), -1).astype(
                    np.result_type(rows, np.float32), copy=False
                )
        return found

    def tied(self, clusters: Clusters, variance: bool) -> Patch:
        """What has changed, and that all units of a cluster are what they are on average.

        Args:
            clusters: of the units of the group.
            variance: filters grow so that their mean square is that of the originals, which averages fall short of.
        """
        values, patch = self.values(), self._patch
        norms = {norm.y: norm for dim in values if (norm := self._norms.get(dim)) and norm.gamma in values}
        scales = {y: norm.scale(values[norm.gamma], values[norm.var]) for y, norm in norms.items()}
        for y, norm in norms.items():
            for dim in (norm.mean, *norm.scaled):
                values[dim] = _times(values[dim], scales[y])
        # The largest weights are not held twice, where what they were is not asked for again.
        new = {dim: clusters.mean(values[dim] if variance else values.pop(dim)) for dim in list(values)}
        for member in self.members:
            dim = Dim(member.use, member.axis)
            if variance and member.role == "out" and dim not in self._norms:
                new[dim] /= _faded(values[dim], new[dim], clusters)
        for y, norm in norms.items():
            shared = clusters.mean(np.abs(scales[y]))
            back = np.divide(1.0, shared, out=np.zeros_like(shared), where=shared > 0)
            fade = _faded(values[norm.scaled[0]], new[norm.scaled[0]], clusters) if variance else 1.0
            for dim in (norm.mean, *norm.scaled):
                new[dim] = _times(new[dim], back)
            new[norm.gamma] = shared / fade * np.sqrt(np.maximum(new[norm.var], 0.0) + norm.epsilon)
        for member in self.members:
            patch |= self._written(member, new[Dim(member.use, member.axis)], patch)
        return patch

    def _read(self, member: Member, patch: Patch | None = None) -> Array:
        """A parameter as one of its users reads it."""
        patch = self._patch if patch is None else patch
        if member.use == member.constant:
            found = patch.weights.get(member.constant)
        else:
            found = patch.inputs.get(self._slot(member))
        return self.coupling.graph.array(member.constant) if found is None else found

    def _written(self, member: Member, rows: Floats, patch: Patch) -> Patch:
        """A parameter with other numbers, as one of its users is to read it."""
        array, at = np.array(self._read(member, patch)), self._places[member]
        assert at is not None
        moved = np.moveaxis(array, member.axis, 0)
        moved[at] = rows.reshape(*at.shape, *moved.shape[1:]).astype(array.dtype, copy=False)
        own = member.use != member.constant
        return Patch(inputs={self._slot(member): array}) if own else Patch({member.constant: array})

    def _slot(self, member: Member) -> tuple[str, int]:
        node, slot = uses.reader(member.use)
        return self.coupling.graph.nodes[node].outputs[0], slot


def _times(rows: Floats, scale: Floats) -> Floats:
    """[unit, numbers]: those of each index of a unit times [unit, indices]."""
    return np.asarray((rows.reshape(*scale.shape, -1) * scale[:, :, None]).reshape(rows.shape))


def _faded(before: Floats, after: Floats, clusters: Clusters) -> Floats:
    """[unit, 1]: the root mean square of filters after they were averaged over what it was before."""
    was = clusters.mean(np.square(before).sum(axis=1, keepdims=True))
    now = np.square(after).sum(axis=1, keepdims=True)
    ratio = np.divide(now, was, out=np.ones_like(was), where=was > 0)
    return np.asarray(np.sqrt(np.clip(ratio, LEAST, 1.0)))
