"""What counts as lost."""

from __future__ import annotations

from math import inf, isnan, nan
from typing import Any

import pytest

from onnxprune.gates import failed_gate, loss
from onnxprune.validate import Checks

KEPT: dict[str, Any] = {"fidelity": {"top1_agreement": 0.75, "cosine": 0.9}}


def metric(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    return KEPT | {"metric": {"name": "m.py:f", "before": before, "after": after}}


def test_a_metric_comes_before_fidelity() -> None:
    assert loss(KEPT) == ("top-1 answers that change", 0.25)
    assert loss({"fidelity": {"top1_agreement": None, "cosine": 0.5}}) == ("1 - cosine", 0.5)
    assert loss(metric({"a": 0.5}, {"a": 0.25})) == ("the fall of a", 0.25)


def test_of_several_numbers_the_one_counts_that_falls_most() -> None:
    assert loss(metric({"a": 0.5, "b": 30.0, "c": 1.0}, {"a": 0.9, "b": 28.0, "c": 0.0})) == ("the fall of b", 2.0)
    assert loss(metric({"a": inf, "b": 1.0}, {"a": inf, "b": 1.5})) == ("the fall of a", 0.0)


@pytest.mark.parametrize("after", [{"b": 0.0}, {"a": nan, "b": 0.0}])
def test_what_cannot_be_compared_passes_no_gate(after: dict[str, float]) -> None:
    record = metric({"a": 1.0, "b": 1.0}, after)
    assert isnan(loss(record).amount)
    said = failed_gate(record, Checks(max_drop=100))
    assert said is not None and said.startswith("the fall of a is nan, more than --max-drop 100")


def test_a_rise_passes() -> None:
    assert failed_gate(metric({"a": 0.5}, {"a": 0.6}), Checks(max_drop=0)) is None
    said = failed_gate(metric({"a": 0.5}, {"a": 0.4}), Checks(max_drop=0.05))
    assert said == "the fall of a is 0.1000, more than --max-drop 0.05; nothing was written"
