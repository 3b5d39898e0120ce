"""The cut: the user's graph with smaller tensors, and nothing else changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.folds import readers, replay
from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.plan import Plan, kept_indices, variant_of
from onnxprune.rules.base import FIXUPS, ZERO_PRESERVING, Dim, Index, NodeView, SetAttr, SetInput
from onnxprune.shapeflow import Leaf, Number, SizeOf

Removed = NDArray[np.bool_]


@dataclass(frozen=True)
class _Cut:
    coupling: Coupling
    removed: Removed

    def kept(self, dim: Dim) -> Index:
        index = kept_indices(self.coupling, self.removed, dim)
        return np.arange(self.coupling.size(dim)) if index is None else index

    def touches(self, dim: Dim) -> bool:
        units = self.coupling.unit_of(dim)
        return units is not None and bool(self.removed[units[units >= 0]].any())


def cut(coupling: Coupling, plan: Plan, removed: Removed) -> ModelProto:
    """The model without the removed units, and with the plan's folds.

    Args:
        coupling: the analysis of the model.
        plan: what is kept; see `make_plan`.
        removed: [units], True where a unit goes (what the plan says, in units).

    Returns:
        A new model; weights that are not cut are copied once, the others are taken once per axis.
    """
    graph = coupling.graph
    model = _frame(graph.proto)
    state = _Cut(coupling, removed)
    edits = _edits(state)
    folded, left = replay(coupling, plan.folds), readers(coupling, plan.folds)
    weights = folded.weights
    for index, bias in folded.biases.items():
        outputs = state.kept(Dim(graph.nodes[index].outputs[0], 1))
        edits[index].append(SetInput(2, np.take(bias, outputs, axis=-1)))
    for constant in graph.proto.graph.initializer:
        _put(model.graph.initializer.add(), constant, coupling, plan, constant.name, weights)
    for copy, constant in plan.splits.items():
        _put(model.graph.initializer.add(), graph.constants[constant], coupling, plan, copy, weights)
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        if proto.op_type == "Constant" and node.outputs[0] in graph.constants:
            _constant(proto, coupling, plan, weights)
            continue
        for slot, use in enumerate(coupling.views[node.index].names):
            if use in left.get(coupling.source.get(use, ""), ()):
                proto.input[slot] = variant_of(coupling, plan, use, removed)
        for edit in edits.get(node.index, ()):
            _apply(model.graph, proto, node, edit)
    _value_infos(model.graph, state, plan)
    return model


def mask(coupling: Coupling, removed: Removed) -> ModelProto:
    """The original model with every removed weight slice set to zero: the oracle that a cut is compared with."""
    graph = coupling.graph
    model = _frame(graph.proto)
    model.graph.initializer.extend(graph.proto.graph.initializer)
    holders = {t.name: t for t in model.graph.initializer}
    for proto in model.graph.node:
        if proto.op_type == "Constant" and proto.output[0] in graph.constants:
            _set_constant(proto, numpy_helper.from_array(graph.array(proto.output[0]), proto.output[0]))
            holders[proto.output[0]] = proto.attribute[0].t
    for constant, uses in coupling.uses.items():
        if constant not in holders:
            continue
        for use in uses:
            rank = len(graph.constants[constant].dims)
            cuts = {a: i for a in range(rank) if (i := kept_indices(coupling, removed, Dim(use, a))) is not None}
            if not cuts and not uses_external_data(holders[constant]):
                continue
            array = np.array(graph.array(constant))
            fill = _zero(coupling, use)
            for axis, index in cuts.items():
                gone = np.delete(np.arange(array.shape[axis]), index)
                if fill is not None:
                    rows = np.moveaxis(array, axis, 0)
                    rows[gone] = np.moveaxis(np.broadcast_to(fill, array.shape), axis, 0)[gone]
            target = holders[constant]
            if use != constant:  # a private copy of a shared vector
                target = model.graph.initializer.add()
                node, slot = use.rpartition("@")[2].split(":")
                model.graph.node[int(node)].input[int(slot)] = use
            target.CopyFrom(numpy_helper.from_array(array, use))
    return model


# (op, slot of a quantised tensor) -> the slot of its zero point.
_ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    ("QLinearConv", 3): 5,
    ("ConvInteger", 1): 3,
    ("QLinearMatMul", 3): 5,
    ("MatMulInteger", 1): 3,
    ("DynamicQuantizeMatMul", 1): 3,
    ("MatMulIntegerToFloat", 1): 5,
}
# The axis of the tensor along which a vector of zero points runs; an attribute of DequantizeLinear.
_CHANNELS = {"QLinearConv": 0, "ConvInteger": 0} | dict.fromkeys(
    ["QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"], -1
)
# Constants that are divided by, or that say what zero is: their slices stay as they are.
_AS_THEY_ARE = frozenset(
    {("Div", 1), ("Mod", 1), ("Pow", 0), ("Reciprocal", 0), ("Log", 0), ("BatchNormalization", 4)}
    | {("QuantizeLinear", 1), ("QuantizeLinear", 2), ("DequantizeLinear", 1)}
    | {(op, point) for (op, _), point in _ZERO_POINTS.items()}
)
_THROUGH = ZERO_PRESERVING | {"Expand", "Sqrt", "Abs"}


def _zero(coupling: Coupling, use: str) -> NDArray[Any] | None:
    """The value that stands for zero in a constant: 0, or a quantised weight's zero point; None: leave it."""
    graph, constant = coupling.graph, coupling.source.get(use, use)
    users = list(graph.consumers.get(constant, ()))
    if use != constant:
        reader, place = use.rpartition("@")[2].split(":")
        users = [(graph.nodes[int(reader)], int(place))]
    zero: NDArray[Any] = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(graph.constants[constant].data_type))
    if constant not in graph.parameters:
        return None
    for node, slot in users:
        if (node.op, slot) in _AS_THEY_ARE:
            return None
        point_slot = _ZERO_POINTS.get((node.op, slot), len(node.inputs))
        if point_slot < len(node.inputs) and node.inputs[point_slot] in graph.constants:
            zero = graph.array(node.inputs[point_slot])
            if zero.ndim == 1 and zero.size > 1:
                axis = node.attrs.get("axis", _CHANNELS.get(node.op, 1)) % len(graph.constants[constant].dims)
                zero = zero.reshape([-1 if a == axis else 1 for a in range(len(graph.constants[constant].dims))])
        elif node.op in _THROUGH:
            users += [reader for value in node.outputs for reader in graph.consumers.get(value, ())]
    return zero


