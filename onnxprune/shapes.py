"""Shapes of all values, by ONNX shape inference over a shell: a copy of the model that carries no weights."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ShapeError

# One entry an axis: an int, a symbol, or None; the whole is None where even the rank is unknown.
Shape = tuple[int | str | None, ...] | None

# Tensors up to this many elements travel along: inference reads shapes, axes and scales.
SHAPE_DATA = 64

# Operators that ONNX cannot infer; their output is like their first input.
LIKE_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization", "Scaler", "Normalizer"})


def shell_of(proto: ModelProto, given: Mapping[str, tuple[int, ...]], name: str) -> ModelProto:
    """The model without its weights, with all shapes that inference finds.

    A size that is given holds wherever the model writes the same symbol. What inference proves of a value goes before
    what the model says of it: exporters let people name the axes of outputs, and people do so wrongly.

    Args:
        proto: the model; not changed.
        given: input or inner value -> shape, where the model leaves it open.
        name: what messages call the model.

    Raises:
        ShapeError: `given` does not fit the model.
    """
    shell = without_weights(proto)
    inputs = {i.name: i for i in shell.graph.input}
    _check_names(shell, given, name)
    sizes = _Sizes(name)
    for key in (k for k in given if k in inputs):
        sizes.give(inputs[key], given[key])
    sizes.put(shell.graph.input)
    _name_open_sizes(shell)
    shell = infer(shell)
    if not given:
        return shell
    for key in (k for k in given if k not in inputs):
        for info in _declarations(shell, key):
            sizes.give(info, given[key])
    sizes.put([*shell.graph.input, *shell.graph.value_info, *shell.graph.output])
    return infer(shell)


def infer(shell: ModelProto) -> ModelProto:
    """ONNX shape inference with data propagation."""
    try:
        return onnx.shape_inference.infer_shapes(shell, data_prop=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return shell  # inference chokes on an op: what stays without a shape is locked, not guessed


def shapes_of(shell: ModelProto) -> dict[str, Shape]:
    """Value name -> shape, as the shell declares them."""
    shapes: dict[str, Shape] = {}
    for info in (*shell.graph.value_info, *shell.graph.input, *shell.graph.output):
        if (shape := _shape(info.type)) is not None or info.name not in shapes:
            shapes[info.name] = shape
    return shapes


def without_weights(proto: ModelProto) -> ModelProto:
    """The model with every large tensor's data dropped (names, types and dims stay)."""
    shell = ModelProto(ir_version=proto.ir_version)
    shell.opset_import.extend(proto.opset_import)
    shell.functions.extend(proto.functions)
    graph, source = shell.graph, proto.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for tensor in source.initializer:
        graph.initializer.append(_light(tensor))
    for sparse in source.sparse_initializer:  # of which inference would take the values for the tensor
        graph.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)
    for node in source.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            light = graph.node.add(op_type="Constant", domain=node.domain, output=node.output)
            light.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_light(node.attribute[0].t))
        elif node.op_type in LIKE_INPUT and node.domain in ("", "ai.onnx", "ai.onnx.ml"):
            graph.node.add(op_type="Identity", input=node.input[:1], output=node.output)
        else:
            graph.node.append(node)
    return shell


def _light(tensor: TensorProto) -> TensorProto:
    count = 1
    for dim in tensor.dims:
        count *= dim
    if count <= SHAPE_DATA and not uses_external_data(tensor):
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _check_names(shell: ModelProto, given: Mapping[str, tuple[int, ...]], name: str) -> None:
    inputs = [i.name for i in shell.graph.input]
    known = {*inputs, *(value for node in shell.graph.node for value in node.output if value)}
    for key in given:
        if key not in known:
            names = ", ".join(inputs)
            raise ShapeError(
                f"{name}: --shape names {key!r}, but no input and no inner value is called so; the inputs are {names}"
            )


def _name_open_sizes(shell: ModelProto) -> None:
    """An open size of an input gets a name, so that inference can follow it."""
    for info in shell.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{info.name}.{axis}"


def _declarations(shell: ModelProto, value: str) -> list[ValueInfoProto]:
    """Where the shell declares an inner value; a declaration is added where there is none."""
    found = [i for i in (*shell.graph.value_info, *shell.graph.output) if i.name == value]
    if not found:
        found = [shell.graph.value_info.add(name=value)]
    for info in found:  # inference stops at a value without a type; most operators keep that of their first input
        info.type.tensor_type.elem_type = info.type.tensor_type.elem_type or _type_of_input(shell, value)
    return found


