"""Criteria that see data: each against its formula, written out on what ONNX Runtime computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune
from onnxprune import calibrate
from onnxprune.coupling import couple
from onnxprune.criteria.base import score
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.testing import Builder, arrays, close
from tests.contracted import CASES, EXACT, Layer, convolve, of_a, own, power, scores, start, two, values, wide

Array = NDArray[Any]
NAMES = ("flap", "reconstruction", "wanda")
BLIND = ("activation_l2", "activation_mean", "apoz", "entropy", "variance")  # to weights
ALL = (*NAMES, *BLIND, "hrank", "obs", "thinet")


def written_out(name: str, w: Array, x: Array, own: Array) -> float:
    """The worth of these channels for a consumer [outputs, channels, taps] that reads x."""
    centred = x - x.mean(axis=0)
    if name == "wanda":
        return float(sum(np.abs(w[:, c]).sum() * np.linalg.norm(x[:, c]) for c in own) / np.sqrt(len(x) * power(w, x)))
    if name == "flap":
        return float(sum(np.square(w[:, c]).sum() * x[:, c].var() for c in own) / power(w, centred))
    return power(w[:, own], x[:, own]) / power(w, x)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_formula(name: str, case: str) -> None:
    """Summed over consumers, each in units of its own result."""
    net = CASES[case]()
    coupling, found = scores(name, net.model)
    weights = {layer: wide(arrays(net.model)[layer.name].astype(np.float64), layer.groups) for layer in net.layers}
    x = {layer: values(net.model, layer.x) for layer in net.layers}
    units = of_a(coupling)
    assert units.size > 1
    wanted = [sum(written_out(name, weights[n], x[n], own(coupling, n, u)) for n in net.layers) for u in units]
    np.testing.assert_allclose(found[units], wanted, rtol=1e-3)


def of_values(name: str, x: Array) -> Array:
    """[channels], from all values [places, channels]."""
    plain: dict[str, Callable[[], Any]] = {
        "activation_l2": lambda: np.sqrt(np.square(x).mean(axis=0)),
        "activation_mean": lambda: np.abs(x).mean(axis=0),
        "apoz": lambda: (x != 0).mean(axis=0),
        "variance": lambda: x.var(axis=0),
    }
    if name in plain:
        return np.asarray(plain[name]())
    counts = [np.histogram(channel, bins=64)[0] / len(channel) for channel in x.T]
    return np.array([-sum(p * np.log(p) for p in each if p > 0) for each in counts])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BLIND)
def test_the_values_alone(name: str, case: str) -> None:
    """The mean over all channels of the unit that consumers read."""
    net = CASES[case]()
    coupling, found = scores(name, net.model)
    each = [(n, of_values(name, values(net.model, n.x))) for n in net.layers]
    wanted = [np.concatenate([v[own(coupling, n, unit)] for n, v in each]).mean() for unit in of_a(coupling)]
    np.testing.assert_allclose(found[of_a(coupling)], wanted, rtol=1e-5 if name == "apoz" else 0.03)


@pytest.mark.parametrize("name", BLIND)
def test_a_channel_that_is_always_zero_goes_first(name: str) -> None:
    b = Builder()
    weights = b.rng.standard_normal((8, 3, 1, 1)).astype(np.float32)
    weights[3] = 0
    y = b.op("Relu", b.op("Conv", b.input("x", 4, 3, 6, 5), b.const(weights, "a")))
    coupling, found = scores(name, b.model(b.op("Relu", b.conv(y, 6, name="b"))))
    made = found[of_a(coupling)]
    assert made[3] == 0 and (np.delete(made, 3) > 0).all()


@pytest.mark.parametrize("case", EXACT)
def test_reconstruction_is_the_error_of_the_results(case: str) -> None:
    """The same model, the columns of a unit zeroed."""
    net = CASES[case]()
    coupling, found = scores("reconstruction", net.model)
    for unit in of_a(coupling):
        error = 0.0
        for layer in net.layers:
            full = wide(arrays(net.model)[layer.name], layer.groups)
            full[:, own(coupling, layer, unit)] = 0
            y, without = values(net.model, f"{layer.name}.y"), values(net.model, layer.x) @ full[:, :, 0].T
            error += float(np.square(y - without).sum() / np.square(y).sum())
        assert found[unit] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_many_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are not kept, the channels are taken to be uncorrelated."""
    net = two(groups=2)
    monkeypatch.setattr(calibrate, "DENSE", 2)
    coupling, found = scores(name, net.model)
    wanted = np.zeros(coupling.units)
    for layer in net.layers:
        w, x = wide(arrays(net.model)[layer.name].astype(np.float64), layer.groups)[:, :, 0], values(net.model, layer.x)
        squares, mean = np.square(w).sum(axis=0), np.square(x).mean(axis=0)
        each = {
            "flap": squares * x.var(axis=0) / (squares @ x.var(axis=0)),
            "reconstruction": squares * mean / (squares @ mean),
            "wanda": np.abs(w).sum(axis=0) * np.sqrt(mean / (squares @ mean)),
        }[name]
        for unit in of_a(coupling):
            wanted[unit] += each[own(coupling, layer, unit)].sum()
    np.testing.assert_allclose(found[of_a(coupling)], wanted[of_a(coupling)], rtol=1e-3)


