"""Targets that make up for the error of another branch."""

import numpy as np
import pytest

from onnxprune import couple
from onnxprune.branches import branch_of, corrected
from onnxprune.consumers import consumers
from onnxprune.graph import load
from onnxprune.testing import Builder


@pytest.mark.parametrize("normed", [False, True])
def test_the_other_branch_is_made_up_for(normed: bool) -> None:
    """What a result is added to is wrong by 1: the target is less by that, in units from before a norm."""
    b = Builder(seed=0)
    x = b.input("x", "N", 4, 5, 5)
    y = b.conv(x, 4, name="conv")
    gamma, mean = b.const(np.full(4, 2.0, np.float32)), b.const(np.zeros(4, np.float32))
    y = b.op("BatchNormalization", y, gamma, mean, mean, b.const(np.ones(4, np.float32)), epsilon=0.0) if normed else y
    graph = load(b.model(b.conv(b.op("Add", x, y), 3, name="head")))
    coupling = couple(graph)
    conv = next(c for c in consumers(coupling) if c.constant == "conv")
    branch = branch_of(conv, conv)
    assert branch is not None and branch.value == "x"
    value, wrong = np.zeros((2, 4, 5, 5), np.float32), np.ones((2, 4, 5, 5), np.float32)
    found = corrected(value, branch, value, wrong, 1, slice(None))
    np.testing.assert_allclose(found, -0.5 if normed else -1.0)
