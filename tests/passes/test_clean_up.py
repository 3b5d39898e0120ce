"""All that cleans up, one after the other, on random networks: the function stays."""

import numpy as np
import onnx
import pytest

from onnxprune import Checks, Pipeline
from onnxprune.passes import get
from onnxprune.testing import Builder

LAYERS = ("conv", "wide", "up", "norm", "scale", "shift", "number", "less", "relu", "swish", "same", "turn", "skip")


def layer(b: Builder, kind: str, x: str, seen: list[str]) -> str:
    """One more layer on 8 channels."""
    match kind:
        case "conv" | "wide":
            size = 1 if kind == "conv" else 3
            return b.conv(x, 8, size, bias=bool(b.rng.integers(2)), group=int(b.rng.choice([1, 2, 8])))
        case "up":
            return b.op("ConvTranspose", x, b.weight(8, 4, 1, 1), group=2)
        case "norm":
            return b.batch_norm(x)
        case "scale":
            return b.op(str(b.rng.choice(["Mul", "Div"])), x, b.near_one(8, 1, 1))
        case "shift":
            return b.op(str(b.rng.choice(["Add", "Sub"])), x, b.weight(1, 8, 1, 1))
        case "number":
            return b.op(str(b.rng.choice(["Add", "Mul", "Sub", "Div"])), x, float(b.rng.uniform(0.5, 1.5)))
        case "less":
            return b.op("Neg", b.op("Sub", b.weight(8, 1, 1), x))
        case "relu":
            return b.op("Relu", x)
        case "swish":
            return b.op("Div", b.op("Mul", x, b.op("Clip", b.op("Add", x, 3.0), 0.0, 6.0)), 6.0)
        case "same":
            return b.op("Identity", b.op("Dropout", x))
        case "turn":
            return b.op("Transpose", b.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
        case _:
            return b.op("Add", x, seen[int(b.rng.integers(len(seen)))])


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    b = Builder(int(np.random.default_rng(seed).choice([13, 17])), seed)
    seen = [b.conv(b.input("x", 2, 3, 5, 5), 8, 1)]
    for kind in b.rng.choice(LAYERS, 14):
        seen.append(layer(b, str(kind), seen[-1], seen))
    model = b.model(b.conv(seen[-1], 4, 1, name="last"))
    steps = [get(name)() for name in ("tidy", "fuse", "fold_batchnorm")]
    result = Pipeline(steps).run(model, checks=Checks(seconds=0))
    onnx.checker.check_model(result.model, full_check=True)
    assert result.record["fidelity"]["cosine"] > 1 - 1e-5
    again = Pipeline(steps).run(result.model)
    assert again.model == result.model
