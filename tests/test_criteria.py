"""Scores of units: each criterion against its formula, written out."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.coupling import couple
from onnxprune.criteria.base import CRITERIA, Context, comparable, dequantized, score
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.testing import Builder, arrays, close, sandwich

Array = NDArray[Any]


def network() -> ModelProto:
    """Conv a (8), BatchNorm, conv b (6), a Gemm."""
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 1, 3, 8, 8), 8, name="a"), "bn")
    y = b.conv(b.op("Relu", y), 6, name="b", bias=False)
    return b.model(close(b, b.op("Flatten", b.op("GlobalAveragePool", y)), name="head"))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in arrays(network()).items()}


def raw(coupling: Coupling, criterion: str, combine: str = "mean", seed: int = 0) -> dict[str, Array]:
    """Group -> its units' scores, as the criterion makes them."""
    scores = CRITERIA.get(criterion)(Context(coupling, combine, seed))
    return {g.name: scores[g.units] for g in coupling.groups}


def norms(w: Array, axis: int, order: int) -> Array:
    return np.asarray(np.linalg.norm(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1), order, axis=1))


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize(("combine", "join"), [("mean", np.mean), ("sum", np.sum), ("max", np.max)])
def test_norms(
    coupling: Coupling,
    weights: dict[str, Array],
    criterion: str,
    order: int,
    combine: str,
    join: Callable[..., Array],
) -> None:
    """What makes a channel and what reads it, put together."""
    found = raw(coupling, criterion, combine)
    wanted_a = join([norms(weights["a"], 0, order), norms(weights["b"], 1, order)], axis=0)
    wanted_b = join([norms(weights["b"], 0, order), norms(weights["head"], 1, order)], axis=0)
    np.testing.assert_allclose(found["a"], wanted_a, rtol=1e-5)
    np.testing.assert_allclose(found["b"], wanted_b, rtol=1e-5)


def test_batch_norm_scales(coupling: Coupling, weights: dict[str, Array]) -> None:
    found = raw(coupling, "bn")
    np.testing.assert_allclose(found["a"], np.abs(weights["bn.scale"]), rtol=1e-6)
    assert np.isnan(found["b"]).all()


def test_batch_norm_scales_without_any() -> None:
    model = couple(load(sandwich(lambda b, y: b.op("Relu", y))))
    with pytest.raises(OptionError, match="no BatchNormalization left to read"):
        score(model, "bn")


def test_lamp(coupling: Coupling) -> None:
    """Squared norm over the sum of all that are not smaller."""
    squares = {}
    w = arrays(network())
    squares["b"] = (norms(w["b"], 0, 2) ** 2 + norms(w["head"], 1, 2) ** 2) / 2
    found = raw(coupling, "lamp")["b"]
    wanted = [s / squares["b"][squares["b"] >= s].sum() for s in squares["b"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.max() == pytest.approx(1)


def test_fpgm(coupling: Coupling, weights: dict[str, Array]) -> None:
    """The distance to all other filters."""
    rows = weights["b"].reshape(6, -1)
    wanted = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(axis=1)
    np.testing.assert_allclose(raw(coupling, "fpgm")["b"], wanted, rtol=1e-5)


def test_random_is_reproducible(coupling: Coupling) -> None:
    first, again, other = (raw(coupling, "random", seed=seed)["a"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).all()


@pytest.mark.parametrize("criterion", [name for name in CRITERIA.names() if name not in ("random", "bn")])
def test_a_larger_filter_is_more_important(criterion: str) -> None:
    """Ten times as large in everything that belongs to it (for fpgm: further away from the rest)."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Relu", y)

    model = sandwich(middle)
    for name, axis in (("w1", 0), ("w2", 1)):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = arrays(model)[name].copy()
        np.moveaxis(array, axis, 0)[5] *= 10
        tensor.raw_data = array.tobytes()
    coupling = couple(load(model))
    if criterion in needs_data():
        pytest.skip("needs data")
    assert score(coupling, criterion).argmax() == 5


def needs_data() -> set[str]:
    """Criteria that read activations."""
    return {name for name in CRITERIA.names() if name not in {"bn", "fpgm", "l1", "l2", "lamp", "random"}}


def test_quantised_weights_are_read_as_floats() -> None:
    b = Builder()
    values = b.rng.integers(-128, 128, (8, 3, 1, 1)).astype(np.int8)
    scale, zero = np.linspace(0.01, 0.1, 8, dtype=np.float32), np.arange(8, dtype=np.int8)
    w = b.op("DequantizeLinear", b.const(values, "w"), b.const(scale), b.const(zero), axis=0)
    y = b.op("Conv", b.input("x", 1, 3, 8, 8), w)
    coupling = couple(load(b.model(close(b, y))))
    wanted = (values.astype(np.float32) - zero.reshape(8, 1, 1, 1)) * scale.reshape(8, 1, 1, 1)
    np.testing.assert_allclose(dequantized(coupling, "w"), wanted, rtol=1e-6)
    read = CRITERIA.get("l2")(Context(coupling, "max"))
    assert (read >= norms(wanted, 0, 2) - 1e-5).all()


def test_half_precision_does_not_overflow() -> None:
    b = Builder()
    w = b.const(np.full((8, 3), 60000, np.float16), "w")
    y = b.op("Gemm", b.input("x", 5, 3), b.op("Cast", w, to=1), transB=1)
    coupling = couple(load(b.model(close(b, y))))
    assert np.isfinite(score(coupling, "l2")).all()


def test_weights_that_are_stored_transposed() -> None:
    """The same network, its weight behind a Transpose: the same scores."""
    values = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    found = []
    for stored in (values, values.T.copy()):
        b = Builder(seed=1)
        w = b.const(stored, "w")
        w = w if stored is values else b.op("Transpose", w)
        y = b.op("Gemm", b.input("x", 5, 3), w, transB=1)
        found.append(score(couple(load(b.model(close(b, y))))))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_comparable() -> None:
    scores, groups = np.array([1.0, 3.0, 10.0, 30.0]), np.array([0, 0, 1, 1], dtype=np.int32)
    assert comparable(scores, groups, "mean").tolist() == [0.5, 1.5, 0.5, 1.5]
    assert comparable(scores, groups, "max").tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1])
    assert comparable(scores, groups, "none") is scores


def test_comparable_leaves_holes_and_zeros_alone() -> None:
    scores, groups = np.array([np.nan, 2.0, 0.0, 0.0]), np.array([0, 0, 1, 1], dtype=np.int32)
    found = comparable(scores, groups)
    assert np.isnan(found[0]) and found[1:].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"combine": "median"}, "--combine median"),
        ({"normalise": "sum"}, "--normalise sum"),
    ],
)
def test_options_that_do_not_exist(coupling: Coupling, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        score(coupling, **options)
    assert message in str(error.value)


def test_a_model_without_units() -> None:
    b = Builder()
    coupling = couple(load(b.model(b.conv(b.input("x", 1, 3, 8, 8), 4))))
    assert score(coupling).size == 0


def test_what_a_criterion_needs_is_known_before_any_other_look_up() -> None:
    code = "from onnxprune.criteria.base import sight_of; print(sight_of('obs') is None, sight_of('l2') is None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
