"""What is known of the damage of groups."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import graph as graphs
from onnxprune.answers import targets
from onnxprune.coupling import couple
from onnxprune.curves import Curve
from onnxprune.damage import Gauge
from onnxprune.divergence import Distance
from onnxprune.observe import observe
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING
from onnxprune.plan import make_plan
from onnxprune.surgery import cut
from onnxprune.survey import Survey, first_widths, interpolated, traced
from onnxprune.testing import Builder, close

ENGINE = Engine(threads=1)


def curve(*error: float) -> Curve:
    return Curve(np.arange(len(error) - 1), np.array([0.0, *error[1:]]))


def test_between_points_damage_follows_the_local_error() -> None:
    local = curve(0, 1, 2, 4, 8)
    one = interpolated(local, {2: 0.2}, 0.0)
    np.testing.assert_allclose(one, [0, 0.1, 0.2, 0.4, 0.8], rtol=1e-5)
    two = interpolated(local, {1: 0.1, 3: 1.6}, 0.0)
    assert two[1] == pytest.approx(0.1) and two[3] == pytest.approx(1.6) and 0.1 < two[2] < 1.6
    assert two[4] > 2 * two[3]  # it got worse faster than the local error: so it goes on


def test_damage_never_falls_and_is_never_free() -> None:
    made = interpolated(curve(0, 1, 2, 4, 8), {1: 0.5, 3: 0.1}, 0.0)
    assert (np.diff(made) >= 0).all()
    assert interpolated(curve(0, 1, 2, 4, 8), {2: 0.0}, 1.0)[2] > 0.05
    assert np.isfinite(interpolated(curve(0, 1, 2, 4, 8), {2: np.inf}, 1.0)).all()


def test_the_first_width_is_three_quarters_in_whole_steps() -> None:
    left, step, room = (np.array(a) for a in ([64, 24, 16, 8, 64], [8, 8, 16, 8, 8], [60, 20, 0, 0, 4]))
    assert first_widths(left, step, room).tolist() == [16, 8, 0, 0, 4]


@pytest.fixture(scope="module")
def survey() -> Survey:
    """Of a model of which four units are gone."""
    b = Builder(seed=2)
    y = b.input("x", "N", 3, 8, 8)
    for name in ("one", "two", "three"):
        y = b.op("Relu", b.conv(y, 16, name=name))
    original = couple(graphs.load(b.model(close(b, y, 16))))
    removed = np.zeros(original.units, dtype=bool)
    removed[original.groups[1].units[[0, 3, 5, 9]]] = True
    now = couple(graphs.load(cut(original, make_plan(original, removed), removed)))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((8, 3, 8, 8)).astype(np.float32)} for _ in range(2)]
    readers, moments = observe(now, feeds, ENGINE)
    compared = targets(now.graph)
    answers = list(Walk(now.graph, feeds, ENGINE).rest(NOTHING, [t.value for t in compared], ENGINE))
    gauge = Gauge(now, readers, moments, Distance(compared, answers), ENGINE)
    found = [Curve(g.units, np.arange(g.units.size + 1.0)) for g in now.groups]
    return Survey(original, traced(original, removed, now), found, gauge, feeds)


def test_units_are_those_of_the_original(survey: Survey) -> None:
    left = [set(order.tolist()) for order in survey.orders()]
    gone = set(survey.original.groups[1].units[[0, 3, 5, 9]].tolist())
    assert [len(units) for units in left] == [16, 12, 16]
    assert left[1] == set(survey.original.groups[1].units.tolist()) - gone


def test_it_measures_what_it_is_asked_for(survey: Survey) -> None:
    gone = np.array([0, 4, 0])
    nothing = survey.damages(gone)
    assert all(np.isinf(d[k + 1 :]).all() and not d[: k + 1].any() for d, k in zip(nothing, gone, strict=True))
    survey.measure(np.array([4, 3, 0]))
    known = survey.damages(gone)
    assert known[0].shape == (17,) and np.isfinite(known[0]).all() and known[0][4] > 0
    assert not known[1][:5].any() and known[1][7] > 0 and np.isinf(known[2][1:]).all()
    assert survey.doubtful(np.array([5, 12, 4])).tolist() == [0, 12, 0]  # near enough; far; not measured at all
    survey.measure(np.array([0, 12, 0]))
    assert not survey.doubtful(np.array([5, 12, 4])).any()
    assert survey.damages(gone)[1][16] >= survey.damages(gone)[1][7]