def _type_of_input(shell: ModelProto, value: str) -> int:
    """The element type of what the node that makes `value` reads first, float where that is not known."""
    graph = shell.graph
    types = {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.input)}
    read = next((node.input[0] for node in graph.node if value in node.output and node.input), "")
    return types.get(read) or int(TensorProto.FLOAT)


class _Sizes:
    """The sizes that are given, and what they make of the model's symbols."""

    def __init__(self, name: str) -> None:
        """`name`: what messages call the model."""
        self._name = name
        self._of: dict[str, tuple[int, str]] = {}  # symbol -> its size, and what gave it

    def give(self, info: ValueInfoProto, wanted: tuple[int, ...]) -> None:
        """Set the shape of one value, and remember what that says of the symbols in it.

        Raises:
            ShapeError: it contradicts what the model or another given shape says.
        """
        said = f"{info.name}={'x'.join(map(str, wanted))}"
        tensor = info.type.tensor_type
        known = _shape(info.type)
        if known is not None and (
            len(known) != len(wanted) or any(isinstance(k, int) and k != w for k, w in zip(known, wanted, strict=True))
        ):
            raise ShapeError(f"{self._name}: --shape {said} contradicts the model's {known}")
        for symbol, size in zip(known or (), wanted, strict=False):
            if isinstance(symbol, str):
                self._bind(symbol, size, said)
        tensor.shape.ClearField("dim")
        tensor.shape.SetInParent()  # a scalar has a shape, too
        for size in wanted:
            tensor.shape.dim.add(dim_value=size)

    def put(self, infos: Iterable[ValueInfoProto]) -> None:
        """Write the sizes wherever these values have their symbols; what cannot be computed is left unsaid."""
        sizes = {symbol: size for symbol, (size, _) in self._of.items()}
        for info in infos:
            for dim in info.type.tensor_type.shape.dim if sizes else ():
                if not dim.dim_param:
                    continue
                found = substituted(dim.dim_param, sizes)
                if isinstance(found, int):
                    dim.dim_value = found
                elif found is None:
                    dim.Clear()
                else:
                    dim.dim_param = found

    def _bind(self, symbol: str, size: int, said: str) -> None:
        before, other = self._of.setdefault(symbol, (size, said))
        if before != size:
            both = f"{other} and {said} give" if other != said else f"{said} gives"
            raise ShapeError(f"{self._name}: --shape {both} {symbol!r} two sizes, {before} and {size}; one must hold")


def substituted(text: str, sizes: Mapping[str, int]) -> int | str | None:
    """What a symbol, or an expression such as `4*batch + 1`, becomes with some symbols known; None: nobody can tell."""
    if text in sizes:
        return sizes[text]
    try:
        tree = ast.parse(text, mode="eval")
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        if names.isdisjoint(sizes):
            return text
        functions = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        if names - sizes.keys() - functions:
            return ast.unparse(_Known(sizes).visit(tree))
        size = _evaluate(tree.body, sizes)
    except (SyntaxError, ValueError, TypeError, RecursionError, ZeroDivisionError):
        mentioned = any(re.search(rf"(?<!\w){re.escape(symbol)}(?!\w)", text) for symbol in sizes)
        return None if mentioned else text
    return int(size) if size.denominator == 1 and 0 <= size < 2**63 else None


class _Known(ast.NodeTransformer):
    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._sizes[node.id]) if node.id in self._sizes else node


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
# As sympy, which exporters and ONNX Runtime write sizes with, calls them.
_CALLS: dict[str, Callable[..., Any]] = {
    "Min": lambda *sizes: min(sizes),
    "Max": lambda *sizes: max(sizes),
    "floor": math.floor,
    "ceiling": math.ceil,
    "ceil": math.ceil,
}


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.Name) and node.id in sizes:
        return Fraction(sizes[node.id])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, sizes)
    if isinstance(node, ast.BinOp):
        a, b = _evaluate(node.left, sizes), _evaluate(node.right, sizes)
        if isinstance(node.op, ast.Pow) and b in (1, 2, 3, 4):
            return Fraction(a ** int(b))
        if type(node.op) in _BINARY:
            return Fraction(_BINARY[type(node.op)](a, b))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS and node.args:
        values = [_evaluate(a, sizes) for a in node.args]
        return Fraction(_CALLS[node.func.id](*values))
    raise ValueError("no size")


def _shape(kind: TypeProto) -> Shape:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(_size(d) for d in kind.tensor_type.shape.dim)


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return dim.dim_param or None
