"""The data in parts that take turns."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import samples
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
    assert [len(fold) for fold in found.folds] == [14] * 4
    assert sorted(i for part in (*found.folds, found.spare) for i in part) == list(range(64))
    assert numbers(found.aside) == set(found.spare)
    assert found.counts == {"seen": 64, "folds": 4, "fit": 56, "aside": 8}


def test_every_fold_takes_its_turn_to_choose() -> None:
    found = split(feeds(64), INPUTS, np.arange(64), 64)
    chosen = [numbers(found.turn(n).choose) for n in range(4)]
    assert set.union(*chosen) == set(range(64)) - set(found.spare)
    for number in range(5):
        turn = found.turn(number)
        assert numbers(turn.choose) == chosen[number % 4]
        assert numbers(turn.fit) == set(range(64)) - set(found.spare) - chosen[number % 4]


def test_the_last_fit_sees_all_that_is_not_put_aside() -> None:
    found = split(feeds(256), INPUTS, np.arange(256), 256, macs=2e9)
    fit, choose = map(numbers, found.last)
    assert not fit & choose and fit | choose == set(range(256)) - set(found.spare)


def test_samples_that_are_alike_stay_together() -> None:
    alike = np.arange(60) % 15
    found = split(feeds(60), INPUTS, alike, 60)
    kinds = [{int(alike[n]) for n in part} for part in (*found.folds, found.spare)]
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == 15


def test_samples_of_a_size_are_fed_together() -> None:
    sizes = [3, 2, 5] * 8
    mixed: list[Feed] = [{"x": np.full((1, size), n, np.float32)} for n, size in enumerate(sizes)]
    found = split(mixed, {"x": InputSpec(np.dtype(np.float32), ("N", "T"))}, np.arange(24), 24)
    assert [feed["x"].shape[1] for feed in found.last.fit] == [2, 3, 5]
    assert numbers(found.last.fit) | numbers(found.last.choose) | set(found.spare) == set(range(24))


def test_large_samples_are_fed_alone_wherever_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "ELEMENTS", 64)
    mixed: list[Feed] = [{"x": np.full((1, 200 if n else 2), n, np.float32)} for n in range(24)]
    found = split(mixed, {"x": InputSpec(np.dtype(np.float32), ("N", "T"))}, np.arange(24), 24)
    assert all(len(feed["x"]) == 1 for feed in found.last.fit if feed["x"].shape[1] == 200)


def test_samples_without_axes() -> None:
    check([{"x": np.asarray(n, np.float32)} for n in range(24)], 24, "net.onnx")


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("count", [5, 32])
def test_no_part_is_empty_where_all_are_alike(kinds: int, count: int) -> None:
    found = split(feeds(count), INPUTS, np.arange(count) % kinds, count)
    assert all(found.folds) and found.spare and len(found.folds) >= 2
    assert all(sum(map(rows, part)) for part in (*found.turn(0), *found.last, found.aside))


def test_dear_models_choose_with_less() -> None:
    """What stages see shrinks; what the last fit sees does not."""
    dear = split(feeds(256), INPUTS, np.arange(256), 256, macs=2e9)
    cheap = split(feeds(256), INPUTS, np.arange(256), 256, macs=1e8)
    assert len(numbers(dear.turn(0).choose)) == 20 and len(numbers(cheap.turn(0).choose)) == 48
    assert len(numbers(dear.turn(0).fit)) == 128 and len(numbers(cheap.turn(0).fit)) == 168
    assert len(numbers(split(feeds(64), INPUTS, np.arange(64), 64, macs=1e12).turn(0).choose)) == 8


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


def test_large_samples_are_kept_as_far_as_there_is_room() -> None:
    kept, seen = thinned(iter(feeds(1000)), room=64 * 8)
    assert seen == 1000 and 32 <= len(kept) <= 64
    assert len(thinned(iter(feeds(1000)), room=1)[0]) >= 5  # a few there are, however large


def test_dear_models_are_fitted_to_less_at_the_end() -> None:
    found = split(feeds(1000), INPUTS, np.arange(1000), 1000, macs=4e9)
    assert len(numbers(found.last.fit)) == 300
    assert len(numbers(split(feeds(1000), INPUTS, np.arange(1000), 1000, macs=1e6).last.fit)) > 800


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="1 sample in --data, which is too few to calibrate with; give 16"):
        check(feeds(1), 1, "net.onnx")
    with pytest.raises(DataError, match="all samples in --data are the same"):
        check([feeds(1)[0]] * 8, 8, "net.onnx")


def test_batches_of_a_fixed_size_that_are_too_few() -> None:
    two = [{"x": np.arange(16, dtype=np.float32).reshape(8, 2) + n} for n in range(2)]
    with pytest.raises(DataError, match="takes 8 samples at a time, and --data have 16: give 24 or more"):
        check(two, 16, "net.onnx")
    check([*two, *two], 32, "net.onnx")


def test_rows_of_a_batch_are_compared() -> None:
    varied = {"x": np.arange(16, dtype=np.float32).reshape(8, 2)}
    check([varied] * 3, 24, "net.onnx")  # equal batches of different samples
    check([{"x": np.ones((1, 2 + n % 3), np.float32)} for n in range(24)], 24, "net.onnx")  # only their sizes differ
    with pytest.raises(DataError, match="are the same"):
        check([{"x": np.ones((8, 2), np.float32)}] * 3, 24, "net.onnx")
