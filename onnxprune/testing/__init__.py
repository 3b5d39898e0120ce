"""Tiny graph builders and the oracle: for our tests, and for people who add rules.

    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 8, name="w1")
    y = b.op("Relu", y)
    result = oracle(b.model(b.conv(y, 4, name="w2")))
    assert result.can_cut("w1", axis=0)

The oracle removes units at random, writes zeros into the original wherever the plan drops a slice (from the plan
alone: it shares no code with the surgery), and compares the two models in ONNX Runtime.
"""

from onnxprune.testing.builder import Builder, close, sandwich
from onnxprune.testing.masking import arrays, mask, tensors
from onnxprune.testing.oracle import OracleError, OracleResult, VacuousError, draw, oracle, prove

__all__ = [
    "Builder",
    "OracleError",
    "OracleResult",
    "VacuousError",
    "arrays",
    "close",
    "draw",
    "mask",
    "oracle",
    "prove",
    "sandwich",
    "tensors",
]
