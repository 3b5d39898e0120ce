"""Shares of layers, against a sort of everything."""

import numpy as np
import pytest

from onnxprune.sparsity.ranking import shares


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_lowest_of_all_go(share: float) -> None:
    rng = np.random.default_rng(0)
    scores = [(rng.random((2, 3, 50)) * scale).astype(np.float32) for scale in (1, 3, 100)]
    found = shares(scores, [s.size for s in scores], share)
    last = np.sort(np.concatenate([s.reshape(-1) for s in scores]))[round(share * 900)]
    assert found == pytest.approx([(s < last).mean() for s in scores], abs=0.01)
    assert np.mean(found) == pytest.approx(share)


def test_tiles_count_as_the_weights_that_they_are() -> None:
    large, small = np.zeros(10, np.float32), np.ones(10, np.float32)
    assert shares([large, small], [90, 10], 0.95) == pytest.approx([1.0, 0.5])


def test_equal_ones_share_what_is_left() -> None:
    dead = [np.zeros(10, np.float32), np.array([0] * 5 + [1] * 5, np.float32)]
    assert shares(dead, [10, 10], 0.3) == pytest.approx([0.4, 0.2])
