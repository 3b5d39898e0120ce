"""couple(graph): which indices of which tensors live and die together, and what is locked and why."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune import uses
from onnxprune.graph import Graph, Node
from onnxprune.groups import Coupling, group
from onnxprune.number import Leaf
from onnxprune.resolve import resolve
from onnxprune.rules.base import (
    LINEAR,
    RULES,
    Choice,
    Constraint,
    Dim,
    Linear,
    Lock,
    NodeView,
    Options,
    Sized,
    Tie,
    Unknown,
    Unsized,
)
from onnxprune.shapeflow import ShapeFlow
from onnxprune.sizes import LARGEST, factor
from onnxprune.solver import Solver
from onnxprune.zeros import ZeroFlow


def couple(graph: Graph, options: Options | None = None) -> Coupling:
    """Solve which indices are coupled.

    Args:
        graph: the model.
        options: what the user allows and prefers.
    """
    graph, flow = resolve(graph)
    source: dict[str, str] = {}
    options = options or Options()
    names = [_names(graph, node, source) for node in graph.nodes]
    parameters = set(graph.parameters)  # other constants are no weights: nothing sets them to zero
    zero = ZeroFlow(
        Dim(name, axis)
        for name in (*graph.parameters, *(use for use, constant in source.items() if constant in parameters))
        for axis in range(len(graph.constants[source.get(name, name)].dims))
    )
    views = [NodeView(graph, flow, node, names[node.index], options, zero) for node in graph.nodes]
    values = {
        **{v: graph.shapes.get(v) for v in _values(graph)},
        **{u: graph.shapes[c] for u, c in source.items()},
    }
    solver = Solver({Dim(v, a): _atoms(flow, s) for v, shape in values.items() for a, s in enumerate(shape or ())})
    sized: list[tuple[Node, Sized]] = []
    for view in views:
        declared = _declare(solver, view)
        zero.visit(view, declared)
        sized += [(view.node, c) for c in declared if isinstance(c, Sized)]
    for name, text in [
        *((n, "a graph input") for n in graph.inputs),
        *((n, "a graph output") for n in graph.outputs),
        *((n, "no node reads it") for n in graph.constants if n not in graph.consumers and n not in graph.captured),
    ]:
        _lock_value(solver, graph, name, solver.cause(None, text))
    for node in graph.nodes:
        for name in node.captures:
            _lock_value(solver, graph, name, solver.cause(node.index, f"a subgraph of {node.op} reads it"))
    for _, c in sized:
        if isinstance(c.number.source, Leaf) and (reader := flow.pinned.get(c.number.source)) is not None:
            solver.lock(c.dim, solver.cause(reader.index, f"its size is computed with by {reader.op}"))
    for used in flow.used:
        cause = solver.cause(used.node.index, f"its size is computed with by {used.node.op}")
        solver.lock(Dim(used.size.value, used.size.axis), cause)
    # A unit of nothing but a shared vector is none: a plan could not say which of its readers loses it.
    shared = set(source.values())
    weights = [
        Dim(name, axis)
        for name in graph.parameters
        if name not in shared
        for axis in range(len(graph.constants[name].dims))
    ]
    solution = solver.solve(weights)
    linears = [(v.node, spec) for v in views for spec in _linears(v)]
    coupling = Coupling(graph, options, views, linears, source, sized, solution, ())
    coupling.groups = tuple(group(coupling))
    return coupling


def _atoms(flow: ShapeFlow, size: int | str | None) -> int | str | None:
    """A size; that of a multiple of what is open is taken for a stand-in, so that what repeats in it can be coupled."""
    if not isinstance(size, str) or factor(size) == 1 or flow.instance(size) > LARGEST:
        return size
    return flow.instance(size)


def _values(graph: Graph) -> Iterator[str]:
    yield from graph.constants
    yield from (i.name for i in graph.proto.graph.input)
    for node in graph.nodes:
        yield from (v for v in (*node.inputs, *node.outputs) if v)


def _names(graph: Graph, node: Node, source: dict[str, str]) -> list[str]:
    """The value at each input; each user of a shared vector reads a private one, since exporters merge equal biases."""
    names = list(node.inputs)
    for slot, name in enumerate(names):
        tensor = graph.constants.get(name)
        if tensor is None or name in graph.filled or sum(d > 1 for d in tensor.dims) > 1:
            continue
        if len(graph.consumers[name]) > 1 or name in graph.captured or name in graph.outputs:
            names[slot] = uses.private(name, node.index, slot)
            source[names[slot]] = name
    return names


def _declare(solver: Solver, view: NodeView) -> list[Constraint]:
    """Run the rule and hand on what it declares; lock every axis that it does not mention."""
    node = view.node
    key = view.key
    run = RULES.find(key)
    reason = f"{key} does not say what happens to this axis" if run else f"there is no rule for {key}"
    declared: list[Constraint] = []
    try:
        declared = list(run(view)) if run else []
    except Unsized as error:
        reason = error.reason(view.graph)
    except Unknown as error:
        reason = str(error)
    except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        declared, reason = [], f"{key} is not as its schema says ({type(error).__name__})"
    mentioned: set[Dim] = set()
    for constraint in declared:
        mentioned.update(_dims(constraint))
    cause = 0
    for name, value in (
        *zip(view.names, node.inputs, strict=True),
        *zip(node.outputs, node.outputs, strict=True),
    ):
        for axis in range(len(view.graph.shapes.get(value) or ())):
            if Dim(name, axis) not in mentioned:
                cause = cause or solver.cause(node.index, reason)
                solver.lock(Dim(name, axis), cause)
    for constraint in declared:
        solver.add(node.index, constraint)
    return declared


def _dims(constraint: Constraint) -> Iterator[Dim]:
    if isinstance(constraint, Tie):
        yield from (constraint.a, constraint.b)
    elif isinstance(constraint, Choice):
        yield from constraint.dims
    elif isinstance(constraint, Lock | Sized):
        yield constraint.dim


def _lock_value(solver: Solver, graph: Graph, name: str, cause: int) -> None:
    for axis in range(len(graph.shapes.get(name) or ())):
        solver.lock(Dim(name, axis), cause)


def _linears(view: NodeView) -> tuple[Linear, ...]:
    make = LINEAR.find(view.key)
    if make is None:
        return ()
    try:
        found = make(view)
    except (Unknown, IndexError, KeyError):
        return ()
    return found if isinstance(found, tuple) else (found,)
