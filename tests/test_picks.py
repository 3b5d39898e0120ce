"""What is compared where an operator picks among computed numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxprune import prune
from onnxprune.answers import targets
from onnxprune.divergence import distance_of
from onnxprune.feeds import Feed
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


def left(b: Builder, boxes: str, scores: str) -> str:
    """The rows of boxes that NonMaxSuppression leaves."""
    half = np.array([0.5], np.float32)
    found = b.op("NonMaxSuppression", boxes, scores, np.array([40]), half, half)
    index = b.op("Slice", found, np.array([2]), np.array([3]), np.array([1]))
    return b.op("Gather", b.op("Squeeze", boxes, np.array([0])), b.op("Squeeze", index, np.array([1])), axis=0)


def suppressed() -> Made:
    """As many as there are."""
    b = Builder()
    boxes, scores = heads(b)
    return b.model(left(b, boxes, scores)), {boxes, scores}


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
    made = b.op("Add", b.op("MatMul", rows, b.weight(4, 6)), b.weight(6))
    return b.model(b.op("Softmax", made, axis=1)), {made}


def refined() -> Made:
    """A second stage that picks again: what its last pick is from."""
    b = Builder()
    boxes, scores = heads(b)
    _, index = b.ops("TopK", b.op("ReduceMax", scores, axes=[1], keepdims=0), np.array([20]), outputs=2)
    rows = b.op("Gather", b.op("Squeeze", boxes, np.array([0])), b.op("Squeeze", index, np.array([0])), axis=0)
    score = b.op("MatMul", rows, b.weight(4, 1))
    top, index = b.ops("TopK", b.op("Sigmoid", b.op("Squeeze", score, np.array([1]))), np.array([5]), outputs=2)
    shifted = b.op("MatMul", rows, b.weight(4, 4))
    return b.model(top, b.op("Gather", b.op("Mul", shifted, np.float32(0.1)), index, axis=0)), {score, shifted}


def through_another_layer() -> Made:
    """Features that are picked and go through a layer may be cut: they are no answer."""
    b = Builder()
    x = b.op("Relu", b.op("MatMul", b.input("x", 1, 30, 8), b.weight(8, 16)))
    _, index = b.ops(
        "TopK", b.op("Squeeze", b.op("MatMul", x, b.weight(16, 1)), np.array([2])), np.array([5]), outputs=2
    )
    rows = b.op("Gather", x, b.op("Squeeze", index, np.array([0])), axis=1)
    made = b.op("Einsum", rows, b.weight(16, 3), equation="nti,io->nto")
    return b.model(made), {made}


def open_batch() -> Made:
    """Sizes are read off features: these are not what the answer is made from."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 16, 16), 8))
    score = b.op("Reshape", b.conv(x, 1, 1), np.array([0, -1]))
    _, index = b.ops("TopK", score, np.array([20]), outputs=2)
    kept = b.op("GatherElements", score, index, axis=1)
    size = b.op("Concat", b.op("Slice", b.op("Shape", x), np.array([0]), np.array([1])), np.array([4, 5]), axis=0)
    return b.model(b.op("Reshape", kept, size)), {score}


def counted() -> Made:
    """Positions as older exporters write them, by the NonZero of ones: no weight has a say in them."""
    b = Builder()
    x = b.op("Relu", b.op("MatMul", b.input("x", 1, 5, 8), b.weight(8, 16)))
    ones = b.op("ConstantOfShape", b.op("Slice", b.op("Shape", x), np.array([1]), np.array([2])))
    places = b.op("Squeeze", b.op("NonZero", b.op("Equal", ones, np.float32(0))), np.array([0]))
    logits = b.op("MatMul", b.op("Add", x, b.op("Gather", b.weight(5, 16), places)), b.weight(16, 4))
    return b.model(b.op("Softmax", logits, axis=2)), {logits}


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


MAKERS = [
    suppressed,
    best,
    second_stage,
    refined,
    through_another_layer,
    open_batch,
    counted,
    top_classes,
    positive,
    masked,
]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_picked_from_is_compared(make: Callable[[], Made]) -> None:
    model, expected = make()
    assert {target.value for target in targets(load(model))} == expected


@pytest.mark.parametrize("make", [suppressed, best])
def test_detections_are_compared_as_boxes(make: Callable[[], Made]) -> None:
    """In whatever way the values are laid out: boxes [1, 256, 4], scores [1, 2, 256] or [1, 256]."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    assert distance_of(load(make()[0]), feeds, Engine(threads=1)).kind == "boxes"


def test_rows_that_come_and_go_do_not_end_a_run() -> None:
    """Layers work on the boxes that suppression left: more of them for one model, fewer for the other."""
    b = Builder()
    boxes, scores = heads(b)
    rows = left(b, boxes, scores)
    hidden = b.op("Relu", b.op("Add", b.op("MatMul", rows, b.weight(4, 32)), b.weight(32)))
    model = b.model(b.op("Softmax", b.op("MatMul", hidden, b.weight(32, 3)), axis=1))
    rng = np.random.default_rng(0)
    data: list[Feed] = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(16)]
    found = prune(model, "macs=0.8", data=data, align=2, validate=False).record["recovery"]["distance"]
    assert found["kind"] == "logits" and np.isfinite([found["before"], found["after"]]).all()


def test_a_pick_inside_an_if() -> None:
    """What a branch reads of it is not followed: the answer is compared as it is."""
    b = Builder()
    logits = b.gemm(b.op("Relu", b.gemm(b.input("x", 1, 8), 16)), 9)
    top, _ = b.ops("TopK", logits, np.array([3]), outputs=2)
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, [1, 3])
    branches = [helper.make_graph([helper.make_node(op, [top], ["made"])], op, [], [made]) for op in ("Abs", "Neg")]
    answer = b.op("If", b.input("flag", dtype=np.bool_), then_branch=branches[0], else_branch=branches[1])
    assert {target.value for target in targets(load(b.model(b.declare(answer, 1, 3))))} == {answer}
