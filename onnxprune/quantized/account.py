"""What came out of a quantization: which nodes have fewer bits, which do not and why, and what that saves."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxprune.graph import Graph
from onnxprune.quantized.choice import Choice
from onnxprune.quantized.integers import OF_GEMM
from onnxprune.tensors import PACKED, tensors_of

PUT_IN = ("_quant", f"{OF_GEMM}_quant")  # added to the name of a node that another takes the place of
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "Attention", "Gather"})
SUFFIX = "_quantized"  # added to the name of a weight
EIGHT = frozenset({TensorProto.INT8, TensorProto.UINT8})
LEFT = "its inputs are not constant, not float or not quantized"


def integers(choice: Choice, made: ModelProto) -> tuple[set[str], set[str]]:
    """Of the nodes that were to compute with integers: those that do, and those that are no longer needed."""
    now = {node.name: node for node in made.graph.node}
    small = {t.name for t in made.graph.initializer if t.data_type in EIGHT}
    small |= {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    done = {n for n in choice.wanted if any(n + end in now for end in PUT_IN)}
    done |= {n for n in choice.wanted if n in now and not small.isdisjoint(now[n].input)}
    # Where a range begins at zero, a Relu does nothing more.
    gone = {n for n, op in choice.wanted.items() if n not in now and op in ("Relu", "Clip")} - done
    return done, gone


def nodes(choice: Choice, done: Collection[str], gone: Collection[str], names: Mapping[str, str]) -> dict[str, Any]:
    """The record's entries about nodes.

    Args:
        choice: what was to change.
        done: nodes that did.
        gone: nodes that are not needed any more.
        names: the user's names of nodes.
    """
    left = {n: LEFT for n in choice.wanted if n not in done and n not in gone}
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in (choice.stays | left).items():
        reasons[reason].append(names.get(name) or name)
    return {
        "quantized": dict(sorted(Counter(choice.wanted[n] for n in done).items())),
        "absorbed": dict(sorted(Counter(choice.wanted[n] for n in gone).items())),
        "float": [{"reason": reason, "nodes": labels} for reason, labels in sorted(reasons.items())],
    }


def scales(made: ModelProto) -> dict[str, int]:
    """How many weights have a scale for each channel, and how many one for all."""
    sizes = {t.name: math.prod(t.dims) for t in made.graph.initializer}
    weights = [t.name for t in made.graph.initializer if t.data_type in EIGHT and t.name.endswith(SUFFIX)]
    counts = [sizes.get(f"{name.removesuffix(SUFFIX)}_scale", 1) for name in weights]
    return {"per_channel": sum(count > 1 for count in counts), "per_tensor": sum(count == 1 for count in counts)}


def weight_bytes(proto: ModelProto) -> int:
    """Bytes of all tensors, with or without their data in memory."""
    total = 0
    for tensor in tensors_of(proto):
        kind = tensor.data_type
        bits = PACKED.get(kind) or 8 * np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
        total += -(-math.prod(tensor.dims) * bits // 8)
    return total


def versions(graph: Graph, made: ModelProto) -> dict[str, dict[str, int]]:
    """The operator set and the IR version, before and after."""
    opset = max((o.version for o in made.opset_import if o.domain in ("", "ai.onnx")), default=1)
    return {
        "opset": {"before": graph.opset, "after": opset},
        "ir_version": {"before": graph.proto.ir_version, "after": made.ir_version},
    }


def said(notes: Mapping[str, Any]) -> str:
    """A sentence for the table."""
    before, after = (notes["weight_bytes"][when] for when in ("before", "after"))
    layers = [f"{count} {op}" for op, count in notes["quantized"].items() if op in LAYERS]
    others = sum(count for op, count in notes["quantized"].items() if op not in LAYERS)
    stay = sum(len(entry["nodes"]) for entry in notes["float"])
    done = ", ".join([*layers, *([f"{others} {'other' if layers else 'node'}{'s' * (others > 1)}"] if others else [])])
    text = f"{notes['mode']}: {done}; {stay or 'none'} stay{'s' * (stay == 1)} float32"
    if "calibration" in notes:
        text += f"; ranges from {notes['calibration']['samples']} samples ({notes['calibration']['method']})"
    if notes.get("reduce_range"):
        text += "; weights of 7 bits"
    old, new = (notes["opset"][when] for when in ("before", "after"))
    if old != new:
        text += f"; opset {old} -> {new}"
    return f"{text}; weights {before / 1e6:.3g} MB -> {after / 1e6:.3g} MB"