@pytest.mark.parametrize("name", (*NAMES, "thinet"))
def test_consumers_of_any_scale_count_alike(name: str) -> None:
    (_, one), (_, other) = (scores(name, two(scale=s).model) for s in (1.0, 1000.0))
    np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_consumer_adds_nothing(name: str) -> None:
    net = two(scale=0.0)
    coupling, found = scores(name, net.model)
    b = net.layers[0]
    w, x = wide(arrays(net.model)["b"].astype(np.float64), 1), values(net.model, b.x)
    wanted = [written_out(name, w, x, own(coupling, b, u)) for u in of_a(coupling)]
    np.testing.assert_allclose(found[of_a(coupling)], wanted, rtol=1e-3)


@pytest.mark.parametrize("name", (*NAMES, "thinet"))
def test_units_of_dead_consumers_alone_are_worth_nothing(name: str) -> None:
    b, y = start(8)
    coupling, found = scores(name, b.model(b.op("Relu", convolve(b, Layer("b", y), 6, scale=0.0))))
    assert (found[of_a(coupling)] == 0).all()


def test_channels_that_do_not_fluctuate() -> None:
    """The rounding of sums in float32 is no variance."""
    model = two().model
    weights = next(t for t in model.graph.initializer if t.name == "a")
    weights.raw_data = np.zeros_like(numpy_helper.to_array(weights)).tobytes()
    _, found = scores("flap", model)
    assert (found < 0.5).all()
    coupling, found = scores("variance", model)
    assert (found[of_a(coupling)] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_units_that_no_consumer_reads(name: str) -> None:
    b, y = start(8)
    read = b.op("Relu", b.conv(y, 6, name="b"))
    y = b.op("Einsum", read, b.weight(6, 5), equation="nchw,co->nhwo")  # no layer: axes change places, too
    coupling, found = scores(name, b.model(y))
    made = next(g.units for g in coupling.groups if any(m.constant == "b" and m.role == "out" for m in g.members))
    assert np.isnan(found[made]).all() and np.isfinite(found[of_a(coupling)]).all()


@pytest.mark.parametrize("name", ALL)
def test_without_data(name: str) -> None:
    with pytest.raises(OptionError, match=f"--criterion {name} looks at activations: give --data"):
        score(couple(load(two().model)), name)
    with pytest.raises(OptionError, match="give --data"):
        onnxprune.prune(two().model, criterion=name, validate=False)


@pytest.mark.parametrize("scope", ["auto", "damage"])
@pytest.mark.parametrize("name", (*ALL, "0.7*wanda+0.3*l1", "apoz+2*hrank"))
def test_end_to_end(name: str, scope: str) -> None:
    b, y = start(16)
    y = b.op("Relu", b.conv(y, 24, name="b"))
    y = b.op("Relu", b.conv(y, 24, group=24))
    model = b.model(close(b, b.op("Flatten", b.op("GlobalAveragePool", y))))
    data = np.random.default_rng(0).standard_normal((32, 3, 6, 5)).astype(np.float32)
    checks = onnxprune.Checks(seconds=0)
    result = onnxprune.prune(model, "macs=0.6", name, data, scope=scope, align=1, threads=1, checks=checks)
    record = result.record
    assert record["parity"]["exact"]
    assert record["macs"]["after"] <= 0.6 * record["macs"]["before"]


@pytest.mark.parametrize("name", ("auto", "l2", *ALL, "hrank+0.5*l1"))
def test_damage_without_repair(name: str) -> None:
    """What repairs would read is then not collected."""
    b, y = start(16)
    model = b.model(close(b, b.op("Relu", b.conv(y, 24, name="b"))))
    data = np.random.default_rng(0).standard_normal((32, 4, 3, 6, 5)).astype(np.float32)
    options = {"scope": "damage", "align": 1, "threads": 1, "recover": "none", "validate": False}
    result = onnxprune.prune(model, "macs=0.6", name, [{"x": x} for x in data], **options)  # type: ignore[arg-type]
    assert result.record["macs"]["after"] <= 0.6 * result.record["macs"]["before"]