def _frame(source: ModelProto) -> ModelProto:
    """A copy of a model without its initializers."""
    model = ModelProto()
    for field, value in source.ListFields():
        if field.name != "graph":
            _copy_field(model, field, value)
    for field, value in source.graph.ListFields():
        if field.name != "initializer":
            _copy_field(model.graph, field, value)
    return model


def _copy_field(target: Any, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(target, field.name).extend(value)
    elif field.message_type is not None:
        getattr(target, field.name).CopyFrom(value)
    else:
        setattr(target, field.name, value)


def _put(
    target: TensorProto,
    source: TensorProto,
    coupling: Coupling,
    plan: Plan,
    name: str,
    weights: dict[str, NDArray[Any]],
) -> None:
    """Fill `target` with what stays of a constant under a name."""
    cuts = plan.kept.get(name, {})
    changed = weights.get(name)
    if not cuts and changed is None and not uses_external_data(source):
        target.CopyFrom(source)
        target.name = name
        return
    array = coupling.graph.array(plan.splits.get(name, name)) if changed is None else changed
    # The axis that loses most goes first: the next one then copies less.
    for axis, index in sorted(cuts.items(), key=lambda item: item[1].size / array.shape[item[0]]):
        array = np.take(array, index, axis=axis)
    target.name, target.data_type, target.doc_string = name, source.data_type, source.doc_string
    target.dims.extend(array.shape)
    # Types that NumPy does not know by itself (bfloat16, float8, int4) may be packed: leave that to onnx.
    target.raw_data = numpy_helper.from_array(array).raw_data if array.dtype.kind == "V" else array.tobytes()


def _constant(proto: NodeProto, coupling: Coupling, plan: Plan, weights: dict[str, NDArray[Any]]) -> None:
    name = proto.output[0]
    if name in plan.kept or name in weights:
        tensor = TensorProto()
        _put(tensor, coupling.graph.constants[name], coupling, plan, name, weights)
        _set_constant(proto, tensor)


def _set_constant(proto: NodeProto, tensor: TensorProto) -> None:
    inner = tensor.name if proto.attribute[0].name != "value" else proto.attribute[0].t.name
    proto.ClearField("attribute")
    proto.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)
    proto.attribute[0].t.name = inner


