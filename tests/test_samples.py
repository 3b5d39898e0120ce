"""The data in three parts."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.feeds import Feed, InputSpec, rows
from onnxprune.samples import check, clusters, split, thinned

INPUTS = {"x": InputSpec(np.dtype(np.float32), ("N", 2))}


def feeds(count: int) -> list[Feed]:
    return [{"x": np.full((1, 2), n, dtype=np.float32)} for n in range(count)]


def numbers(part: tuple[Feed, ...]) -> set[int]:
    return {int(n) for feed in part for n in feed["x"][:, 0]}


def test_every_sample_is_in_one_part() -> None:
    found = split(feeds(64), INPUTS, np.arange(64), 64)
    parts = [numbers(p) for p in (found.fit, found.choose, found.aside)]
    assert set.union(*parts) == set(range(64)) and sum(map(len, parts)) == 64
    assert [len(p) for p in parts] == [40, 16, 8]
    assert found.counts == {"seen": 64, "fit": 40, "choose": 16, "aside": 8}


def test_samples_that_are_alike_stay_together() -> None:
    alike = np.arange(60) % 15
    found = split(feeds(60), INPUTS, alike, 60)
    kinds = [{int(alike[n]) for n in numbers(p)} for p in (found.fit, found.choose, found.aside)]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])


@pytest.mark.parametrize("kinds", [1, 2])
def test_no_part_is_empty_where_all_are_alike(kinds: int) -> None:
    found = split(feeds(32), INPUTS, np.arange(32) % kinds, 32)
    assert all(sum(map(rows, p)) for p in (found.fit, found.choose, found.aside))


def test_dear_models_choose_with_less() -> None:
    """What stages see shrinks; what the last fit sees does not."""
    found = split(feeds(256), INPUTS, np.arange(256), 256, macs=2e9)
    cheap = split(feeds(256), INPUTS, np.arange(256), 256, macs=1e8)
    assert len(numbers(found.choose)) == 20 and len(numbers(cheap.choose)) == 48 and not cheap.late
    assert 64 <= len(numbers(found.fit)) <= 128
    assert not numbers(found.fit) & numbers(found.late)
    parts = (found.fit, found.late, found.choose, found.aside)
    assert sum(len(numbers(p)) for p in parts) == 256
    assert len(numbers(split(feeds(64), INPUTS, np.arange(64), 64, macs=1e12).choose)) == 8


def test_near_duplicates_are_found() -> None:
    centres = np.random.default_rng(0).standard_normal((8, 5)) * 10
    which = np.arange(32) % 8
    found = clusters(centres[which] + np.random.default_rng(1).standard_normal((32, 5)) * 0.01)
    assert all(len(set(found[which == k].tolist())) == 1 for k in range(8))
    assert len(set(found.tolist())) == 8


def test_of_many_some_are_kept_evenly() -> None:
    kept, seen = thinned(iter(feeds(1000)), most=64)
    places = [int(f["x"][0, 0]) for f in kept]
    assert seen == 1000 and 32 <= len(kept) <= 64
    assert set(np.diff(places).tolist()) == {places[1] - places[0]}


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="1 sample to calibrate with; give 16 or more"):
        check(feeds(1), 1, "net.onnx")
    with pytest.raises(DataError, match="all samples are the same"):
        check([feeds(1)[0]] * 8, 8, "net.onnx")
