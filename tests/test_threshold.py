"""Targets by score: what scores less goes."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import Checks, Coupling, Limits, allocate, couple, load, parse_target, prune, score, sweep
from onnxprune.errors import OptionError, TargetError
from onnxprune.target import Target
from onnxprune.testing import Builder, close

Array = NDArray[Any]
CHECKS = Checks(seconds=0)


def network() -> ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 6, 5), 16, name="a"))
    y = b.op("Relu", b.conv(y, 24, name="b"))
    return b.model(close(b, b.op("Relu", b.conv(y, 8, name="c"))))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


def inputs() -> Array:
    return np.random.default_rng(0).standard_normal((32, 3, 6, 5)).astype(np.float32)


def kept(removed: NDArray[np.bool_], coupling: Coupling) -> dict[str, int]:
    return {g.name: int((~removed[g.units]).sum()) for g in coupling.groups}


@pytest.mark.parametrize(("text", "amount"), [("threshold=0.5", 0.5), ("threshold=3", 3.0), ("threshold=1e-3", 1e-3)])
def test_it_is_a_target(text: str, amount: float) -> None:
    assert parse_target(text) == Target("threshold", amount)
    assert parse_target(str(parse_target(text))) == parse_target(text)


@pytest.mark.parametrize(
    "text", ["threshold", "threshold=", "threshold=0", "threshold=-1", "threshold=inf", "threshold=5ms"]
)
def test_it_is_none(text: str) -> None:
    with pytest.raises(TargetError, match=r"threshold=X \(the least score that stays\)"):
        parse_target(text)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("normalise", ["mean", "max", "none"])
@pytest.mark.parametrize("criterion", ["l2", "lamp", "l1+random"])
def test_all_that_scores_less_goes(coupling: Coupling, criterion: str, normalise: str, scope: str) -> None:
    scores = score(coupling, criterion, normalise=normalise)
    middle = float(np.median(scores))
    removed = allocate(coupling, scores, Target("threshold", middle), scope)
    least = [g.units[scores[g.units].argmax()] for g in coupling.groups]  # one of each stays
    wanted = scores < middle
    wanted[least] = False
    np.testing.assert_array_equal(removed, wanted)


@pytest.mark.parametrize("align", [1, 4, 8])
def test_widths_stay_aligned(coupling: Coupling, align: int) -> None:
    """Rounded up: nothing goes that scores enough."""
    scores = score(coupling, "random")
    removed = allocate(coupling, scores, Target("threshold", 1.0), limits=Limits(align))
    assert (scores[removed] < 1).all()
    for group in coupling.groups:
        stay = int((~removed[group.units]).sum())
        enough = int((scores[group.units] >= 1).sum())
        assert stay % align == 0 and stay - align < max(enough, 1) <= stay


@pytest.mark.parametrize("align", [1, 8])
def test_a_step_of_each_group_stays(coupling: Coupling, align: int) -> None:
    removed = allocate(coupling, score(coupling), Target("threshold", 1e9), limits=Limits(align))
    assert set(kept(removed, coupling).values()) == {align}


def test_limits_hold(coupling: Coupling) -> None:
    limits = Limits(keep="^a.bias$", ratios=[("^c.bias$", 0.75)])
    found = kept(allocate(coupling, score(coupling), Target("threshold", 1e9), limits=limits), coupling)
    assert found == {"a": 16, "b": 1, "c": 6}


def test_a_group_that_is_not_scored_stays(coupling: Coupling) -> None:
    scores = score(coupling)
    scores[coupling.groups[1].units] = np.nan
    found = kept(allocate(coupling, scores, Target("threshold", 1e9)), coupling)
    assert list(found.values()) == [1, 24, 1]


@pytest.mark.parametrize("scope", ["budget", "damage"])
def test_scopes_that_spend_a_cost(coupling: Coupling, scope: str) -> None:
    message = (
        f"--scope {scope} spends a cost, and --target threshold=0.5 bounds none: choose one of auto, global, local"
    )
    with pytest.raises(OptionError, match=message):
        prune(network(), "threshold=0.5", data=inputs(), scope=scope)
    if scope == "budget":
        with pytest.raises(OptionError, match=message):
            allocate(coupling, score(coupling), Target("threshold", 0.5), scope)


@pytest.mark.parametrize("recover", ["none", "auto"])
@pytest.mark.parametrize("data", [False, True])
def test_nothing_scores_less(data: bool, recover: str) -> None:
    """The same model comes out."""
    model = network()
    given = inputs() if data else None
    result = prune(model, "threshold=1e-9", "l2", given, checks=CHECKS, align=1, threads=1, recover=recover)
    assert isinstance(result.model, ModelProto)
    assert result.model.graph.SerializeToString() == model.graph.SerializeToString()
    assert result.record["passes"][0]["said"] == "nothing: no unit scores less than 1e-09"
    assert result.record["params"]["before"] == result.record["params"]["after"]


@pytest.mark.parametrize("criterion", ["auto", "wanda", "l1", "0.7*wanda+0.3*l1"])
def test_end_to_end(criterion: str) -> None:
    """With data, too, and without a cost that is bounded."""
    result = prune(network(), "threshold=1", criterion, inputs(), checks=CHECKS, align=1, threads=1)
    assert result.record["parity"]["exact"]
    before, after = (sum(g["units"][when] for g in result.record["groups"]) for when in ("before", "after"))
    assert 3 < after < before
    weak = before - after
    assert result.record["passes"][0]["said"] == f"{weak} of {weak} units that score less than 1"


def test_the_others_keep_a_width_whole() -> None:
    result = prune(network(), "threshold=1", "random", checks=CHECKS, align=8, threads=1)
    assert result.record["passes"][0]["said"].endswith(
        "that score less than 1; the others keep a width whole, or were to stay"
    )
    onnx.checker.check_model(result.model)


def test_a_ratio_takes_what_scores_enough() -> None:
    options: dict[str, Any] = {"checks": CHECKS, "align": 1, "threads": 1}
    result = prune(network(), "threshold=1e-9", "l2", ratios=[("^c.bias$", 0.75)], **options)
    assert result.record["passes"][0]["said"] == "nothing of 0 units that score less than 1e-09; 2 more by a ratio"
    result = prune(network(), "threshold=1e9", "l2", keep=".", **options)
    assert result.record["passes"][0]["said"].startswith("nothing of 48 units that score less than 1e+09; the others")


def test_a_sweep_bounds_costs() -> None:
    with pytest.raises(OptionError, match="--cost threshold: choose one of channels, params, macs, latency"):
        sweep(network(), [0.5], cost="threshold")
