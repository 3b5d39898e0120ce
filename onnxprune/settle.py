"""What a block did on average goes into a bias before it, so that nothing of the block is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.blocks import SUMS, alive
from onnxprune.bypass import Bypass, copy_of, fresh, summed, view_of
from onnxprune.graph import Graph, Node

Array = NDArray[Any]

# Operators that add a number to each channel: the slot of those, and the axis of the channels.
_BIASED = dict.fromkeys(["Conv", "ConvTranspose", "Gemm", "BatchNormalization"], (2, 1)) | {
    "LayerNormalization": (2, -1)
}


def settled(view: Graph, bypasses: Sequence[Bypass]) -> tuple[Graph, int]:
    """The view with shifts in biases where there is place, and how many went there.

    Readers of such an exit read the entry.
    """
    count = 0
    for bypass in bypasses:
        found = _settled(view, bypass)
        if found is not None:
            view, count = found, count + 1
    return view, count


def _settled(view: Graph, bypass: Bypass) -> Graph | None:
    """The view with one shift in a bias; None where there is no place."""
    block, here = bypass.block, view.producer[bypass.block.exit]
    entry = next(name for name in here.inputs if name not in view.constants)
    constant = next((name for name in here.inputs if name in view.constants), None)
    # That of a later block may have gone into it.
    bypass = replace(bypass, shift=np.zeros(0) if constant is None else view.array(constant).reshape(-1))
    place = None
    if bypass.shift.any():
        place = _place(view, entry, here, bypass)
        if place is None:
            return None
    nodes, constants = list(view.nodes), dict(view.constants)
    if place is not None:
        node, slot, value = place
        nodes[node.index], name = _with(view, node, slot)
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    nodes[here.index] = summed(here, entry, None)
    if block.exit not in view.outputs and block.exit not in view.captured:
        nodes = [
            copy_of(n, [entry if i == block.exit else i for i in n.inputs]) if block.exit in n.inputs else n
            for n in nodes
        ]
    return view_of(view, nodes, constants)


def _place(view: Graph, value: str, reader: Node, bypass: Bypass) -> tuple[Node, int, Array] | None:
    """The node and the slot of a bias that is added to a value which only one node reads, and its new value."""
    living = alive(view, {})
    readers = {n.index for n in view.nodes if n.index in living and value in (*n.inputs, *n.captures)}
    node = view.producer.get(value)
    if readers != {reader.index} or value in view.outputs or node is None or node.domain or len(node.outputs) != 1:
        return None
    rank, axis = len(view.shapes[bypass.block.exit] or ()), bypass.block.axis
    shape = view.shapes.get(value) or ()
    if len(shape) != rank or shape[axis] != bypass.shift.size:
        return None
    if node.op in SUMS and len(set(node.inputs)) == 2:
        for slot, name in enumerate(node.inputs):
            found = None
            if name in view.constants:
                found = _added(view, name, bypass.constant(view))
                if found is not None:
                    return node, slot, found
            elif name not in view.fixed and (deeper := _place(view, name, node, bypass)):
                return deeper
        return None
    slot, channels = _BIASED.get(node.op, (-1, 0))
    if slot < 0 or channels % rank != axis or node.attrs.get("axis", -1) not in (-1, rank - 1):
        return None
    if node.attrs.get("beta", 1.0) != 1.0:
        return None
    name = node.inputs[slot] if slot < len(node.inputs) else ""
    shift = bypass.shift.astype(bypass.constant(view).dtype)
    if not name:
        return node, slot, shift
    return (node, slot, found) if (found := _added(view, name, shift)) is not None else None


def _added(view: Graph, name: str, shift: Array) -> Array | None:
    """A constant and a shift, if the sum has the constant's shape."""
    if name not in view.constants or name in view.filled:
        return None
    old = view.array(name)
    new = old.astype(np.float64) + shift.astype(np.float64) if old.dtype.kind == "f" else None
    return None if new is None or new.shape != old.shape else new.astype(old.dtype)


def _with(view: Graph, node: Node, slot: int) -> tuple[Node, str]:
    """The node with a constant of its own in a slot, and the constant's name."""
    inputs = [*node.inputs, *[""] * (slot + 1 - len(node.inputs))]
    name = inputs[slot]
    if not name or len(view.consumers[name]) > 1 or name in view.captured or name in view.outputs:
        name = fresh(view, f"{node.outputs[0]}_own_{slot}")
    inputs[slot] = name
    return copy_of(node, inputs), name
