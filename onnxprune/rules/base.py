"""How rules are registered, and what they see.

A rule is a generator: it looks at one node through a `NodeView` and yields ties, locks, choices and sizes (see
`constraints`). Everything that it does not mention stays locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from onnxprune.graph import Graph, Node
from onnxprune.number import Number
from onnxprune.registry import Registry
from onnxprune.rules.constraints import (
    NOWHERE as NOWHERE,
)
from onnxprune.rules.constraints import (
    Alternative as Alternative,
)
from onnxprune.rules.constraints import (
    Choice as Choice,
)
from onnxprune.rules.constraints import (
    Constraint as Constraint,
)
from onnxprune.rules.constraints import (
    Dim as Dim,
)
from onnxprune.rules.constraints import (
    Edit as Edit,
)
from onnxprune.rules.constraints import (
    Index as Index,
)
from onnxprune.rules.constraints import (
    Linear as Linear,
)
from onnxprune.rules.constraints import (
    Lock as Lock,
)
from onnxprune.rules.constraints import (
    SetAttr as SetAttr,
)
from onnxprune.rules.constraints import (
    SetInput as SetInput,
)
from onnxprune.rules.constraints import (
    Sized as Sized,
)
from onnxprune.rules.constraints import (
    Tie as Tie,
)
from onnxprune.rules.constraints import (
    free as free,
)
from onnxprune.shapeflow import ShapeFlow
from onnxprune.sizes import Size
from onnxprune.tensors import PLAIN

Kept = Callable[[Dim], Index]
Rule = Callable[["NodeView"], Iterator[Constraint]]
Fixup = Callable[["NodeView", Kept], Iterator[Edit]]
LinearOf = Callable[["NodeView"], Linear | tuple[Linear, ...]]

# Keyed by op type; ops of other domains by "domain::op".
RULES: Registry[Rule] = Registry("rule", "onnxprune.rules")
FIXUPS: Registry[Fixup] = Registry("fixup", "onnxprune.rules")
LINEAR: Registry[LinearOf] = Registry("linear", "onnxprune.rules")

rule, fixup, linear = RULES.register, FIXUPS.register, LINEAR.register


@dataclass(frozen=True)
class Zero:
    """When a removed index, which is zero in the inputs, is zero in the output too.

    Attributes:
        need: "all" (a sum of zeros) or "any" (a product with a zero) of the operands.
        slots: the operands that count; None: all that the node has.
        when: a condition on the node, such as a Clip that leaves zero alone.
    """

    need: str
    slots: tuple[int, ...] | None = None
    when: Callable[[NodeView], bool] | None = None


ZERO: Registry[Zero] = Registry("zero", "onnxprune.rules")


def keeps_zero(
    need: str, *ops: str, slots: tuple[int, ...] | None = None, when: Callable[[NodeView], bool] | None = None
) -> None:
    """Declare for ops what `Zero` says; without it their outputs are not taken to be zero where an input is."""
    ZERO.register(*ops)(Zero(need, slots, when))


# Ops through which a weight stays a weight: a zeroed slice of the source is a zero slice of the result.
ZERO_PRESERVING = PLAIN | {"DequantizeLinear"}


@dataclass(frozen=True)
class Options:
    """What the user allows or prefers.

    Attributes:
        align: widths that the allocation will keep to; decides only between ways to cut a grouped operator.
        inexact: open the norms that take their statistics over the axis.
        head_dims: prune inside attention heads instead of whole heads.
    """

    align: int = 1
    inexact: bool = False
    head_dims: bool = False


class Unknown(Exception):
    """A rule needs a shape or a constant that is not known; its node is locked with this reason."""


class Unsized(Unknown):
    """A shape or a size is not known: where the model leaves sizes open, `--shape` may tell."""

    def reason(self, graph: Graph) -> str:
        """The message, with what helps."""
        shapes = [graph.shapes.get(name) for name in graph.inputs]
        is_open = any(shape is None or any(not isinstance(s, int) for s in shape) for shape in shapes)
        return f"{self}; give --shape" if is_open else str(self)


class NodeView:
    """One node as a rule sees it. Shapes and axes of inputs (`x`) and outputs (`y`) by slot."""

    def __init__(
        self,
        graph: Graph,
        flow: ShapeFlow,
        node: Node,
        names: Sequence[str],
        options: Options,
        zero: Callable[[Dim], bool],
    ) -> None:
        """`names`: the value at each input slot (a private name where a shared vector is read)."""
        self.graph, self.flow, self.node, self.names = graph, flow, node, names
        self.options = options
        self._zero = zero

    def as_op(self, op: str, slots: Sequence[int]) -> NodeView:
        """The node as another op with some of its inputs, in that op's order: QLinearConv as a Conv, say."""
        picked = [s for s in slots if s < len(self.node.inputs)]
        node = replace(self.node, op=op, domain="", inputs=tuple(self.node.inputs[s] for s in picked))
        return NodeView(self.graph, self.flow, node, [self.names[s] for s in picked], self.options, self._zero)

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The node's attributes."""
        return self.node.attrs

    @property
    def key(self) -> str:
        """The name under which rules of this op are registered."""
        return self.node.op if not self.node.domain else f"{self.node.domain}::{self.node.op}"

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.graph.opset

    def has(self, slot: int) -> bool:
        """Whether an optional input is given."""
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot])

    def shape(self, slot: int) -> tuple[int | str | None, ...]:
        """Shape of an input."""
        return _known(self.graph, self.node.inputs[slot])

    def out_shape(self, slot: int = 0) -> tuple[int | str | None, ...]:
        """Shape of an output."""
        return _known(self.graph, self.node.outputs[slot])

    def x(self, slot: int, axis: int) -> Dim:
        """An axis (negative counts from the end) of an input."""
        return Dim(self.names[slot], axis % len(self.shape(slot)))

    def y(self, axis: int, slot: int = 0) -> Dim:
        """An axis of an output."""
        return Dim(self.node.outputs[slot], axis % len(self.out_shape(slot)))

    def xs(self, slot: int) -> list[Dim]:
        """All axes of an input."""
        return [Dim(self.names[slot], a) for a in range(len(self.shape(slot)))]

    def ys(self, slot: int = 0) -> list[Dim]:
        """All axes of an output."""
        return [Dim(self.node.outputs[slot], a) for a in range(len(self.out_shape(slot)))]

    def outputs(self) -> Iterator[int]:
        """Slots of the outputs that exist."""
        return (slot for slot, name in enumerate(self.node.outputs) if name)

    def const(self, slot: int) -> NDArray[Any] | None:
        """The value of an input that is a constant of the model, else None."""
        name = self.node.inputs[slot] if self.has(slot) else ""
        return self.graph.array(name) if name in self.graph.constants else None

    def instance(self, size: Size) -> int:
        """The size, or a stand-in for what is open in it."""
        return self.flow.instance(size)

    def numbers(self, slot: int) -> tuple[Number, ...] | None:
        """The traced numbers of a shape input."""
        return self.flow.numbers(self.node, slot)

    def ints(self, slot: int, attr: str | None = None) -> list[int] | None:
        """The integers of an input whose values are all known, or of the attribute that older opsets have."""
        if attr is not None and attr in self.attrs:
            value = self.attrs[attr]
            return [value] if isinstance(value, int) else list(value)
        numbers = self.numbers(slot)
        if numbers is None or any(n.value is None for n in numbers):
            return None
        return [int(n.value) for n in numbers if n.value is not None]

    def zero(self, dim: Dim) -> bool:
        """Whether a removed index of an input's axis holds nothing but zeros in the masked original."""
        return self._zero(dim)

    def is_weight(self, slot: int) -> bool:
        """Whether an input is a constant, or made from constants by steps that keep a zero slice zero."""
        return is_weight(self.graph, self.node.inputs[slot]) if self.has(slot) else False


