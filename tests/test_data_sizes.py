"""Samples of different sizes: sentences, pictures as they come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune import prune
from onnxprune.feeds import Feed
from onnxprune.testing import Builder
from tests.stacks import attention, linear, norm


def sentences() -> ModelProto:
    """One layer of a transformer, whose answer has as many rows as there are tokens."""
    b = Builder()
    x = linear(b, b.input("x", "N", "T", 6), 16, "embed")
    x = norm(b, b.op("Add", x, attention(b, x, 16, "attn")), "norm")
    x = b.op("Add", x, linear(b, b.op("Relu", linear(b, x, 64, "up")), 16, "down"))
    return b.model(linear(b, norm(b, x, "last"), 24, "head"))


def pictures(end: Callable[[Builder, str], str]) -> ModelProto:
    b = Builder()
    x = b.input("x", "N", 3, "H", "W")
    for layer in ("first", "second"):
        x = b.op("Relu", b.conv(x, 32, name=layer))
    return b.model(end(b, x))


def detections(b: Builder, x: str) -> str:
    """[samples, anchors, features]: an anchor for every place."""
    found = b.op("Concat", b.conv(x, 4, 1, "box"), b.op("Sigmoid", b.conv(x, 2, 1, "class")), axis=1)
    return b.op("Transpose", b.op("Reshape", found, np.array([0, 6, -1])), perm=[0, 2, 1])


MODELS: dict[str, tuple[Callable[[], ModelProto], Callable[[int], tuple[int, ...]]]] = {
    "tokens": (sentences, lambda i: (5 + i * 7 % 31, 6)),
    "maps": (lambda: pictures(lambda b, x: b.conv(x, 2, 1, "head")), lambda i: (3, 12 + i % 5, 14 + i % 7)),
    "boxes": (lambda: pictures(detections), lambda i: (3, 12 + i % 5, 14 + i % 7)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_samples_may_differ_in_size(kind: str) -> None:
    model, size = MODELS[kind]
    rng = np.random.default_rng(0)
    data: list[Feed] = [{"x": rng.standard_normal((1, *size(i))).astype(np.float32)} for i in range(40)]
    result = prune(model(), "macs=0.7", data=data, align=8, validate=False)
    recovery = result.record["recovery"]
    assert recovery["distance"]["after"] < recovery["distance"]["before"]
