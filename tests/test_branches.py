"""Targets that make up for the error of another branch."""

from typing import Any

import numpy as np
import pytest

from onnxprune import couple
from onnxprune.branches import branch_of, corrected
from onnxprune.consumers import Consumer, consumers
from onnxprune.graph import load
from onnxprune.testing import Builder

BETWEEN: dict[str, tuple[str, Any, float | None]] = {  # the factor; None: nothing is made up for
    "nothing": ("Add", None, 1.0),
    "norm": ("BatchNormalization", 2.0, 2.0),
    "bias": ("Add", np.arange(4.0), 1.0),
    "scale": ("Mul", 2.0, 2.0),
    "quotient": ("Div", 0.5, 2.0),
    "positions": ("Add", np.ones((5, 5)), None),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_the_other_branch_is_made_up_for(between: str) -> None:
    """What a result is added to is wrong by 1: the target is less by that, in units from before a scale of channels."""
    op, constant, factor = BETWEEN[between]
    b = Builder(seed=0)
    x = b.input("x", "N", 4, 5, 5)
    y = b.conv(x, 4, name="conv")
    if op == "BatchNormalization":
        gamma, mean = b.const(np.full(4, constant, np.float32)), b.const(np.zeros(4, np.float32))
        y = b.op(op, y, gamma, mean, mean, b.const(np.ones(4, np.float32)), epsilon=0.0)
    elif constant is not None:
        operand = np.asarray(constant, np.float32)
        y = b.op(op, y, b.const(operand.reshape(1, -1, 1, 1) if operand.ndim == 1 else operand))
    graph = load(b.model(b.conv(b.op("Add", x, y), 3, name="head")))
    coupling = couple(graph)
    conv = next(c for c in consumers(coupling) if c.constant == "conv")
    branch = branch_of(conv, conv)
    if factor is None:
        assert branch is None
        return
    assert branch is not None and branch.value == "x"
    value, wrong = np.zeros((2, 4, 5, 5), np.float32), np.ones((2, 4, 5, 5), np.float32)
    found = corrected(value, branch, value, wrong, 1, slice(None))
    np.testing.assert_allclose(found, -1.0 / factor)


def test_a_transformer_layer_makes_up_for_the_stream_behind_its_bias() -> None:
    """A MatMul has its bias in an Add of its own: the sum of the residual stream comes after that."""
    b = Builder(seed=0)
    x = b.input("x", "N", 3, 8)
    stream = b.op("Add", b.op("MatMul", x, b.const(np.eye(8, dtype=np.float32))), b.const(np.ones(8, np.float32)))
    wide = b.op("Relu", b.op("MatMul", stream, b.weight(8, 16, name="up")))
    down = b.op("Add", b.op("MatMul", wide, b.weight(16, 8, name="down")), b.const(np.ones(8, np.float32)))
    coupling = couple(load(b.model(b.op("Add", stream, down))))
    layer = next(c for c in consumers(coupling) if c.constant == "down")
    branch = branch_of(layer, layer)
    assert branch is not None and branch.value == stream and branch.share is None


def test_a_branch_that_the_cut_model_lacks() -> None:
    """The block that ends in it was dropped."""

    def layer(dropped: bool) -> Consumer:
        b = Builder(seed=0)
        x = b.op("MatMul", b.input("x", "N", 3, 8), b.weight(8, 8, name="in"))
        stream = x if dropped else b.op("Add", x, b.op("MatMul", b.op("Relu", x), b.weight(8, 8)), name="sum")
        made = b.op("MatMul", b.op("Relu", stream), b.weight(8, 8, name="down"))
        coupling = couple(load(b.model(b.op("Add", stream, made))))
        return next(c for c in consumers(coupling) if c.constant == "down")

    whole, cut = layer(False), layer(True)
    assert branch_of(whole, whole) == ("sum", None) and branch_of(whole, cut) is None
