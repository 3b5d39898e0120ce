"""Feeds that are joined along the batch, where it is one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxprune.feeds import Feed, batched, rows

F32 = np.dtype(np.float32)
Specs = dict[str, tuple[Any, Any]]


def feeds(*shapes: tuple[int, ...]) -> list[Feed]:
    return [{"x": np.full(shape, index, np.float32)} for index, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("shapes", "size", "expected"),
    [
        ([(1, 3)] * 5, 2, [2, 2, 1]),
        ([(1, 3)] * 5, 1, [1] * 5),
        ([(2, 3)] * 3, 5, [4, 2]),
        ([(4, 3), (4, 3)], 3, [4, 4]),
        ([(1, 3), (1, 4), (1, 4), (1, 3)], 8, [1, 2, 1]),
        ([], 8, []),
    ],
)
def test_feeds_of_one_shape_that_follow_each_other(
    shapes: list[tuple[int, ...]], size: int, expected: list[int]
) -> None:
    given = feeds(*shapes)
    made = list(batched(given, {"x": (F32, ("N", "W"))}, size))
    assert [rows(feed) for feed in made] == expected
    assert [float(n) for f in made for n in f["x"][:, 0]] == [float(n) for f in given for n in f["x"][:, 0]]


@pytest.mark.parametrize(
    ("inputs", "feed"),
    [
        ({"x": (F32, (1, 3))}, {"x": (1, 3)}),
        ({"x": (F32, ("N", 3)), "scale": (F32, (1,))}, {"x": (1, 3), "scale": (1,)}),
        ({"x": (F32, ("N", 3)), "t": (F32, ())}, {"x": (1, 3), "t": ()}),
        ({"x": (F32, None)}, {"x": (1, 3)}),
        ({"x": (F32, ("sequence_length",))}, {"x": (1,)}),
        ({"x": (F32, ("T", "batch_size", 5))}, {"x": (1, 1, 5)}),
        ({"x": (F32, ("N", 3)), "boxes": (F32, ("B", 4))}, {"x": (1, 3), "boxes": (6, 4)}),
    ],
)
def test_an_axis_that_is_no_batch_stays(inputs: Specs, feed: dict[str, tuple[int, ...]]) -> None:
    given = [{name: np.zeros(shape, np.float32) for name, shape in feed.items()} for _ in range(3)]
    assert [id(f) for f in batched(given, inputs, 8)] == [id(f) for f in given]


def test_all_inputs_are_joined_and_no_feed_is_taken_too_early() -> None:
    taken = []

    def source() -> Iterator[Feed]:
        for index in range(4):
            taken.append(index)
            yield {"a": np.full((1, 2), index), "b": np.full((1,), index)}

    first = next(batched(source(), {"a": (np.int64, ("N", 2)), "b": (np.int64, ("N",))}, 2))
    assert taken == [0, 1]
    assert first["b"].tolist() == [0, 1] and first["a"].tolist() == [[0, 0], [1, 1]]
