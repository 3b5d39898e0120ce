"""Model-local functions are written out where they are called, so that the analysis sees every node.

A function for which somebody registered a rule stays a call: the rule knows more than its body tells. What ONNX cannot
write out (another operator set whose operators changed, a function that calls itself) stays a call too, and is locked
like any operator that nobody knows.
"""

from __future__ import annotations

from typing import TypeAlias

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, helper, inliner

from onnxprune.registry import registered
from onnxprune.tensors import frame, hollow, nodes_of

RULES = "onnxprune.rules"
Key: TypeAlias = tuple[str, str, str]  # domain, name, overload


def inlined(proto: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A model without calls of local functions, and the names of those that were written out.

    Args:
        proto: the model; not changed. Weights may be external: ONNX sees the graph without initializers.
    """
    functions = {_key(f): f for f in proto.functions}
    called = {key for node in nodes_of(proto.graph) if (key := _key(node)) in functions}
    if not called:
        return proto, ()
    kept = {key for key in functions if registered(RULES, "::".join(key[:2]))}
    if called <= kept:
        return proto, ()
    shell = _shell(proto, [f for key, f in functions.items() if key not in kept])
    nodes = _written_out(shell)
    calls = {_key(node) for node in nodes_of(nodes.graph)}
    gone, left = called - calls, _reached(calls, functions)
    if not gone:
        return proto, ()
    model = frame(proto)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes.graph.node)
    model.graph.initializer.extend(proto.graph.initializer)
    model.ClearField("functions")
    model.functions.extend(f for key, f in functions.items() if key in left)
    _import(model, proto)
    return model, tuple(sorted("::".join(filter(None, key)) for key in gone))


def _key(it: NodeProto | FunctionProto) -> Key:
    name = it.op_type if isinstance(it, NodeProto) else it.name
    return it.domain, name, it.overload


def _shell(proto: ModelProto, functions: list[FunctionProto]) -> ModelProto:
    """The model with initializers of no data, and with functions that ask for its own operator sets where they can."""
    shell = hollow(proto)
    shell.ClearField("functions")
    shell.functions.extend(functions)
    wanted = {_domain(o): o.version for o in proto.opset_import}
    for function in shell.functions:
        for opset in function.opset_import:
            version = wanted.get(_domain(opset), opset.version)
            if opset.version != version and _same(function, opset, version):
                opset.version = version
    return shell


def _domain(opset: OperatorSetIdProto) -> str:
    return "" if opset.domain == "ai.onnx" else str(opset.domain)


def _same(function: FunctionProto, opset: OperatorSetIdProto, version: int) -> bool:
    """Whether the operators that a function takes from an operator set are the same in another version of it."""
    domain = _domain(opset)
    ops = {n.op_type for n in nodes_of(function) if n.domain in ({"", "ai.onnx"} if not domain else {domain})}
    return all(_since(op, opset.version, domain) == _since(op, version, domain) is not None for op in ops)


def _since(op: str, version: int, domain: str) -> int | None:
    try:
        return int(onnx.defs.get_schema(op, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _written_out(shell: ModelProto) -> ModelProto:
    """What ONNX makes of the calls; those that need a converted operator set are tried with types, which that takes."""
    try:
        plain = inliner.inline_local_functions(shell)
    except (RuntimeError, onnx.checker.ValidationError):  # a function that calls itself
        return shell
    names = {_key(f) for f in shell.functions}
    if not any(_key(node) in names for node in nodes_of(plain.graph)):
        return plain
    for tensor in shell.graph.initializer:
        shell.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        return inliner.inline_local_functions(onnx.shape_inference.infer_shapes(shell), convert_version=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError):
        return plain


def _reached(calls: set[Key], functions: dict[Key, FunctionProto]) -> set[Key]:
    """The functions that are called, and those that they call."""
    found: set[Key] = set()
    todo = [key for key in calls if key in functions]
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += [inner for node in nodes_of(functions[key]) if (inner := _key(node)) in functions]
    return found


def _import(model: ModelProto, proto: ModelProto) -> None:
    """Name the operator sets that only functions had asked for."""
    known = {_domain(o) for o in model.opset_import}
    used = {n.domain for n in nodes_of(model.graph)}
    for function in proto.functions:
        for opset in function.opset_import:
            if (domain := _domain(opset)) not in known and domain in used:
                model.opset_import.add(domain=opset.domain, version=opset.version)
                known.add(domain)
