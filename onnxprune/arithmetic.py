"""Shape arithmetic, operator by operator: what becomes of the traced numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto, helper

from onnxprune.graph import Node
from onnxprune.number import Leaf, Number, Numbers, SizeOf
from onnxprune.shapes import Shape
from onnxprune.sizes import Size, applied, canonical, factor, parse, product, quotient, total

LONGEST = 64  # elements; longer tensors are data, not shapes


class Reader(Protocol):
    """What a step sees: the numbers at an input slot, shapes, and element types."""

    types: Mapping[str, int]

    def original(self, node: Node, slot: int) -> Numbers | None:
        """The numbers that reach an input slot."""

    def shape(self, name: str) -> Shape:
        """The shape of a value."""


Step = Callable[[Reader, Node], Numbers | None]


def evaluate(node: Node, opset: int, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    """What ONNX's reference makes of a node with one output; None where it cannot tell."""
    from onnx.reference import ReferenceEvaluator

    inputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in dict.fromkeys(node.inputs) if n]
    outputs = [helper.make_tensor_value_info(node.outputs[0], TensorProto.UNDEFINED, None)]
    model = helper.make_model(
        helper.make_graph([node.proto], "step", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        with np.errstate(all="ignore"):
            found: Any = ReferenceEvaluator(model).run(None, {**feeds})
        return np.asarray(found[0])
    except Exception:
        return None


def _same(flow: Reader, node: Node) -> Numbers | None:
    return flow.original(node, 0)


def _cast(flow: Reader, node: Node) -> Numbers | None:
    if node.attrs["to"] in (TensorProto.INT64, TensorProto.INT32):
        return _each(int, _truncated, keep=True)(flow, node)
    if node.attrs["to"] in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return _each(float, lambda size: size)(flow, node)
    return None


def _each(function: Callable[[Any], int | float], open_: Callable[[Size], Size], keep: bool = False) -> Step:
    """Element by element; `keep`: an integer that stays what it is keeps its source."""

    def step(flow: Reader, node: Node) -> Numbers | None:
        data = flow.original(node, 0)
        if data is None:
            return None
        return tuple(
            n
            if keep and not isinstance(n.value, float) and "ratio(" not in (n.symbol or "")
            else Number(_stored(flow, node, _finite(function, n.value)), None, n.sizes)
            if n.value is not None
            else _number(n.sizes, None if n.symbol is None else open_(n.symbol))
            for n in data
        )

    return step


def _arithmetic(function: Callable[[Any, Any], Any], open_: Callable[[Size, Size], Size | None]) -> Step:
    def step(flow: Reader, node: Node) -> Numbers | None:
        a, b = flow.original(node, 0), flow.original(node, 1)
        if a is None or b is None or len(node.inputs) > 2 or not _flat(flow, node):
            return None
        if len(a) != len(b) and 1 not in (len(a), len(b)):
            return None
        length = max(len(a), len(b))
        pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
        return tuple(
            Number(_stored(flow, node, _finite(function, p.value, q.value)), None, p.sizes | q.sizes)
            if p.value is not None and q.value is not None
            else _number(
                p.sizes | q.sizes, open_(p.size, q.size) if p.size is not None and q.size is not None else None
            )
            for p, q in pairs
        )

    return step


def _multiplied(flow: Reader, node: Node) -> Numbers | None:
    """A constant times something open can be rewritten as well as what it is written for."""
    plain = _arithmetic(lambda a, b: a * b, lambda a, b: product([a, b]))(flow, node)
    factors = [flow.original(node, slot) or () for slot in (0, 1)]
    if plain is None or len(plain) != 1 or plain[0].symbol is None:
        return plain
    leaves = [p[0].source for p in factors if p[0].value is not None and isinstance(p[0].source, Leaf)]
    return (replace(plain[0], source=leaves[0]),) if len(leaves) == 1 and _stays(flow, factors) else plain


def _stays(flow: Reader, factors: Sequence[Numbers]) -> bool:
    """Whether what a leaf is multiplied with is open through and through, so that no cut changes it."""
    read = [(flow.shape(size.value) or {size.axis: None})[size.axis] for p in factors for size in p[0].sizes]
    open_ = [n.symbol for p in factors for n in p if n.value is None]
    return all(isinstance(size, str) and factor(size) == 1 for size in (*read, *open_))


def _flat(flow: Reader, node: Node) -> bool:
    """Whether no input is a table: elements are counted along one axis here."""
    return all(len(flow.shape(name) or ()) < 2 for name in node.inputs)


def _stored(flow: Reader, node: Node, value: int | float | None) -> int | float | None:
    """A value as its element type holds it: most floats are not double."""
    double = flow.types.get(node.outputs[0]) == TensorProto.DOUBLE
    return value if double or not isinstance(value, float) else float(np.float32(value))


def _finite(function: Callable[..., Any], *values: int | float) -> int | float | None:
    """A function's value; None where it, or one of its arguments, is no finite number."""
    try:
        result: int | float | None = function(*values)
    except (OverflowError, ValueError):
        return None
    return None if result is None or not math.isfinite(result) else result


def _number(depends: frozenset[SizeOf], size: Size | None) -> Number:
    """A computed number, of which something may be known all the same (x - x, say)."""
    return Number(size, None, depends) if isinstance(size, int) else Number(None, None, depends, size)


def _divide(a: int | float, b: int | float) -> int | float | None:
    if b == 0:
        return None
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def _divided(flow: Reader, node: Node) -> Numbers | None:
    """Integers are divided without a rest; what is left of floats is rounded later, or not at all."""
    parts = [flow.original(node, slot) or () for slot in (0, 1)]
    name = "ratio" if any(isinstance(n.value, float) or "ratio(" in (n.symbol or "") for p in parts for n in p) else ""
    known = flow.types.get(node.inputs[0])
    name = name or ("ratio" if known in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16) else "")

    def open_(a: Size, b: Size) -> Size | None:
        exact = quotient(a, b)
        return exact if exact is not None else None if b == 0 else applied(name or _towards_zero(a, b), a, b)

    return _arithmetic(_divide, open_)(flow, node)


def _towards_zero(*sizes: Size) -> str:
    """What the division of integers does: the same as rounding down where nothing is negative."""
    return "trunc" if any("-" in str(size) for size in sizes) else "floor"


def _truncated(size: Size) -> Size:
    return _rounded(_towards_zero(size), size)


def _rounded(name: str, size: Size) -> Size:
    """A ratio rounded; anything else is whole already."""
    if not isinstance(size, str) or "ratio(" not in size:
        return size
    found = parse(size)
    simple = found.factor == 1 and len(found.atoms) == 1 and found.atoms[0].startswith("ratio(")
    return canonical(size.replace("ratio(", f"{name}(", 1)) if simple else applied(name, size)


def _modulo(flow: Reader, node: Node) -> Numbers | None:
    """With the sign of the divisor, unless the node says otherwise."""
    sign = _arithmetic(lambda a, b: a % b if b else None, _remainder)
    return None if node.attrs.get("fmod", 0) else sign(flow, node)


def _remainder(a: Size, b: Size) -> Size:
    return 0 if quotient(a, b) is not None else applied("mod", a, b)


def _order_free(name: str) -> Callable[[Size, Size], Size]:
    return lambda a, b: applied(name, *sorted((a, b), key=str)) if a != b else a


def _equal(flow: Reader, node: Node) -> Numbers | None:
    """Whether a size is -1 is how exporters ask if it is to stay; no size is, before or after a cut."""
    plain = _arithmetic(lambda a, b: int(a == b), lambda a, b: 1 if a == b else None)(flow, node)
    sides = [flow.original(node, slot) or () for slot in (0, 1)]
    if plain is None:
        return None
    a, b = (side * (len(plain) // len(side)) for side in sides)
    never = [(_negative(p) and _positive(q)) or (_negative(q) and _positive(p)) for p, q in zip(a, b, strict=True)]
    return tuple(Number(0) if no else n for no, n in zip(never, plain, strict=True))


def _negative(number: Number) -> bool:
    return number.value is not None and number.value < 0 and not number.sizes


def _positive(number: Number) -> bool:
    """Whether a number cannot be negative, whatever is open."""
    if isinstance(number.source, SizeOf):
        return True
    return number.value >= 0 and not number.sizes if number.value is not None else "-" not in (number.symbol or "-")


def _where(flow: Reader, node: Node) -> Numbers | None:
    parts = [flow.original(node, slot) for slot in range(3)]
    length = max((len(p) for p in parts if p is not None), default=0)
    if any(p is None or len(p) not in (1, length) for p in parts) or not _flat(flow, node):
        return None
    condition, yes, no = (p * (length // len(p)) for p in parts if p is not None)
    return tuple(
        Number(None, None, c.sizes | a.sizes | b.sizes) if c.value is None else _chosen(c, a if c.value else b)
        for c, a, b in zip(condition, yes, no, strict=True)
    )


def _chosen(condition: Number, number: Number) -> Number:
    """A number that another one would take the place of if the sizes behind the condition changed."""
    return replace(number, source=None, sizes=number.sizes | condition.sizes) if condition.sizes else number


def _concat(flow: Reader, node: Node) -> Numbers | None:
    parts = [_rewritable(node, slot, flow.original(node, slot)) for slot in range(len(node.inputs))]
    return (
        None
        if any(p is None for p in parts) or not _flat(flow, node)
        else tuple(n for p in parts if p is not None for n in p)
    )


def _rewritable(node: Node, slot: int, part: Numbers | None) -> Numbers | None:
    """A part that is computed, but known, can become a constant of the Concat, whatever is open beside it."""
    if part is None or any(n.value is None for n in part) or all(n.source is not None for n in part):
        return part
    return tuple(replace(n, source=Leaf(node.index, slot, i)) for i, n in enumerate(part))


def _gather(flow: Reader, node: Node) -> Numbers | None:
    data, indices = flow.original(node, 0), flow.original(node, 1)
    if data is None or indices is None or any(i.value is None or i.sizes for i in indices) or not _flat(flow, node):
        return None
    picked = [int(i.value) for i in indices if i.value is not None]
    return tuple(data[i] for i in picked) if all(-len(data) <= i < len(data) for i in picked) else None


def _slice(flow: Reader, node: Node) -> Numbers | None:
    data = flow.original(node, 0)
    rank = len(flow.shape(node.inputs[0]) or (0, 0))
    bounds: Sequence[Any]
    if "starts" in node.attrs:
        bounds = (node.attrs["starts"], node.attrs["ends"], [1])
    else:
        traced = [flow.original(node, slot) for slot in (1, 2, 4)]
        if any(n.sizes for t in traced for n in t or ()):
            return None
        bounds = [[n.value for n in t] if t else [1] for t in traced]
    if data is None or rank > 1 or any(len(b) != 1 or b[0] is None for b in bounds):
        return None
    return data[slice(*(int(np.clip(b[0], -LONGEST - 1, LONGEST)) for b in bounds))]


STEPS: dict[str, Step] = {
    "Identity": _same,
    "Reshape": _same,
    "Equal": _equal,
    "Where": _where,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Add": _arithmetic(lambda a, b: a + b, total),
    "Sub": _arithmetic(lambda a, b: a - b, lambda a, b: total(a, b, -1)),
    "Mul": _multiplied,
    "Div": _divided,
    "Min": _arithmetic(min, _order_free("min")),
    "Max": _arithmetic(max, _order_free("max")),
    "Mod": _modulo,
    "Neg": _each(lambda v: -v, lambda size: product([-1, size])),
    "Floor": _each(lambda v: float(math.floor(v)), partial(_rounded, "floor")),
    "Ceil": _each(lambda v: float(math.ceil(v)), partial(_rounded, "ceil")),
}
