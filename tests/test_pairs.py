"""Passes after each other: what one made is not undone, and what is said of it stays true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import Checks, Pipeline, Result, apply
from onnxprune.errors import OptionError
from onnxprune.passes import get
from onnxprune.testing import Builder, sandwich


def run(*steps: tuple[str, dict[str, Any]], model: Any = None) -> Result:
    model = model or sandwich(lambda b, y: b.op("Relu", y), channels=16)
    return Pipeline([get(name)(**options) for name, options in steps]).run(model, checks=Checks(seconds=0))


CUT = ("prune_channels", {"target": "channels=0.5", "criterion": "l2", "align": 1})


@pytest.mark.parametrize(
    "first", [("sparsify", {"pattern": "2:4"}), ("quantize", {"mode": "dynamic", "ops": ["Conv"]})]
)
@pytest.mark.parametrize("second", [CUT, ("merge", {"target": "channels=0.5", "align": 1})])
def test_what_has_its_form_is_not_cut(first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(OptionError, match=f"^{second[0]}: would undo what {first[0]} did to the weights; put it"):
        run(first, second)


def test_a_pass_that_changes_nothing_leaves_the_plan_to_replay() -> None:
    model = sandwich(lambda b, y: b.op("Relu", y), channels=16)
    result = run(("tidy", {}), CUT, model=model)
    assert result.plan is not None
    assert apply(model, result.plan, checks=Checks(seconds=0)).model == result.model


def test_a_merge_has_no_plan_to_replay() -> None:
    result = run(("merge", {"target": "channels=0.5", "align": 1}))
    assert result.plan is None and result.record["parity"]["exact"]


def test_groups_that_nothing_makes_are_not_merged() -> None:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, name="a"))
    y = b.op("Pad", y, np.array([0, 0, 0, 0, 0, 3, 0, 0]))
    result = run(("merge", {"target": "channels=0.6", "align": 1}), model=b.model(b.conv(y, 4, name="c")))
    assert result.record["parity"]["exact"]
    assert "no weights make its channels" in result.record["merge"]["left"].values()


@pytest.mark.parametrize("name", ["prune_channels", "reconstruct", "merge"])
def test_seeds_are_whole_numbers_from_0(name: str) -> None:
    with pytest.raises(OptionError, match=r"seed =? ?-1: write a whole number from 0"):
        get(name)(seed=-1)


def test_nothing_follows_what_no_other_pass_keeps() -> None:
    with pytest.raises(OptionError, match=r"^sparsify: writes what no pass after it keeps; put it at the end$"):
        run(("sparsify", {"storage": "sparse"}), ("tidy", {}))


def test_a_repair_is_of_the_cut_before_it() -> None:
    with pytest.raises(OptionError, match="there is no cut to recover from"):
        run(CUT, ("reconstruct", {}), ("reconstruct", {}))
    record = run(CUT, ("reconstruct", {}), CUT).record
    assert record["recover"] == "none" and "recovery" not in record
