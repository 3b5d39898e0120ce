"""A network whose BatchNormalizations have the statistics of the pictures that it was made for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxprune.calibrate import calibrate
from onnxprune.graph import load
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder

Array = NDArray[Any]


def pictures(count: int = 32, seed: int = 0) -> dict[str, Array]:
    """Smooth patches of colour, from -1 to 1."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    return {"x": np.clip(coarse + 0.2 * rng.standard_normal(coarse.shape), -1, 1).astype(np.float32)}


def trained() -> ModelProto:
    """Convolutions, a depthwise one, ReLU, a clipped ReLU and swish, and a residual sum."""
    b = Builder(seed=3)

    def norm(y: str, name: str) -> str:
        c = b.shape(y)[1]
        beta = b.const(b.rng.uniform(-0.5, 1.0, c).astype(np.float32), f"{name}.bias")
        moments = [b.const(value, f"{name}.{part}") for part, value in (("mean", zero(c)), ("var", zero(c) + 1))]
        return b.op("BatchNormalization", y, b.near_one(c, name=f"{name}.scale"), beta, *moments)

    def zero(c: int) -> Array:
        return np.zeros(c, dtype=np.float32)

    y = b.op("Relu", norm(b.conv(b.input("x", "N", 3, 16, 16), 16, name="stem", bias=False), "n0"))
    z = b.op("Clip", norm(b.conv(y, 24, 1, name="wide", bias=False), "n1"), np.float32(0), np.float32(6))
    z = norm(b.conv(z, 24, name="depthwise", bias=False, group=24), "n2")
    z = norm(b.conv(b.op("Mul", z, b.op("Sigmoid", z)), 16, 1, name="back", bias=False), "n3")
    y = b.op("Flatten", b.op("GlobalAveragePool", b.op("Add", y, z)))
    model = b.model(b.gemm(y, 5, name="head"))
    for number in range(4):
        graph = load(model)
        node = next(n for n in graph.nodes if n.inputs[1:2] == (f"n{number}.scale",))
        dim = Dim(node.inputs[0], 1)
        seen = calibrate(graph, [pictures(64, seed=1)], {dim: Want.SUMS}, Engine(threads=1))[dim]
        for tensor in model.graph.initializer:
            if tensor.name in (f"n{number}.mean", f"n{number}.var"):
                value = seen.mean if tensor.name.endswith("mean") else seen.variance
                tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model
