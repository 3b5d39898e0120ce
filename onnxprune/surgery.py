"""The cut: the user's graph with smaller tensors, and nothing else changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from onnxprune import uses
from onnxprune.edits import apply_edits
from onnxprune.folds import readers, replay
from onnxprune.groups import Coupling
from onnxprune.patch import Patch
from onnxprune.plan import Plan, kept_indices, variant_of
from onnxprune.rules.base import FIXUPS, ZERO_PRESERVING, Dim, Edit, Index, NodeView, SetAttr, SetInput
from onnxprune.shape_inputs import shape_inputs
from onnxprune.tensors import Array, Store, bring, carry, declare, fill, frame, in_proto

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


def cut(coupling: Coupling, plan: Plan, removed: Removed, store: Store = in_proto) -> ModelProto:
    """The model without the removed units, and with the plan's folds.

    Args:
        coupling: the analysis of the model.
        plan: what is kept; see `make_plan`.
        removed: [units], True where a unit goes (what the plan says, in units).
        store: where the weights go; by default into the new model.

    Returns:
        A new model; weights that are not cut are copied once, the others are taken once per axis, one at a time.
    """
    graph = coupling.graph
    model = frame(graph.proto)
    state = _Cut(coupling, removed)
    edits = _edits(state)
    folded, left = replay(coupling, plan.folds), readers(coupling, plan.folds)
    put = partial(_put, coupling, plan, folded.weights, store)
    for index, bias in folded.biases.items():
        outputs = state.kept(Dim(graph.nodes[index].outputs[0], 1))
        edits[index].append(SetInput(2, np.take(bias, outputs, axis=-1)))
    for constant in graph.proto.graph.initializer:
        put(model.graph.initializer.add(), constant, constant.name)
    for copy, source in plan.splits.items():
        put(model.graph.initializer.add(), graph.constants[source], copy)
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        name = node.outputs[0] if node.outputs else ""
        if proto.op_type == "Constant" and name in graph.constants:
            constant = graph.constants[name]
            if name in plan.kept or name in folded.weights or uses_external_data(constant):
                tensor = _value(proto)
                put(tensor, constant, name)
                tensor.name = constant.name
            continue
        bring(proto, graph.folder, store)
        for slot, use in enumerate(coupling.views[node.index].names):
            if use in left.get(coupling.source.get(use, ""), ()):
                proto.input[slot] = variant_of(coupling, plan, use, removed)
    for function in model.functions:
        for proto in function.node:
            bring(proto, graph.folder, store)
    _value_infos(model.graph, state, plan)
    apply_edits(model.graph, graph.nodes, edits)
    declare(model)
    return model


def mask(coupling: Coupling, removed: Removed, store: Store = in_proto) -> ModelProto:
    """The original model with every removed weight slice set to zero: the oracle that a cut is compared with.

    Args:
        coupling: the analysis of the model.
        removed: [units], True where a unit goes.
        store: where the weights go; by default into the new model.
    """
    graph = coupling.graph
    model = frame(graph.proto)
    holders = {t.name: model.graph.initializer.add() for t in graph.proto.graph.initializer}
    for proto in model.graph.node:
        if proto.op_type == "Constant" and proto.output[0] in graph.constants:
            holders[proto.output[0]] = _value(proto)
        else:
            bring(proto, graph.folder, store)
    for function in model.functions:
        for proto in function.node:
            bring(proto, graph.folder, store)
    for constant, holder in holders.items():
        private = [use for use in coupling.uses[constant] if use != constant]
        for use in (constant, *private):
            target = holder
            if use != constant:  # a private copy of a shared vector
                target = model.graph.initializer.add()
                node, slot = uses.reader(use)
                model.graph.node[node].input[slot] = use
            source, array = graph.constants[constant], _masked(coupling, removed, use)
            if array is None:
                carry(target, source, use, graph.folder, store)
            else:
                fill(target, source, use, array, store)
    _store_filled(model, coupling, removed, store)
    declare(model)
    return model


def masked(coupling: Coupling, removed: Removed) -> Patch:
    """What sets every removed weight slice to zero."""
    graph, weights, inputs = coupling.graph, dict[str, Array](), dict[tuple[str, int], Array]()
    groups = np.unique(coupling.group_of[removed])
    for name in dict.fromkeys(m.constant for g in groups for m in coupling.groups[g].members):
        for use in coupling.uses[name]:
            array = _masked(coupling, removed, use)
            if array is not None and use == name:
                weights[name] = array
            elif array is not None:
                node, slot = uses.reader(use)
                inputs[graph.nodes[node].outputs[0], slot] = array
    return Patch(weights, inputs)


def _store_filled(model: ModelProto, coupling: Coupling, removed: Removed, store: Store) -> None:
    """Weights that are one number get zeros where they are cut: they become initializers."""
    graph = coupling.graph
    arrays = {n: a for n in graph.filled if (a := _masked(coupling, removed, n)) is not None}
    for name, array in arrays.items():
        fill(model.graph.initializer.add(), graph.constants[name], name, array, store)
    kept = [n for n in model.graph.node if n.op_type != "ConstantOfShape" or n.output[0] not in arrays]
    if arrays:
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _masked(coupling: Coupling, removed: Removed, use: str) -> Array | None:
    """A constant as one of its users reads it, with zeros in the slices that go; None where nothing is set to zero."""
    graph, constant = coupling.graph, coupling.source.get(use, use)
    axes = range(len(graph.constants[constant].dims)) if use in coupling.uses[constant] else ()
    cuts = {a: i for a in axes if (i := kept_indices(coupling, removed, Dim(use, a))) is not None}
    zero = _zero(coupling, use) if cuts else None
    if zero is None:
        return None
    array = np.array(graph.array(constant))
    for axis, index in cuts.items():
        gone = np.delete(np.arange(array.shape[axis]), index)
        rows = np.moveaxis(array, axis, 0)
        rows[gone] = zero if zero.ndim == 0 else np.moveaxis(np.broadcast_to(zero, array.shape), axis, 0)[gone]
    return array


# (op, slot of a quantised tensor) -> the slot of its zero point.
_ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    ("QLinearConv", 3): 5,
    ("ConvInteger", 1): 3,
    ("QLinearMatMul", 3): 5,
    ("MatMulInteger", 1): 3,
    ("DynamicQuantizeMatMul", 1): 3,
    ("MatMulIntegerToFloat", 1): 5,
    ("QGemm", 3): 5,
    ("QAttention", 1): 7,
}
# The axis of the tensor along which a vector of zero points runs; an attribute of DequantizeLinear.
_CHANNELS = {"QLinearConv": 0, "ConvInteger": 0} | dict.fromkeys(
    ["QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QAttention"], -1
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
        index, place = uses.reader(use)
        users = [(graph.nodes[index], place)]
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
                channels = 0 if node.attrs.get("transB", 0) else _CHANNELS.get(node.op, 1)
                axis = node.attrs.get("axis", channels) % len(graph.constants[constant].dims)
                zero = zero.reshape([-1 if a == axis else 1 for a in range(len(graph.constants[constant].dims))])
        elif node.op in _THROUGH:
            users += [reader for value in node.outputs for reader in graph.consumers.get(value, ())]
    return zero


def _put(
    coupling: Coupling,
    plan: Plan,
    weights: Mapping[str, Array],
    store: Store,
    target: TensorProto,
    source: TensorProto,
    name: str,
) -> None:
    """Fill `target` with what stays of a constant under a name."""
    cuts = plan.kept.get(name, {})
    changed = weights.get(name)
    if not cuts and changed is None:
        carry(target, source, name, coupling.graph.folder, store)
        return
    array = coupling.graph.array(plan.splits.get(name, name)) if changed is None else changed
    # The axis that loses most goes first: the next one then copies less.
    for axis, index in sorted(cuts.items(), key=lambda item: item[1].size / array.shape[item[0]]):
        array = np.take(array, index, axis=axis)
    fill(target, source, name, array, store)


def _value(proto: NodeProto) -> TensorProto:
    """The tensor of a Constant node, empty, whatever attribute it had."""
    proto.ClearField("attribute")
    tensor: TensorProto = proto.attribute.add(name="value", type=AttributeProto.TENSOR).t
    return tensor


def _edits(state: _Cut) -> dict[int, list[Edit]]:
    """Node index -> what has to change besides the tensors."""
    coupling = state.coupling
    edits: dict[int, list[Edit]] = defaultdict(list)
    for view in coupling.views:
        fix = FIXUPS.find(view.key)
        dims = [Dim(v, a) for v in (*view.names, *view.node.outputs) for a in range(_rank(view, v))]
        if fix is not None and any(state.touches(d) for d in dims):
            edits[view.node.index] += fix(view, state.kept)
    for node, wanted in shape_inputs(coupling, state).items():
        taken = {e.slot for e in edits[node] if isinstance(e, SetInput)}
        edits[node] += [e for e in wanted if isinstance(e, SetAttr) or e.slot not in taken]
    return edits


def _rank(view: NodeView, name: str) -> int:
    value = view.node.inputs[list(view.names).index(name)] if name in view.names else name
    return len(view.graph.shapes.get(value) or ())


def _value_infos(graph: GraphProto, state: _Cut, plan: Plan) -> None:
    """Sizes that the model declares for inner values, for constants, and for initializers that are also inputs."""
    constants = state.coupling.graph.constants
    for info in (*graph.value_info, *graph.input):
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                if state.touches(Dim(info.name, axis)):  # a multiple of an open size
                    dim.ClearField("dim_param")
                continue
            if info.name in constants:  # its users may read private names, and copies
                index = plan.kept.get(info.name, {}).get(axis)
                dim.dim_value = dim.dim_value if index is None else index.size
            elif state.touches(Dim(info.name, axis)):
                dim.dim_value = state.kept(Dim(info.name, axis)).size
