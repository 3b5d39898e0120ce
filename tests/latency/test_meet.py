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
    found = stay(meet(choose, stay, lambda removed: bias * stay(removed), 50.0))
    assert 50 * (1 - SLACK) - bias <= bias * found <= 50


def test_the_nearest_below_is_taken_where_none_is_near() -> None:
    steps = lambda removed: 60.0 if stay(removed) > 40 else 30.0  # noqa: E731
    assert stay(meet(choose, stay, steps, 50.0)) <= 40


def test_nothing_is_below() -> None:
    assert meet(choose, stay, lambda removed: 70.0, 50.0) is None


def test_it_ends() -> None:
    rng, asked = np.random.default_rng(0), list[int]()

    def noisy(removed: Removed) -> float:
        asked.append(1)
        return float(rng.uniform(51, 60))

    meet(choose, stay, noisy, 50.0, tries=4)
    assert len(asked) <= 8


def test_coarse_steps_are_gone_through() -> None:
    widths = [100, 70, 49, 30, 10]

    def coarse(aim: float) -> Removed | None:
        fits = [width for width in widths if width <= aim]
        return np.arange(UNITS) >= fits[0] if fits else None

    assert stay(meet(coarse, stay, lambda removed: 1.05 * stay(removed), 51.0)) == 30
    assert stay(meet(coarse, stay, lambda removed: 1.5 * stay(removed), 50.0)) == 30


def test_a_choice_in_another_measure_is_met() -> None:
    """Choices of at most so many MACs, say, that are predicted in milliseconds."""
    found = meet(choose, lambda removed: 3.0 * stay(removed), lambda removed: 2.0 * stay(removed), 50.0)
    assert 23 <= stay(found) <= 25
