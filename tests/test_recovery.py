"""Repair from unlabelled inputs, end to end."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import Checks, Result, apply, prune
from onnxprune.errors import DataError, OptionError
from onnxprune.patch import Patch
from onnxprune.recovery import recover
from onnxprune.runtime import run, session
from onnxprune.testing import Builder
from onnxprune.words import recovery
from tests.redundant import redundant

Array = NDArray[Any]


def network() -> ModelProto:
    """Wide layers of few independent channels, as training leaves them; one feeds a residual sum."""
    b = Builder(seed=1)

    y = b.op("Relu", redundant(b, b.input("x", "N", 3, 8, 8), 16, "stem"))
    z = b.op("Relu", redundant(b, y, 24, "wide"))
    y = b.op("Relu", b.op("Add", y, redundant(b, z, 16, "back")))
    y = b.op("Relu", redundant(b, y, 16, "top"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Softmax", b.gemm(y, 5, "head"), axis=1))


def inputs(count: int = 64, seed: int = 0) -> dict[str, Array]:
    """Samples that differ by more than noise: each has its own colour."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 3, 8, 8)) + 2 * rng.standard_normal((count, 3, 1, 1))
    return {"x": x.astype(np.float32)}


def pruned(recover: str = "auto", data: dict[str, Array] | None = None, **options: Any) -> Result:
    data = data or inputs()
    return prune(network(), "macs=0.6", data=data, validate=False, recover=recover, threads=1, align=2, **options)


@pytest.fixture(scope="module")
def recovered() -> Result:
    return pruned()


def logits(model: ModelProto, feed: dict[str, Array]) -> Array:
    (made,) = run(session(model, threads=1), feed).values()
    log = np.log(made.astype(np.float64) + 1e-30)
    return np.asarray(log - log.mean(axis=1, keepdims=True))


def off(model: ModelProto) -> float:
    """How far a model is from the original on inputs that nothing was made with."""
    feed = inputs(seed=9)
    whole = logits(network(), feed)
    return float(np.square(logits(model, feed) - whole).sum() / np.square(whole).sum())


def test_it_brings_the_answers_back(recovered: Result) -> None:
    none = pruned("none")
    assert none.record["recover"] == "none" and "recovery" not in none.record
    assert off(recovered.model) < 0.7 * off(none.model)


def test_the_record(recovered: Result) -> None:
    record = recovered.record
    assert record["recover"] == "full"
    found = record["recovery"]
    assert found["distance"]["kind"] == "logits"
    assert found["distance"]["after"] < found["distance"]["before"]
    counts = found["samples"]
    assert counts["seen"] == 64 == counts["fit"] + counts["aside"]
    assert found["layers"]
    for layer in found["layers"]:
        assert layer["method"] in ("none", "bias", "channel", "full")
        assert found["rescaled"] or layer["after"] <= layer["before"]
        assert layer["method"] == "none" or 0 <= layer["fit"] < 1
    stages = record["stages"]
    assert stages and stages[0]["cost"] == 1.0 and stages[0]["distance"] == 0.0
    assert {"load", "data", "recovery"} <= record["seconds"].keys()


def test_it_repeats_to_the_digit(recovered: Result) -> None:
    again = pruned()
    assert again.model.SerializeToString() == recovered.model.SerializeToString()
    assert again.record["recovery"] == recovered.record["recovery"]


@pytest.mark.parametrize("method", ["bias", "channel"])
def test_less_can_be_asked_for(method: str) -> None:
    record = pruned(method, criterion="l2").record
    allowed = {"bias": {"none", "bias"}, "channel": {"none", "bias", "channel"}}[method]
    assert {layer["method"] for layer in record["recovery"]["layers"]} <= allowed


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="1 sample in --data"):
        pruned(data=inputs(1))
    with pytest.raises(DataError, match="4 samples in --data"):
        pruned(data=inputs(4))


def test_samples_that_are_all_the_same() -> None:
    with pytest.raises(DataError, match="all samples in --data are the same"):
        pruned(data={"x": np.ones((16, 3, 8, 8), np.float32)})


