"""The contractions that read channels: their weights as matrices, and the rows that weights are fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.folds import Bias, Contraction, contraction, foldable
from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.patch import NOTHING, Patch
from onnxprune.rules.base import Dim, Linear

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer whose weights can be set, of `folds.KINDS`: y = W x + b, one W for each group of channels.

    Attributes:
        each: how the operator reads its weights.
        constant: its weights; only this node reads them.
    """

    each: Contraction
    constant: str

    @property
    def coupling(self) -> Coupling:
        """The model."""
        return self.each.coupling

    @property
    def node(self) -> Node:
        """The operator."""
        return self.each.node

    @property
    def spec(self) -> Linear:
        """Its contraction."""
        return self.each.spec

    @property
    def bias(self) -> Bias | None:
        """Where b is; None: it has none, and there is no place for one."""
        return self.each.place

    @property
    def x(self) -> Dim:
        """The axis of the value that is contracted."""
        return Dim(self.coupling.source.get(self.spec.x.value, self.spec.x.value), self.spec.x.axis)

    @property
    def y(self) -> Dim:
        """The axis of the result that runs over W's rows."""
        return self.spec.y

    @property
    def mixes(self) -> bool:
        """Whether channels meet in it; in a depthwise convolution they do not."""
        return self.shape[2] > 1 or self.groups == 1

    @property
    def groups(self) -> int:
        """Groups of channels that do not meet."""
        return self.spec.groups

    @cached_property
    def units(self) -> NDArray[np.int32]:
        """[channels of x]: the unit of each; -1: it cannot go."""
        units = self.coupling.unit_of(self.spec.x)
        channels = self.groups * self.shape[2]
        return np.full(channels, -1, dtype=np.int32) if units is None else units

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the weights: groups, rows, channels of a group, taps."""
        sizes, (narrow, out) = self._sizes, (self.spec.w_in.axis, self.spec.w_out.axis)
        taps = prod(np.delete(sizes, [narrow, out]).tolist())
        if self.groups > 1 and narrow == 0:
            return self.groups, sizes[out], sizes[narrow] // self.groups, taps
        return self.groups, sizes[out] // self.groups, sizes[narrow], taps

    @property
    def matrix(self) -> Array:
        """[groups, rows, channels of a group, taps], with Gemm's alpha: as the model has them, at least in float32.

        Read anew each time, as `weights`: layers are many.
        """
        rows = self.each.rows({})
        assert rows is not None
        shaped = rows.reshape(self.shape)
        return shaped if self.each.alpha == 1 else np.asarray(shaped.astype(np.float64) * self.each.alpha)

    @property
    def weights(self) -> Floats:
        """`matrix`, in float64."""
        return self.matrix.astype(np.float64, copy=False)

    @cached_property
    def offset(self) -> Floats:
        """[rows]: the bias that is part of y; zero where it is added later, or is none."""
        if self.bias is None or self.spec.bias_slot is None:
            return np.zeros(self.shape[0] * self.shape[1])
        return np.asarray(self.bias.value.reshape(-1).astype(np.float64) * self.each.beta)

    def patch(self, weights: Array, offset: Floats | None) -> Patch:
        """The model with other weights, laid out as `weights`, and with another `offset`, where there is place."""
        w = weights if self.each.alpha == 1 else weights / self.each.alpha
        spec, sizes, constants = self.spec, self._sizes, self.coupling.graph.constants
        if self.groups > 1 and spec.w_in.axis == 0:
            laid = w.swapaxes(1, 2).reshape(sizes)
        else:
            moved = w.reshape(-1, *w.shape[2:3], *np.delete(sizes, [spec.w_out.axis, spec.w_in.axis]))
            laid = np.moveaxis(moved, (0, 1), (spec.w_out.axis, spec.w_in.axis))
        dtype = helper.tensor_dtype_to_np_dtype(constants[self.constant].data_type)
        found = Patch({self.constant: self._behind(self._name, laid).astype(dtype, copy=False)})
        return found if offset is None else found | self.shifted(offset - self.offset)

    def shifted(self, amount: Floats) -> Patch:
        """The model with an amount for each row added to b, where there is place."""
        if self.bias is None:
            return NOTHING
        value = amount / self.each.beta + self.bias.value.reshape(-1)
        shaped = value.reshape(self.bias.value.shape).astype(self.bias.value.dtype)
        if self.bias.constant is None:
            return Patch(inputs={(self.node.outputs[0], 2): shaped})
        return Patch({self.bias.constant: shaped})

    @property
    def _name(self) -> str:
        """Of the weights, as the operator reads them."""
        return self.coupling.source.get(self.spec.w_in.value, self.spec.w_in.value)

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Of that value."""
        return tuple(s for s in self.coupling.graph.shapes.get(self._name) or () if isinstance(s, int))

    def _behind(self, name: str, value: Array) -> Array:
        """What the constant is where Transpose and Cast make the value of it."""
        graph = self.coupling.graph
        while name not in graph.constants:
            node = graph.producer[name]
            if node.op == "Transpose":
                value = value.transpose(np.argsort(node.attrs.get("perm") or range(value.ndim)[::-1]))
            name = node.inputs[0]
        return value

    # Rows

    def places(self, x: tuple[int, ...], y: tuple[int, ...], count: int, rng: np.random.Generator) -> Places:
        """Where rows are taken: `count` places of the output at most, drawn without replacement.

        Args:
            x: shape of the input.
            y: shape of the output.
            count: places in one sample (where samples have no places of their own: in all).
            rng: draws them.
        """
        if not self.node.op.startswith("Conv"):
            total = prod(np.delete(x, self.x.axis))
            drawn = rng.permutation(total)[: count * max(1, x[0] if self.x.axis else 1)]
            return Places(np.sort(drawn), None)
        total = prod(y[2:])
        drawn = np.sort(rng.permutation(total)[:count]) if count < total else np.arange(total)
        return Places(drawn, self._taps(x[2:], y[2:], drawn))

    def features(self, x: Array, places: Places) -> Array:
        """[rows, groups, channels of a group, taps] of an input, in the type of x or float32."""
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
        if places.taps is None:
            flat = np.moveaxis(x, self.x.axis, -1).reshape(-1, x.shape[self.x.axis])
            return flat[places.drawn].reshape(-1, 1, flat.shape[1], 1)
        flat = x.reshape(*x.shape[:2], -1)
        if (places.taps < 0).any():  # the zeros around it
            flat = np.concatenate([flat, np.zeros((*flat.shape[:2], 1), dtype=flat.dtype)], axis=2)
        taken = np.moveaxis(flat[:, :, places.taps], 1, 2)  # sample, place, channel, tap
        return taken.reshape(-1, self.groups, taken.shape[2] // self.groups, taken.shape[3])

    def targets(self, y: Array, places: Places) -> Array:
        """[rows, outputs] of a result (or of anything of its shape, such as what is added to it)."""
        y = y if y.dtype in (np.float32, np.float64) else y.astype(np.float32)
        if places.taps is None:
            return np.moveaxis(y, self.y.axis, -1).reshape(-1, y.shape[self.y.axis])[places.drawn]
        flat = y.reshape(*y.shape[:2], -1)[:, :, places.drawn]
        return np.asarray(np.moveaxis(flat, 1, 2).reshape(-1, y.shape[1]))

    def _taps(self, x: tuple[int, ...], y: tuple[int, ...], drawn: Index) -> Index:
        """[places, taps]: the place of the input that a tap meets; -1: padding."""
        attrs = self.node.attrs
        shape = self.coupling.graph.shapes[self.node.inputs[1]]
        window = tuple(s for s in (shape or ())[2:] if isinstance(s, int))
        rank = len(window)
        strides, dilations = (list(attrs.get(n) or [1] * rank) for n in ("strides", "dilations"))
        begins = _begins(attrs, x, y, window, strides, dilations)
        axes = np.unravel_index(drawn, y)
        taps = np.unravel_index(np.arange(prod(window)), window)
        inside, flat = np.ones((drawn.size, prod(window)), dtype=bool), np.zeros((drawn.size, prod(window)), np.intp)
        for a in range(rank):
            if self.node.op == "ConvTranspose":
                reach = axes[a][:, None] + begins[a] - taps[a] * dilations[a]
                inside &= reach % strides[a] == 0
                at = reach // strides[a]
            else:
                at = axes[a][:, None] * strides[a] - begins[a] + taps[a] * dilations[a]
            inside &= (at >= 0) & (at < x[a])
            flat = flat * x[a] + np.clip(at, 0, x[a] - 1)
        return np.where(inside, flat, -1)


@dataclass(frozen=True, eq=False)
class Places:
    """Places of an output, and for convolutions what of the input each tap meets there."""

    drawn: Index
    taps: Index | None


def consumers(coupling: Coupling) -> Iterator[Consumer]:
    """Every contraction with weights that can be set, in the order of the nodes."""
    for node, spec in foldable(coupling):
        each = contraction(coupling, node, spec)
        if each.columns is None or each.alpha == 0 or not _regular(coupling, node, spec):
            continue
        if each.columns[0] not in coupling.graph.filled:
            yield Consumer(each, each.columns[0])


def _regular(coupling: Coupling, node: Node, spec: Linear) -> bool:
    """Whether W is one matrix (a stack of them, for groups) and its place and geometry are known."""
    shape = coupling.graph.shapes.get(coupling.source.get(spec.w_in.value, spec.w_in.value)) or ()
    if not spec.w_out.value or not spec.y.value or not all(isinstance(s, int) for s in shape):
        return False
    if node.op in ("Einsum", "Gemm", "MatMul"):
        return len(shape) == 2
    transposed = node.op == "ConvTranspose"
    return not transposed or (node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in node.attrs)


def _begins(
    attrs: Mapping[str, Any],
    x: tuple[int, ...],
    y: tuple[int, ...],
    window: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[int]:
    """The padding before each spatial axis."""
    how = attrs.get("auto_pad", "NOTSET")
    if how == "NOTSET":
        return list(attrs.get("pads") or [0] * len(window))[: len(window)]
    if how == "VALID":
        return [0] * len(window)
    total = [
        max(0, (out - 1) * s + (k - 1) * d + 1 - size)
        for out, s, k, d, size in zip(y, strides, window, dilations, x, strict=True)
    ]
    return [t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total]
