"""If, Loop and Scan lock what their bodies read and make, and nothing more."""

from typing import TypeAlias

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper

from onnxprune.testing import Builder, OracleResult, oracle

FLOAT = TensorProto.FLOAT
Typed: TypeAlias = tuple[str, int, list[int]]
BRANCHES = [("yes", "Add"), ("no", "Sub")]


def body(name: str, nodes: list[tuple[str, list[str], str]], inputs: list[Typed], *outputs: str) -> GraphProto:
    """A graph of nodes (op, inputs, output); its outputs are [2, 8], those called "c..." booleans."""
    return helper.make_graph(
        [helper.make_node(op, read, [made]) for op, read, made in nodes],
        name,
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [
            helper.make_tensor_value_info(o, TensorProto.BOOL, [])
            if o[0] == "c"
            else helper.make_tensor_value_info(o, FLOAT, [2, 8])
            for o in outputs
        ],
    )


def ends(b: Builder, before: str, y: str) -> OracleResult:
    """Layer `a` made `before`; layers `c` and `d` come after `y`, and a layer `free` stands beside it."""
    y = b.gemm(b.op("Relu", b.gemm(b.declare(y, 2, 8), 6, "c")), 4, "d")
    beside = b.gemm(b.op("Relu", b.gemm(before, 7, "free")), 4, "last")
    return oracle(b.model(b.op("Add", y, beside)), 0.5)


@pytest.mark.parametrize("outer", ["weight", "value"])
def test_if(outer: str) -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", 2, 3), 5, "a"))
    z = b.gemm(y, 8, "b")
    b.weight(8, name="row")
    read = "row" if outer == "weight" else z
    yes, no = (body(name, [(op, [f"{name}.row", read], f"{name}.out")], [], f"{name}.out") for name, op in BRANCHES)
    for branch in (yes, no):
        branch.initializer.append(helper.make_tensor(f"{branch.name}.row", FLOAT, [2, 8], np.ones(16)))
    made = b.op("If", b.op("Equal", b.input("which", dtype=np.int64), b.const(1)), then_branch=yes, else_branch=no)
    result = ends(b, y, made)
    assert result.choices("a") == [5]
    assert result.choices("c") == [6] and result.choices("free") == [7]
    assert result.reason("c", 1) == "a subgraph of If makes it"
    if outer == "value":
        assert result.reason("b") == "a subgraph of If reads it"
    else:
        assert not result.can_cut("row")


def test_loop() -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", 2, 3), 5, "a"))
    z = b.gemm(y, 8, "b")
    b.weight(8, name="row")
    inputs: list[Typed] = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("s", FLOAT, [2, 8])]
    step = body("step", [("Identity", ["go"], "c_out"), ("Add", ["s", "row"], "n")], inputs, "c_out", "n")
    made = b.op("Loop", b.const(3), b.const(np.array(True)), z, body=step)
    result = ends(b, y, made)
    assert result.reason("b") == "a subgraph of Loop reads it"
    assert not result.can_cut("row")
    assert result.choices("a") == [5] and result.choices("c") == [6] and result.choices("free") == [7]


def test_scan() -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", 2, 3), 5, "a"))
    z = b.gemm(y, 8, "b")
    start, row = b.const(np.zeros(8, np.float32), "start"), [8]
    nodes = [("Add", ["s", "v"], "n"), ("Identity", ["n"], "o")]
    step = body("step", nodes, [("s", FLOAT, row), ("v", FLOAT, row)], "n", "o")
    for output in step.output:
        output.CopyFrom(helper.make_tensor_value_info(output.name, FLOAT, row))
    _, made = b.ops("Scan", start, z, outputs=2, body=step, num_scan_inputs=1)
    result = ends(b, y, made)
    assert result.reason("b") == "a subgraph of Scan reads it"
    assert result.choices("a") == [5] and result.choices("c") == [6] and result.choices("free") == [7]