def _edits(state: _Cut) -> dict[int, list[SetAttr | SetInput]]:
    """Node index -> what has to change besides the tensors."""
    coupling = state.coupling
    edits: dict[int, list[SetAttr | SetInput]] = defaultdict(list)
    for view in coupling.views:
        fix = FIXUPS.find(view.key)
        dims = [Dim(v, a) for v in (*view.names, *view.node.outputs) for a in range(_rank(view, v))]
        if fix is not None and any(state.touches(d) for d in dims):
            edits[view.node.index] += fix(view, state.kept)
    for (node, slot), value in _sizes(state).items():
        if not any(isinstance(e, SetInput) and e.slot == slot for e in edits[node]):
            edits[node].append(SetInput(slot, value))
    return edits


def _rank(view: NodeView, name: str) -> int:
    value = view.node.inputs[list(view.names).index(name)] if name in view.names else name
    return len(view.graph.shapes.get(value) or ())


def _sizes(state: _Cut) -> dict[tuple[int, int], NDArray[Any]]:
    """(node, slot) -> the new value of a shape input: sizes of cut axes that are written in the graph."""
    coupling = state.coupling
    graph = coupling.graph
    wanted: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for _, sized in coupling.sized:
        source = sized.number.source
        if not isinstance(source, Leaf):
            continue
        if state.touches(sized.dim):
            wanted[source.node, source.slot][source.place] = state.kept(sized.dim).size
        elif sized.number.value is not None and any(state.touches(Dim(*size)) for size in sized.number.sizes):
            wanted[source.node, source.slot][source.place] = int(sized.number.value)  # what is computed would move
    changed: dict[tuple[int, int], NDArray[Any]] = {}
    flow = coupling.views[0].flow
    for (node, slot), sizes in wanted.items():
        name = graph.nodes[node].inputs[slot]
        if name in graph.constants:
            value = np.array(graph.array(name))
        elif graph.nodes[node].op == "Concat":  # a computed part of a target that is open elsewhere
            value = np.array([n.value for n in flow.numbers(graph.nodes[node], slot) or ()], dtype=np.int64)
        else:
            continue
        for index, size in sizes.items():
            value.reshape(-1)[index] = size
        changed[node, slot] = value
    for target, slot, numbers in flow.computed():
        need = [wanted.get((target.index, slot), {}).get(i, n.value) for i, n in enumerate(numbers)]
        have = [_follows(state, n, wanted) for n in numbers]
        if need != have:
            changed[target.index, slot] = np.array(need, dtype=np.int64)
    return changed


def _follows(state: _Cut, number: Number, wanted: Mapping[tuple[int, int], Mapping[int, int]]) -> int | float | None:
    """What the graph will compute for a number after the cut; None where that takes more than looking."""
    source = number.source
    if isinstance(source, SizeOf):
        return state.kept(Dim(*source)).size
    if isinstance(source, Leaf) and source.place in (written := wanted.get((source.node, source.slot), {})):
        return written[source.place]
    return None if any(state.touches(Dim(*s)) for s in number.sizes) else number.value


def _apply(graph: GraphProto, proto: NodeProto, node: Node, edit: SetAttr | SetInput) -> None:
    if isinstance(edit, SetAttr):
        kept = [a for a in proto.attribute if a.name != edit.name]
        if edit.value is None:
            del proto.attribute[:]
            proto.attribute.extend(kept)
            return
        found = next((a for a in proto.attribute if a.name == edit.name), None)
        new = helper.make_attribute(edit.name, edit.value)
        if found is None:
            proto.attribute.append(new)
        else:
            found.CopyFrom(new)
        return
    name = (
        f"{(proto.input[edit.slot] if edit.slot < len(proto.input) else '') or node.label}_cut{node.index}_{edit.slot}"
    )
    graph.initializer.append(numpy_helper.from_array(edit.value, name))
    while len(proto.input) <= edit.slot:
        proto.input.append("")
    proto.input[edit.slot] = name


def _value_infos(graph: GraphProto, state: _Cut, plan: Plan) -> None:
    """Sizes that the model declares for inner values, for constants, and for initializers that are also inputs."""
    constants = state.coupling.graph.constants
    for info in (*graph.value_info, *graph.input):
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                continue
            if info.name in constants:  # its users may read private names, and copies
                index = plan.kept.get(info.name, {}).get(axis)
                dim.dim_value = dim.dim_value if index is None else index.size
            elif state.touches(Dim(info.name, axis)):
                dim.dim_value = state.kept(Dim(info.name, axis)).size