def is_weight(graph: Graph, name: str) -> bool:
    """See `NodeView.is_weight`."""
    if name in graph.constants:
        return True
    node = graph.producer.get(name)
    if node is None or node.domain or node.op not in ZERO_PRESERVING:
        return False
    if node.op == "Concat":
        return all(is_weight(graph, n) for n in node.inputs)
    return bool(node.inputs) and is_weight(graph, node.inputs[0])


def size_of(dim_size: int | str | None, what: str) -> int:
    """A size that has to be known.

    Raises:
        Unsized: it is not.
    """
    if not isinstance(dim_size, int):
        raise Unsized(f"the size of {what} is not known")
    return dim_size


def _known(graph: Graph, name: str) -> tuple[int | str | None, ...]:
    shape = graph.shapes.get(name)
    if shape is None:
        raise Unsized(_unknown(graph, name))
    return shape


def _unknown(graph: Graph, value: str) -> str:
    """Why a shape is not known, told of the first value on the way to it: one reason for all that comes after."""
    while (node := graph.producer.get(value)) is not None:
        before = next((n for n in node.inputs if n and graph.shapes.get(n) is None), None)
        if before is None:
            key = f"{node.domain}::{node.op}" if node.domain else node.op
            called = f" (node {node.proto.name!r})" if node.proto.name else ""
            read = "its inputs" if sum(map(bool, node.inputs)) > 1 else "its input"
            return f"the shape of {value!r} is not known: nothing tells what {key}{called} makes of {read}"
        value = before
    return f"the shape of {value!r} is not known"
