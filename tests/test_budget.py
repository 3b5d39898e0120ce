"""A budget spent where it hurts least."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import cost
from onnxprune.budget import Groups, spend
from onnxprune.cost import Cost
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.testing import Builder, close

Floats = NDArray[np.float64]
WIDTH = 32


def network() -> ModelProto:
    """Three layers as wide and as dear as each other, but for the ends."""
    b = Builder()
    y = b.input("x", 1, WIDTH, 6, 6)
    for name in ("one", "two", "three"):
        y = b.op("Relu", b.conv(y, WIDTH, name=name))
    return b.model(close(b, y, WIDTH))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


@pytest.fixture(scope="module")
def macs(coupling: Coupling) -> Cost:
    return cost.macs(coupling)


def groups(step: int = 1, most: int = WIDTH - 4) -> Groups:
    return Groups(*(np.full(3, n, dtype=np.intp) for n in (WIDTH, step, most, 0)))


def linear(*slopes: float) -> list[Floats]:
    return [slope * np.arange(WIDTH + 1.0) for slope in slopes]


@pytest.mark.parametrize("step", [1, 4, 8])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.5, 0.2])
def test_the_bound_is_met_in_steps(macs: Cost, share: float, step: int) -> None:
    bound = share * macs.before
    curves = [np.square(c) for c in linear(1.0, 2.0, 3.0)]
    found = spend(curves, groups(step), macs, bound)
    assert found is not None
    assert macs(found) <= bound
    assert ((WIDTH - found) % step == 0).all() and (found <= WIDTH - 4).all()
    for g in np.flatnonzero(found):  # nothing can be given back
        back = found.copy()
        back[g] -= step
        assert macs(back) > bound


def test_the_harmless_group_goes_first(macs: Cost) -> None:
    for cheap in range(3):
        slopes = [100.0] * 3
        slopes[cheap] = 1.0
        found = spend(linear(*slopes), groups(), macs, 0.9 * macs.before)
        assert found is not None
        assert found[cheap] > 0 and found.sum() == found[cheap]


def test_a_steep_start_is_cut_through(macs: Cost) -> None:
    """It hurts at once, then no more: dearer by the first step, cheaper by the eighth."""
    steep = np.minimum(np.arange(WIDTH + 1.0), 1.0) * 3.0
    found = spend([steep, *linear(1.0, 1.0)], groups(most=16), macs, 0.85 * macs.before)
    assert found is not None
    assert found[0] > found[1] == found[2] == 0


def test_it_goes_on_from_a_start(macs: Cost) -> None:
    start = np.array([0, 0, 8], dtype=np.intp)
    found = spend(linear(1.0, 50.0, 50.0), groups(), macs, 0.7 * macs.before, start)
    assert found is not None
    assert (found >= start).all() and macs(found) <= 0.7 * macs.before
    assert start.tolist() == [0, 0, 8]


def test_nothing_to_do(macs: Cost) -> None:
    found = spend(linear(1.0, 1.0, 1.0), groups(), macs, macs.before)
    assert found is not None
    assert not found.any()


def test_what_cannot_be(macs: Cost) -> None:
    curves = linear(1.0, 1.0, 1.0)
    assert spend(curves, groups(most=0), macs, 0.9 * macs.before) is None
    assert spend(curves, groups(most=4), macs, 0.2 * macs.before) is None
    assert spend([np.where(c > 0, np.inf, 0.0) for c in curves], groups(), macs, 0.5 * macs.before) is None


def test_a_group_of_infinite_damage_stays(macs: Cost) -> None:
    curves = linear(1.0, 1.0, 1.0)
    curves[1][1:] = np.inf
    found = spend(curves, groups(), macs, 0.6 * macs.before)
    assert found is not None
    assert found[1] == 0 and macs(found) <= 0.6 * macs.before


def test_units_are_a_cost_too(coupling: Coupling) -> None:
    measure = cost.channels(coupling, np.zeros(3, dtype=bool))
    found = spend(linear(1.0, 2.0, 3.0), groups(), measure, 0.5 * measure.before)
    assert found is not None
    assert found.tolist() == [28, 20, 0]


def test_what_went_inside_another_does_no_further_damage(macs: Cost) -> None:
    """The third group goes with the second as a whole: what it lost already counts for that one's damage."""
    curves = linear(100.0, 3.0, 1.0)
    every = [[False] * 3, [False, False, True], [False] * 3]
    room = groups(most=16)
    held = Groups(room.count, room.step, room.most, room.gone, inside=np.array(every))
    apart, within = (spend(curves, each, macs, 0.6 * macs.before) for each in (room, held))
    assert apart is not None
    assert within is not None
    assert apart[2] > 0
    assert within[1] > apart[1] and macs(within) <= 0.6 * macs.before
