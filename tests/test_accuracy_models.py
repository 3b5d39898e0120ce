"""The models of docs/accuracy.md: their files of models, and how detectors are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.accuracy.boxes import Found, average_precision, ious, mean_average_precision, suppressed
from tools.bench_accuracy import models

FOLDER = Path(__file__).parent.parent / "tools" / "accuracy"
SQUARE = [0.0, 0.0, 10.0, 10.0]
BESIDE = [20.0, 0.0, 30.0, 10.0]


def found(*boxes: tuple[list[float], int, float]) -> Found:
    places, classes, scores = zip(*boxes, strict=True) if boxes else ((), (), ())
    return Found(np.array(places).reshape(-1, 4), np.array(classes, int), np.array(scores, float))


def test_overlaps_are_shares_of_the_union() -> None:
    others = np.array([SQUARE, [5, 0, 15, 10], BESIDE])
    np.testing.assert_allclose(ious(np.array(SQUARE), others), [1, 1 / 3, 0])


def test_of_boxes_that_overlap_the_best_of_a_class_stays() -> None:
    shifted = [1.0, 0.0, 11.0, 10.0]
    kept = suppressed(found((SQUARE, 0, 0.6), (shifted, 0, 0.9), (shifted, 1, 0.5), (BESIDE, 0, 0.1)))
    assert kept.scores.tolist() == [0.9, 0.5, 0.1]


def test_nothing_found_is_no_precision() -> None:
    assert average_precision([np.array([SQUARE])], [found()], 0) == 0


def test_all_found_and_nothing_else_is_one() -> None:
    truth = [np.array([SQUARE, BESIDE])]
    assert average_precision(truth, [found((SQUARE, 0, 0.2), (BESIDE, 0, 0.9))], 0) == 1


def test_false_boxes_count_from_their_score_down() -> None:
    truth = [np.array([SQUARE, BESIDE])]
    far = [50.0, 50.0, 60.0, 60.0]
    said = found((SQUARE, 0, 0.9), (far, 0, 0.8), (BESIDE, 0, 0.7))
    assert average_precision(truth, [said], 0) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_thing_is_found_once() -> None:
    said = found((SQUARE, 0, 0.9), (SQUARE, 0, 0.8))
    assert average_precision([np.array([SQUARE])], [said], 0) == 1
    assert average_precision([np.array([SQUARE, BESIDE])], [said], 0) == 0.5


def test_classes_with_few_things_are_left_out() -> None:
    many = found((SQUARE, 0, 1), (BESIDE, 0, 1), ([50, 0, 60, 10], 1, 1))
    said = found((SQUARE, 0, 0.9), (BESIDE, 0, 0.9))
    assert mean_average_precision([many], [said], least=2) == 1
    assert mean_average_precision([many], [said], least=1) == 0.5


@pytest.mark.parametrize("name", ["public", "unseen"])
def test_files_of_models_are_read(name: str) -> None:
    there = models(FOLDER / f"{name}.toml")
    assert len(there) > 5
    assert all("{out}" in (m.calibrate or "") and "{model}" in m.evaluate and m.measure for m in there.values())
