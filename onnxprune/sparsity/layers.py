"""The layers whose weights can become zero, as matrices on which a pattern lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from onnx import helper

from onnxprune.consumers import Consumer, consumers
from onnxprune.errors import ModelError, OptionError, expressions
from onnxprune.folds import foldable
from onnxprune.groups import Coupling
from onnxprune.patch import Patch
from onnxprune.problem import each
from onnxprune.rules.base import is_weight
from onnxprune.sparsity.patterns import Array, Floats, Grid, Mask, Pattern


class Shape(NamedTuple):
    """Of the weights of a layer: groups, and of one of them outputs, input channels, taps; taps in a kernel's row."""

    groups: int
    outputs: int
    channels: int
    taps: int
    row: int


@dataclass(frozen=True, eq=False)
class Layer:
    """A contraction and the pattern on its weights.

    Attributes:
        reader: the contraction.
        shape: of its weights.
        grid: the pattern on them.
    """

    reader: Consumer
    shape: Shape
    grid: Grid

    @property
    def label(self) -> str:
        """The node's name."""
        return self.reader.node.label

    @property
    def columns(self) -> int:
        """Of its matrices."""
        return self.shape.channels * self.shape.taps

    @property
    def size(self) -> int:
        """Weights."""
        return self.shape.groups * self.shape.outputs * self.columns

    def matrix(self) -> Array:
        """[groups, outputs, columns], with Gemm's alpha, made anew each time: layers are many."""
        raw, alpha = self.raw(), self.reader.each.alpha
        return raw if alpha == 1 else (raw.astype(np.float64) * alpha).astype(raw.dtype)

    def raw(self) -> Array:
        """[groups, outputs, columns]: the weights as the model has them, without Gemm's alpha."""
        return self.stored(self.reader.coupling.graph.array(self.reader.constant))

    def patch(self, gone: Mask, matrix: Floats | None = None, shift: Floats | None = None) -> Patch:
        """The model with zeros in the weights.

        Args:
            gone: [groups, outputs, columns], where they are.
            matrix: what the weights are besides; None: as they were.
            shift: [outputs], added to the bias; None: nothing.

        Raises:
            ModelError: what is stored is not what the pattern asks for.
        """
        graph, name = self.reader.coupling.graph, self.reader.constant
        if matrix is None:
            made = np.where(self._laid(gone.astype(np.float32)) != 0, 0, graph.array(name))
        else:
            made = self._laid(matrix)
        made = made.astype(helper.tensor_dtype_to_np_dtype(graph.constants[name].data_type), copy=False)
        if not self.grid.holds(self.stored(made), gone):
            raise ModelError(f"sparsify: {self.label!r} does not have its pattern; please report this model")
        return Patch({name: made}) if shift is None else Patch({name: made}) | self.reader.shifted(shift)

    def _laid(self, matrix: Array) -> Array:
        found = self.reader.patch(self.grid.unlay(matrix, self.shape.taps), None)
        return np.asarray(found.weights[self.reader.constant])

    def hollow(self, matrix: Array) -> bool:
        """Whether a whole output, or all weights of an input channel, are zero."""
        used = self.grid.unlay(matrix != 0, self.shape.taps)
        return not (used.any(axis=(2, 3)).all() and used.any(axis=(1, 3)).all())

    def stored(self, constant: Array) -> Array:
        """[groups, outputs, columns] of weights as the model has them: read back, not remembered."""
        rows = self.reader.each.rows({self.reader.constant: constant})
        assert rows is not None
        return self.grid.lay(rows.reshape(self.shape.groups, self.shape.outputs, *rows.shape[1:]))


def layers_of(coupling: Coupling, pattern: Pattern, keep: str | Sequence[str]) -> tuple[list[Layer], dict[str, str]]:
    """The layers on which a pattern fits, in the order of the nodes; and the others, with why they stay as they are.

    Args:
        coupling: the analysis.
        pattern: what becomes zero together.
        keep: regular expression or several; layers with a matching node or tensor stay dense.

    Raises:
        OptionError: an expression that is none or matches nothing; no layer is left.
    """
    found, left = list[Layer](), dict[str, str]()
    readers = {c.node.index: c for c in consumers(coupling)}
    kept = _kept({c.node.index: [c.node.label, *c.node.outputs, c.constant] for c in readers.values()}, keep)
    for node, spec in foldable(coupling):
        if (reader := readers.get(node.index)) is None:
            if is_weight(coupling.graph, coupling.source.get(spec.w_in.value, spec.w_in.value)):
                left[node.label] = "its weights are shared, quantised, computed or a stack of matrices"
            continue
        shape = _shape(reader)
        grid = "kept, as was asked for" if node.index in kept else pattern.on(shape[:4], shape.row)
        if isinstance(grid, Grid):
            found.append(Layer(reader, shape, grid))
        else:
            left[node.label] = grid
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:3]) or "it has no such layers"
        raise OptionError(
            f"sparsify: pattern = {pattern.text!r} fits no layer of {coupling.graph.name} ({why}); choose another one"
        )
    return found, left


def _shape(reader: Consumer) -> Shape:
    graph, spec = reader.coupling.graph, reader.spec
    name = reader.coupling.source.get(spec.w_in.value, spec.w_in.value)
    sizes = [s for s in graph.shapes[name] or () if isinstance(s, int)]
    window = [] if reader.node.op in ("Gemm", "MatMul") else sizes[2:]
    outputs, channels = sizes[spec.w_out.axis], sizes[spec.w_in.axis]
    if spec.groups > 1 and spec.w_in.axis == 0:  # ConvTranspose: the groups lie along the input axis
        channels //= spec.groups
    else:
        outputs //= spec.groups
    return Shape(spec.groups, outputs, channels, prod(window), (window or [1])[-1])


def _kept(labels: dict[int, list[str]], keep: str | Sequence[str]) -> set[int]:
    """The layers that one of the expressions matches."""
    found = set[int]()
    for pattern in each(keep):
        (expression,) = expressions("sparsify: keep =", pattern)
        hit = {index for index, names in labels.items() if any(map(expression.search, names))}
        if not hit:
            raise OptionError(f"sparsify: keep = {pattern!r} matches no layer; see `onnxprune inspect` for the names")
        found |= hit
    return found
