"""Greedy selection: each step against the error of the results, computed by ONNX Runtime with columns zeroed."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import calibrate
from onnxprune.problem import Limits, problem_of
from onnxprune.testing import Builder, arrays
from tests.contracted import CASES, EXACT, Layer, Net, convolve, of_a, own, power, scores, start, two, values, wide

Array = NDArray[Any]


def missing(net: Net, channels: dict[Layer, Array]) -> float:
    """The error of the results without these channels, summed over consumers, each in units of its own power."""
    found = 0.0
    for layer in net.layers:
        w = wide(arrays(net.model)[layer.name].astype(np.float64), layer.groups)
        x = values(net.model, layer.x)
        found += power(w[:, channels[layer]], x[:, channels[layer]]) / power(w, x)
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_step_takes_what_adds_least(case: str) -> None:
    """Written out: the error with each of the units that are left gone, too, of which the least is taken."""
    net = CASES[case]()
    coupling, found = scores("thinet", net.model)
    left, gone, error, most = of_a(coupling).tolist(), list[int](), 0.0, 0.0
    channels = {unit: {layer: own(coupling, layer, unit) for layer in net.layers} for unit in left}

    def with_(unit: int) -> float:
        together = [channels[u] for u in (*gone, unit)]
        return missing(net, {layer: np.concatenate([c[layer] for c in together]) for layer in net.layers})

    order = sorted(left, key=lambda u: found[u])
    for unit in order:
        errors = {u: with_(u) for u in left}
        assert errors[unit] <= min(errors.values()) * 1.001 + 1e-6
        most = max(most, errors[unit] - error)
        assert found[unit] == pytest.approx(most, rel=2e-3, abs=1e-6)
        error = errors[unit]
        left.remove(unit)
        gone.append(unit)


def twins() -> ModelProto:
    """Channels 0 and 1 are the same, and what reads them has opposite weights: together they do nothing."""
    b = Builder()
    weights = b.rng.standard_normal((6, 3, 1, 1)).astype(np.float32)
    weights[1] = weights[0] = 4 * weights[0]
    y = b.op("Relu", b.op("Conv", b.input("x", 4, 3, 6, 5), b.const(weights, "a")), name="r")
    reader = b.rng.standard_normal((5, 6, 1, 1)).astype(np.float32)
    reader[:, 1] = -reader[:, 0]
    return b.model(b.op("Relu", b.op("Conv", y, b.const(reader, "b"), name="b.y")))


def test_channels_that_cancel_go_together() -> None:
    """One at a time they look dear; as a pair they are free."""
    coupling, greedy = scores("thinet", twins())
    _, alone = scores("reconstruction", twins())
    pair, units = of_a(coupling)[:2], of_a(coupling)
    order = units[np.argsort(greedy[units], kind="stable")].tolist()
    first = order.index(pair[0]), order.index(pair[1])
    assert abs(first[0] - first[1]) == 1
    assert alone[pair].min() > np.median(alone[units])


def test_ties_keep_the_order_of_the_sweep() -> None:
    """After the first of the twins the second one adds less than nothing: it is next, not where its index puts it."""
    coupling, greedy = scores("thinet", twins())
    problem = problem_of(coupling, greedy, Limits())
    (group,) = {int(coupling.group_of[u]) for u in of_a(coupling)}
    assert np.unique(greedy[coupling.groups[group].units]).size == coupling.groups[group].units.size
    assert (np.diff(greedy[problem.order[group]]) > 0).all()


@pytest.mark.parametrize("case", EXACT)
def test_the_first_to_go_is_what_is_missed_least_alone(case: str) -> None:
    net = CASES[case]()
    coupling, greedy = scores("thinet", net.model)
    _, alone = scores("reconstruction", net.model)
    units = of_a(coupling)
    assert units[greedy[units].argmin()] == units[alone[units].argmin()]
    assert greedy[units].min() == pytest.approx(alone[units].min())


def test_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are not kept, units do not interact: what they add alone, in order."""
    net = two(groups=2)
    monkeypatch.setattr(calibrate, "DENSE", 2)
    coupling, greedy = scores("thinet", net.model)
    _, alone = scores("reconstruction", net.model)
    np.testing.assert_allclose(greedy[of_a(coupling)], alone[of_a(coupling)], rtol=1e-6)


def test_two_groups_in_one_consumer() -> None:
    """Channels of another group stay while those of one go."""
    b, y = start(6)
    z = b.op("Relu", b.conv(b.graph.input[0].name, 4, name="c"))
    both = b.op("Concat", y, z, axis=1, name="both")
    model = b.model(b.op("Relu", convolve(b, Layer("b", both), 5)))
    coupling, greedy = scores("thinet", model)
    _, alone = scores("reconstruction", model)
    assert len(coupling.groups) == 2
    for group in coupling.groups:
        assert greedy[group.units].min() == pytest.approx(alone[group.units].min())
