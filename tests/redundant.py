"""Layers of few independent channels, as training leaves them."""

import numpy as np

from onnxprune.testing import Builder


def redundant(b: Builder, x: str, out: int, name: str) -> str:
    """A convolution whose filters are mixtures of half as many."""
    fan = b.shape(x)[1]
    mix = b.rng.standard_normal((out, out // 2)) / (out // 2) ** 0.5
    w = np.tensordot(mix, b.rng.standard_normal((out // 2, fan, 3, 3)) / (fan * 9) ** 0.5, axes=1)
    bias = b.const((b.rng.standard_normal(out) / 4).astype(np.float32), f"{name}.bias")
    return b.op("Conv", x, b.const(w.astype(np.float32), name), bias, pads=[1, 1, 1, 1])
