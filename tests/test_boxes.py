"""Detections: what is a score, how a box is to be read, how far it is off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.answers import Target
from onnxprune.boxes import CENTRE, CODED, CORNERS, find_boxes, overlap
from onnxprune.divergence import Distance

Array = NDArray[Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def corners(rng: np.random.Generator, *shape: int) -> Array:
    low = rng.uniform(0, 500, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(40, 140, (*shape, 2))], axis=-1)


def centres(boxes: Array) -> Array:
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def detections(rng: np.random.Generator, boxes: Array | None = None) -> Array:
    """[2, 200, 4 + 3]: boxes, then scores."""
    made = corners(rng, 2, 200) if boxes is None else boxes
    return np.concatenate([made, rng.uniform(0, 1, (2, 200, 3)) ** 4], axis=2).astype(np.float32)


def test_overlap(rng: np.random.Generator) -> None:
    a = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    b = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    np.testing.assert_allclose(overlap(a, b, CORNERS), [1, 1 / 3, 0])
    np.testing.assert_allclose(overlap(centres(a), centres(b), CENTRE), [1, 1 / 3, 0])
    many = corners(rng, 50)
    np.testing.assert_allclose(overlap(many, many, CORNERS), 1)


@pytest.mark.parametrize("last", [True, False])
def test_boxes_are_recognised(rng: np.random.Generator, last: bool) -> None:
    made = [detections(rng) for _ in range(2)]
    outputs = [{"y": m if last else np.moveaxis(m, 2, 1)} for m in made]
    distance = Distance((Target("y", "values", 2),), outputs)
    assert distance.kind == "boxes"
    assert distance(outputs) == 0.0
    features = np.arange(7).reshape((1, 1, 7) if last else (1, 7, 1))
    far = [{"y": o["y"] + np.where(features < 4, 1e4, 0.0)} for o in outputs]
    assert distance(far) == pytest.approx(4.0, rel=1e-3)  # no overlap at all
    silent = [{"y": o["y"] * (features < 4)} for o in outputs]
    assert distance(silent) == pytest.approx(1.0, rel=1e-3)


def test_large_boxes_may_be_off_by_more(rng: np.random.Generator) -> None:
    boxes = corners(rng, 2, 200)

    def distance(scale: float) -> float:
        outputs = {"y": detections(np.random.default_rng(0), boxes * scale)}
        moved = {"y": outputs["y"] + np.where(np.arange(7) < 4, 4.0, 0.0).astype(np.float32)}
        return Distance((Target("y", "values", 2),), [outputs])([moved])

    assert distance(4.0) < distance(1.0) / 4


def test_how_boxes_are_read(rng: np.random.Generator) -> None:
    boxes = corners(rng, 2, 200)
    for made, layout in ((boxes, CORNERS), (centres(boxes), CENTRE), (rng.standard_normal((2, 200, 4)), CODED)):
        (found,) = find_boxes(["y"], [{"y": detections(rng, made)}], asked=False)
        assert found.layout == layout


def test_what_cannot_be_read_counts_by_its_variance(rng: np.random.Generator) -> None:
    """Distributions over bins, beside the scores of the same anchors."""
    outputs = [{"b": rng.standard_normal((1, 200, 32)), "s": rng.uniform(0, 1, (1, 200, 9))} for _ in range(2)]
    (found,) = find_boxes(["b", "s"], outputs, asked=False)
    assert found.layout == CODED and found.scores.sum() == 9
    distance = Distance((Target("b", "values", 2), Target("s", "values", 2)), outputs)
    near, far = ([{"b": o["b"] + step, "s": o["s"]} for o in outputs] for step in (0.1, 10.0))
    assert distance(near) == pytest.approx(0.01, rel=0.1) and distance(far) == pytest.approx(1.0, rel=1e-3)


def test_fractions_of_the_picture_and_scores_apart(rng: np.random.Generator) -> None:
    outputs = [{"b": rng.uniform(0, 1, (1, 200, 4)), "s": rng.uniform(0, 1, (1, 200, 9)), "y": rng.normal(size=(1, 3))}]
    compared = (Target("b", "values", 2), Target("s", "values", 2), Target("y", "values", 1))
    distance = Distance(compared, outputs)
    assert distance.kind == "boxes and values"
    assert distance(outputs) == 0.0
    assert distance([{**o, "b": 1 - o["b"]} for o in outputs]) > 0.2


def test_all_batches_count_by_what_they_show(rng: np.random.Generator) -> None:
    """A batch in which nothing is detected says next to nothing."""
    busy, empty = detections(rng), detections(rng)
    empty[..., 4:] *= 1e-3
    distance = Distance((Target("y", "values", 2),), [{"y": busy}, {"y": empty}])
    wrong = empty + np.where(np.arange(7) < 4, 1e4, 0.0)
    assert distance([{"y": busy}, {"y": wrong}]) < 1e-4


def test_features_of_tokens_are_no_boxes(rng: np.random.Generator) -> None:
    """A feature that happens to lie between 0 and 1 makes no detector of a model."""
    outputs = rng.standard_normal((2, 200, 64))
    outputs[..., 5] = rng.uniform(0, 1, (2, 200))
    assert find_boxes(["y"], [{"y": outputs}], asked=False) == ()


def test_what_has_other_features_in_another_batch_is_no_box(rng: np.random.Generator) -> None:
    """Vectors of 384 features for a few tokens look like the features of 384 anchors, until a sentence is longer."""
    tokens = [{"y": rng.uniform(0, 1, (2, count, 384))} for count in (12, 14)]
    assert find_boxes(["y"], tokens, True) == ()
    anchors = [{"y": detections(rng)[:, :count]} for count in (200, 150)]
    assert [boxes.names for boxes in find_boxes(["y"], anchors, False)] == [("y",)]
    apart = [{"a": m["y"][..., :4], "b": m["y"][:, : 150 if n else None, 4:]} for n, m in enumerate([anchors[0]] * 2)]
    assert find_boxes(["a", "b"], apart, True) == ()
    uneven = [{"a": rng.uniform(0, 9, (2, 200, 4)), "b": rng.uniform(0, 1, (6, 200))}]
    assert find_boxes(["a", "b"], uneven, True) == ()
