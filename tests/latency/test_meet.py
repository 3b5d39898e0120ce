"""A choice that is right on the clock, not only by the table."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.latency.meet import SLACK, meet

Removed = NDArray[np.bool_]
UNITS = 100


def choose(aim: float) -> Removed | None:
    """As many units stay as the aim, 1 for each; at least 10."""
    return None if aim < 10 else np.arange(UNITS) >= int(aim)


def stay(removed: Removed | None) -> int:
    assert removed is not None
    return int((~removed).sum())


@pytest.mark.parametrize("bias", [0.8, 1.0, 1.3])
def test_a_biased_prediction_is_corrected(bias: float) -> None:
    found = stay(meet(choose, lambda removed: bias * stay(removed), 50.0))
    assert 50 * (1 - SLACK) - bias <= bias * found <= 50


def test_the_nearest_below_is_taken_where_none_is_near() -> None:
    steps = lambda removed: 60.0 if stay(removed) > 40 else 30.0  # noqa: E731
    assert stay(meet(choose, steps, 50.0)) <= 40


def test_nothing_is_below() -> None:
    assert meet(choose, lambda removed: 70.0, 50.0) is None


def test_it_ends() -> None:
    rng, asked = np.random.default_rng(0), list[int]()

    def noisy(removed: Removed) -> float:
        asked.append(1)
        return float(rng.uniform(51, 60))

    meet(choose, noisy, 50.0, tries=4)
    assert len(asked) <= 4
