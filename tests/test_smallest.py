"""The smallest model that is good enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Checks
from onnxprune.errors import GateError, MetricError, OptionError, OutputError, TargetError
from onnxprune.metric import Run
from onnxprune.runtime import run as infer
from onnxprune.runtime import session
from onnxprune.smallest import TRIALS, smallest
from onnxprune.target import automatic, parse_target
from tests.trained import pictures, trained

FAST: dict[str, Any] = {"align": 1, "threads": 1}


def attempt(drop: Callable[[float], float], bound: float) -> Callable[[float], tuple[str, Any]]:
    def make(share: float) -> tuple[str, Any]:
        record = {"fidelity": {"top1_agreement": 1 - drop(share), "cosine": 1.0}}
        if drop(share) > bound:
            raise GateError("too much", record)
        return f"{share:g}", record

    return make


def test_the_share_is_found_to_one_part_in_64() -> None:
    said: list[str] = []
    found = smallest("m", "macs", 0.3, attempt(lambda share: 1 - share, 0.3), said.append)
    assert 0.7 <= found.share < 0.7 + 1 / 64 and found.best == f"{found.share:g}"
    assert len(found.trials) == TRIALS == len(said) and said[0] == "trial 1/6: macs=0.5"
    assert [t.passed for t in found.trials if t.share < found.share] == [False] * 3
    record = found.to_dict("macs", 0.3)
    assert record["monotone"] and record["share"] == found.share and record["what"] == "top-1 answers that change"


def test_what_contradicts_the_order_is_said() -> None:
    def odd(share: float) -> float:
        return 0.1 if share < 0.3 else 0.2 - share / 10

    found = smallest("m", "macs", 0.5, attempt(odd, 0.5), lambda text: None)
    assert not found.to_dict("macs", 0.5)["monotone"] and found.share == 1 / 64


def test_nothing_passes() -> None:
    with pytest.raises(
        GateError, match=r"^m: not even macs=0\.984 keeps top-1 .* within --max-drop 0 \(0\.5000\)"
    ) as e:
        smallest("m", "macs", 0.0, attempt(lambda share: 0.5, 0.0), lambda text: None)
    assert len(e.value.record["search"]["trials"]) == TRIALS and e.value.record["fidelity"]


def test_what_cannot_be_made_is_too_small() -> None:
    def make(share: float) -> tuple[str, Any]:
        if share < 0.4:
            raise TargetError("the least that can remain is 0.4")
        return attempt(lambda s: 0.0, 0.1)(share)

    found = smallest("m", "macs", 0.1, make, lambda text: None)
    assert 0.4 <= found.share < 0.4 + 1 / 64
    assert {t.error for t in found.trials if not t.passed} == {"the least that can remain is 0.4"}
    with pytest.raises(TargetError, match="nothing can be cut"):
        smallest("m", "macs", 0.1, lambda share: (_ for _ in ()).throw(TargetError("nothing can be cut")), print)


def test_targets() -> None:
    assert automatic("macs=auto") == "macs" and automatic("latency=auto") == "latency"
    assert automatic("size=auto") is automatic("macs=0.5") is automatic("lossless") is automatic(3) is None
    with pytest.raises(TargetError, match=r"searched for by `prune`, with --max-drop"):
        parse_target("macs=auto")


(WANTED,) = infer(session(trained()), pictures(16, seed=9)).values()


def closeness(run: Run) -> float:
    """In points: how near the answers are to what the original answers."""
    answers = run(pictures(16, seed=9))[run.outputs[0]]
    return float(100 - 100 * np.abs(answers - WANTED).mean() / np.abs(WANTED).mean())


def test_the_smallest_that_the_metric_allows_is_written(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    checks = Checks(seconds=0, max_drop=10.0)
    options: dict[str, Any] = {"data": pictures(64), "criterion": "wanda", "metric": closeness, **FAST}
    result = onnxprune.prune(trained(), "macs=auto", out=out, checks=checks, **options)
    record = result.record
    search = record["search"]
    passed = [t for t in search["trials"] if t["passed"]]
    assert search["what"] == "the fall of closeness" and search["share"] == min(t["share"] for t in passed) < 1
    assert record["metric"]["before"]["closeness"] - record["metric"]["after"]["closeness"] <= 10
    assert record["macs"]["after"] <= search["share"] * record["macs"]["before"]
    assert record["parity"]["exact"] and len(record["passes"]) == 2 and record["seconds"]["search"] > 0
    assert onnx.load(out) == result.model and [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    direct = onnxprune.prune(trained(), f"macs={search['share']}", checks=checks, **options)
    assert direct.plan is not None and result.plan is not None
    assert direct.plan.to_dict() == result.plan.to_dict()


def test_fidelity_decides_where_there_is_no_metric() -> None:
    checks = Checks(seconds=0, max_drop=0.5)
    record = onnxprune.prune(trained(), "channels=auto", criterion="l2", recover="none", checks=checks, **FAST).record
    assert record["search"]["of"] == "channels" and "metric" not in record
    assert record["fidelity"]["top1_agreement"] >= 0.5


def test_a_big_model_goes_from_file_to_file(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(trained(), model, save_as_external_data=True, size_threshold=0)
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    onnxprune.prune(
        model, "params=auto", criterion="l2", recover="none", out=out, checks=Checks(0, max_drop=0.6), **FAST
    )
    onnx.checker.check_model(str(out))
    assert onnx.load(out).graph.initializer
    assert {p.name for p in out.parent.iterdir()} <= {"small.onnx", "small.onnx.data"}


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--target macs=auto, .* needs --max-drop"):
        onnxprune.prune(trained(), "macs=auto", **FAST)
    with pytest.raises(OptionError, match=r"--target macs=auto, .* drop --no-validate"):
        onnxprune.prune(trained(), "macs=auto", validate=False, **FAST)
    path = tmp_path / "net.onnx"
    onnx.save(trained(), path)
    with pytest.raises(OutputError, match="would replace"):
        onnxprune.prune(path, "macs=auto", out=path, checks=Checks(max_drop=0.1), **FAST)


def test_a_metric_that_fails_ends_the_search() -> None:
    calls: list[int] = []

    def fragile(run: Run) -> float:
        calls.append(1)
        return 1.0 if len(calls) < 2 else float("nan")

    with pytest.raises(MetricError, match="returned NaN on the pruned model"):
        onnxprune.prune(
            trained(),
            "macs=auto",
            metric=fragile,
            checks=Checks(0, max_drop=0.1),
            criterion="l2",
            recover="none",
            **FAST,
        )
    assert len(calls) == 2
