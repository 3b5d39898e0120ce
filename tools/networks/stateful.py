"""Steps with recurrent layers, and with subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxprune.testing.builder import Operand
from tools.networks.grower import Grower, step
from tools.networks.sizes import symbol

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
ACTIVATIONS = {"RNN": [["Relu"], ["Sigmoid"], ["Tanh"]], "GRU": [["Sigmoid", "Relu"], ["Sigmoid", "Sigmoid"]]}


@step(4, "tokens", gives="sequence")
def to_sequence(g: Grower, x: str) -> str:
    return g.op("Transpose", x, perm=[1, 0, 2])


@step(3, "sequence", gives="tokens")
def from_sequence(g: Grower, x: str) -> str:
    return g.op("Transpose", x, perm=[1, 0, 2])


@step(12, "sequence", since=7)
def recurrent(g: Grower, x: str) -> str:
    """Any of the three, in one direction or both, with all that they may be given."""
    (_, batch, c), kind = g.shape(x), g.pick(*GATES)
    hidden, way = g.pick(2, 3, 4), g.pick("forward", "reverse", "bidirectional")
    ways, rows = 2 if way == "bidirectional" else 1, GATES[kind] * hidden
    inputs: list[Operand] = [x, g.weight(ways, rows, c, fan=c), g.weight(ways, rows, hidden, fan=hidden)]
    inputs.append(g.weight(ways, 2 * rows, fan=4) if g.chance(0.6) else None)
    inputs.append(None)
    if g.fixed(x, 1):
        if g.fixed(x, 0) and g.chance(0.2):
            inputs[4] = g.const(g.rng.integers(1, g.shape(x)[0] + 1, batch).astype(np.int32))
        inputs.append(g.weight(ways, batch, hidden, fan=1) if g.chance(0.3) else None)
        if kind == "LSTM":
            inputs.append(g.weight(ways, batch, hidden, fan=1) if g.chance(0.3) else None)
            inputs.append(g.weight(ways, 3 * hidden, fan=1) if g.chance(0.3) else None)
    while inputs[-1] is None:
        inputs.pop()
    attrs: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" and g.chance(0.4) else {}
    if kind in ACTIVATIONS and g.chance(0.3):
        attrs["activations"] = g.random.choice(ACTIVATIONS[kind]) * ways
    y, state, *_ = g.ops(kind, *inputs, hidden_size=hidden, direction=way, outputs=3 if kind == "LSTM" else 2, **attrs)
    s, b, _ = g.sizes(x)
    if g.chance(0.2):  # the last state, added to every step
        last = g.reshape(g.op("Transpose", state, perm=[1, 0, 2]), b, ways * hidden)
        return g.op("Add", g.linear(x, ways * hidden), last)
    if ways == 1:
        return g.squeeze(y, 1)
    return g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), s, b, hidden * ways)


@step(1, "tokens", "map", since=11)
def branches(g: Grower, x: str) -> str:
    """An If whose branches read outer values."""
    w = g.near_one(*g.along(x)) if g.chance(0.5) else x
    total = g.op("ReduceSum", g.op("Abs", x), keepdims=0)
    flag = g.op("Greater", total, 1e9 if g.chance(0.5) else 1e-9)
    info = helper.make_tensor_value_info
    shape = [symbol(p) for p in g.pairs(x)]
    bodies = []
    for name, op in (("then", g.pick("Mul", "Add")), ("else", "Sub")):
        operands = [x, w] if w != x or op != "Sub" else [x, g.const(np.float32(0.5))]
        out = f"{name}_{len(g.graph.node)}"
        bodies.append(g.subgraph(name, [helper.make_node(op, operands, [out])], [], [info(out, 1, shape)]))
    return g.like(g.op("If", flag, then_branch=bodies[0], else_branch=bodies[1]), x)


@step(1, "tokens", "map", since=13)
def loop(g: Grower, x: str) -> str:
    """A Loop that carries a value and reads a captured one."""
    w = g.near_one(*g.along(x))
    shape, info = [symbol(p) for p in g.pairs(x)], helper.make_tensor_value_info
    tag = str(len(g.graph.node))
    nodes = [
        helper.make_node("Identity", [f"go_in{tag}"], [f"go{tag}"]),
        helper.make_node("Mul", [f"carried_in{tag}", w], [f"scaled{tag}"]),
        helper.make_node("Tanh", [f"scaled{tag}"], [f"carried{tag}"]),
    ]
    inputs = [
        info(f"i{tag}", TensorProto.INT64, []),
        info(f"go_in{tag}", TensorProto.BOOL, []),
        info(f"carried_in{tag}", 1, shape),
    ]
    outputs = [info(f"go{tag}", TensorProto.BOOL, []), info(f"carried{tag}", 1, shape)]
    body = g.subgraph("body", nodes, inputs, outputs)
    return g.like(g.op("Loop", g.const(np.int64(2)), g.const(np.array(True)), x, body=body), x)


@step(2, "sequence", since=13)
def scan(g: Grower, x: str) -> str | None:
    """A Scan that adds up what it reads, and multiplies it with what is captured."""
    if not g.fixed(x, 1):
        return None
    (_, batch, c), info, tag = g.shape(x), helper.make_tensor_value_info, str(len(g.graph.node))
    w = g.near_one(c)
    nodes = [
        helper.make_node("Add", [f"sum_in{tag}", f"read{tag}"], [f"added{tag}"]),
        helper.make_node("Tanh", [f"added{tag}"], [f"sum{tag}"]),
        helper.make_node("Mul", [f"sum{tag}", w], [f"out{tag}"]),
    ]
    inputs = [info(f"{name}{tag}", TensorProto.FLOAT, [batch, c]) for name in ("sum_in", "read")]
    outputs = [info(f"{name}{tag}", TensorProto.FLOAT, [batch, c]) for name in ("sum", "out")]
    body = g.subgraph("scanned", nodes, inputs, outputs)
    first = g.const(np.zeros((batch, c), np.float32))
    _, y = g.ops("Scan", first, x, outputs=2, body=body, num_scan_inputs=1)
    return g.like(y, x)


@step(2, "flat", tag="fused")
def classical(g: Grower, x: str) -> str:
    """Operators of ai.onnx.ml on features."""
    c, kind = g.channels(x), g.pick("Scaler", "Scaler", "Normalizer", "ArrayFeatureExtractor")
    if kind == "Normalizer":
        return g.like(g.op("ai.onnx.ml::Normalizer", x, norm=g.pick("L1", "L2", "MAX")), x)
    if kind == "ArrayFeatureExtractor":
        picked = [g.random.randrange(c) for _ in range(3)]
        return g.like(g.op("ai.onnx.ml::ArrayFeatureExtractor", x, picked), x, a1=3)
    count = g.pick(1, c)
    scale, offset = (g.rng.uniform(0.5, 1.5, count).tolist() for _ in range(2))
    return g.like(g.op("ai.onnx.ml::Scaler", x, scale=scale, offset=offset), x)
