"""What is compared where an operator picks among computed numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.divergence import distance_of, targets
from onnxprune.graph import load
from onnxprune.parts import Engine
from onnxprune.testing import Builder

Made: TypeAlias = tuple[ModelProto, set[str]]


def heads(b: Builder) -> tuple[str, str]:
    """Boxes [1, 256, 4] and scores [1, 2, 256] of a detector."""
    x = b.op("Relu", b.conv(b.input("x", 1, 3, 16, 16), 8))
    boxes = b.op("Reshape", b.conv(x, 4, 1), np.array([1, 4, -1]))
    scores = b.op("Reshape", b.conv(x, 2, 1), np.array([1, 2, -1]))
    return b.op("Transpose", boxes, perm=[0, 2, 1]), b.op("Sigmoid", scores)


def suppressed() -> Made:
    """The boxes that NonMaxSuppression leaves: as many as there are."""
    b = Builder()
    boxes, scores = heads(b)
    limits = np.array([10]), np.array([0.5], np.float32), np.array([0.3], np.float32)
    index = b.op(
        "Slice", b.op("NonMaxSuppression", boxes, scores, *limits), np.array([2]), np.array([3]), np.array([1])
    )
    left = b.op("Gather", b.op("Squeeze", boxes, np.array([0])), b.op("Squeeze", index, np.array([1])), axis=0)
    return b.model(left), {boxes, scores}


def best() -> Made:
    """The twenty boxes with the highest scores."""
    b = Builder()
    boxes, scores = heads(b)
    score = b.op("ReduceMax", scores, axes=[1], keepdims=0)
    top, index = b.ops("TopK", score, np.array([20]), outputs=2)
    index = b.op("Tile", b.op("Unsqueeze", index, np.array([2])), np.array([1, 1, 4]))
    return b.model(top, b.op("GatherElements", boxes, index, axis=1)), {boxes, score}


def second_stage() -> Made:
    """Layers with weights read what was picked: what they make is all that there is to compare."""
    b = Builder()
    boxes, scores = heads(b)
    _, index = b.ops("TopK", b.op("ReduceMax", scores, axes=[1], keepdims=0), np.array([20]), outputs=2)
    rows = b.op("Gather", b.op("Squeeze", boxes, np.array([0])), b.op("Squeeze", index, np.array([0])), axis=0)
    made = b.op("MatMul", rows, b.weight(4, 6))
    return b.model(b.op("Add", made, b.weight(6))), {made}


def top_classes() -> Made:
    b = Builder()
    logits = b.gemm(b.op("Relu", b.gemm(b.input("x", "N", 8), 16)), 9)
    return b.model(*b.ops("TopK", b.op("Softmax", logits, axis=1), np.array([3]), outputs=2)), {logits}


def positive() -> Made:
    """Scores over 0: as many as there are."""
    b = Builder()
    y = b.gemm(b.op("Relu", b.gemm(b.input("x", "N", 8), 16)), 9)
    where = b.op("NonZero", b.op("Greater", y, np.float32(0)))
    return b.model(b.op("GatherND", y, b.op("Transpose", where, perm=[1, 0]))), {y}


def masked() -> Made:
    """A pick by an input alone, which no weight changes: the answer is compared as it is."""
    b = Builder()
    x, mask = b.input("x", "N", 8), b.input("mask", 6)
    y = b.op("Gather", b.gemm(x, 6), b.op("Squeeze", b.op("NonZero", mask), np.array([0])), axis=1)
    return b.model(y), {y}


@pytest.mark.parametrize("make", [suppressed, best, second_stage, top_classes, positive, masked])
def test_what_is_picked_from_is_compared(make: Callable[[], Made]) -> None:
    model, expected = make()
    assert {target.value for target in targets(load(model))} == expected


@pytest.mark.parametrize("make", [suppressed, best])
def test_detections_are_compared_as_boxes(make: Callable[[], Made]) -> None:
    """In whatever way the values are laid out: boxes [1, 256, 4], scores [1, 2, 256] or [1, 256]."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    assert distance_of(load(make()[0]), feeds, Engine(threads=1)).kind == "boxes"