def test_nothing_to_recover_with() -> None:
    with pytest.raises(OptionError, match="--recover full fits weights to inputs"):
        prune(network(), recover="full")


def test_no_such_method() -> None:
    with pytest.raises(OptionError, match="--recover other: choose one of"):
        pruned("other")


def test_a_replayed_plan_is_repaired_where_that_is_asked_for(recovered: Result) -> None:
    assert recovered.plan is not None
    again = apply(network(), recovered.plan, data=inputs(), validate=False, threads=1, recover="auto")
    assert again.model == recovered.model and again.record["recover"] == "full"
    bare = apply(network(), recovered.plan, data=inputs(), validate=False, threads=1)
    assert bare.record["recover"] == "none" and off(bare.model) > off(again.model)
    with pytest.raises(OptionError, match="--recover full fits weights to inputs"):
        apply(network(), recovered.plan, recover="full")


def test_what_comes_after_is_corrected_too() -> None:
    """A layer that lost nothing, but reads what has changed, gets another bias where that is nearer."""
    options: dict[str, Any] = {"criterion": "l2", "keep": "^(stem|top)$", "validate": False, "threads": 1, "align": 2}
    result = prune(network(), "macs=0.8", data=inputs(), recover="bias", **options)
    layers = result.record["recovery"]["layers"]
    assert [layer["method"] for layer in layers] == ["bias"] * len(layers) and len(layers) > 1
    assert result.record["recovery"]["rescaled"] or all(layer["after"] < layer["before"] for layer in layers)


@pytest.mark.parametrize("count", [5, 9])
def test_few_samples_are_used_as_well_as_they_can(count: int) -> None:
    found = pruned(data=inputs(count)).record["recovery"]["distance"]
    assert found["before"] != found["after"]


def test_biases_alone_leave_weights_as_they_are() -> None:
    plan = pruned("none").plan
    assert plan is not None
    none, bias = (apply(network(), plan, data=inputs(), validate=False, recover=r).model for r in ("none", "bias"))
    before, after = ({t.name: t.raw_data for t in m.graph.initializer if len(t.dims) > 1} for m in (none, bias))
    assert before == after
    assert none != bias


def test_fidelity_is_judged_on_what_was_put_aside() -> None:
    result = prune(network(), "macs=0.6", data=inputs(), threads=1, align=2, checks=Checks(seconds=0))
    assert result.record["inputs"]["aside"] and result.record["fidelity"]["samples"] == 8


def spoil(monkeypatch: pytest.MonkeyPatch, factors: dict[str, float]) -> None:
    """The last fits of some methods come out with all weights so many times as large."""

    def spoiled(pair: Any, fit: Any, choose: Any, method: str, *more: Any, **options: Any) -> Any:
        patch, layers = recover(pair, fit, choose, method, *more, **options)
        factor = factors.get(method, 1.0) if options.get("everything") else 1.0
        return Patch({name: factor * value for name, value in patch.weights.items()}, patch.inputs), layers

    monkeypatch.setattr("onnxprune.passes.reconstruct.recover", spoiled)


def test_a_method_that_makes_it_worse_gives_way_to_one_that_changes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate holds for each of them, and the record and the table say which were refused."""
    spoil(monkeypatch, {"full": -20.0})
    result = pruned()
    found = result.record["recovery"]
    assert result.record["recover"] == "channel" and list(found["refused"]) == ["full"]
    assert found["distance"]["after"] < found["distance"]["before"] <= found["refused"]["full"]
    assert "; full would have made the answers worse" in (recovery(result.record) or "")


def test_where_all_methods_make_it_worse_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {"full": -20.0, "channel": -20.0, "bias": -20.0})
    result = pruned()
    found = result.record["recovery"]
    assert result.record["recover"] == "none" and tuple(found["refused"]) == ("full", "channel", "bias")
    assert found["distance"]["after"] == found["refused"]["bias"] >= found["distance"]["before"]
    assert "none: it would have made the answers worse" in (recovery(result.record) or "")
