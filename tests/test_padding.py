"""Samples that end where a mask says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.feeds import Feed, InputSpec
from onnxprune.padding import without_padding
from onnxprune.testing import Builder
from tests.stacks import attention, linear, norm

INTS = np.dtype(np.int64)
INPUTS = {"ids": InputSpec(INTS, ("N", "T")), "attention_mask": InputSpec(INTS, ("N", "T"))}


def padded(*lengths: int, size: int = 8) -> Feed:
    mask = (np.arange(size) < np.array(lengths)[:, None]).astype(np.int64)
    return {"ids": mask * (1 + np.arange(size)), "attention_mask": mask}


def test_places_that_no_sample_shows_go() -> None:
    found = without_padding(padded(3, 5), INPUTS)
    assert found["ids"].tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert found["attention_mask"].shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "inputs"),
    [
        ({}, {"ids": InputSpec(INTS, ("N", 8)), "attention_mask": InputSpec(INTS, ("N", 8))}),
        ({}, {"ids": InputSpec(INTS, ("N", "L")), "attention_mask": InputSpec(INTS, ("N", "T"))}),
        ({}, {"ids": InputSpec(INTS, ("N", None)), "attention_mask": InputSpec(INTS, ("N", None))}),
        ({"attention_mask": np.zeros((2, 8), np.int64)}, INPUTS),
        ({"attention_mask": 7 * padded(3, 5)["attention_mask"]}, INPUTS),
        ({"attention_mask": padded(3, 5)["attention_mask"].astype(np.float32)}, INPUTS),
        ({}, {"ids": InputSpec(INTS, None), "attention_mask": InputSpec(INTS, ("N", "T"))}),
    ],
)
def test_where_nothing_tells_nothing_goes(change: dict[str, NDArray[Any]], inputs: dict[str, InputSpec]) -> None:
    """A fixed length; another axis of that length; no name; nothing shown; positions; weights; a shape nobody knows."""
    feed = padded(3, 5) | change
    assert all(without_padding(feed, inputs)[name] is value for name, value in feed.items())


def test_segments_are_no_mask() -> None:
    inputs = {"ids": INPUTS["ids"], "token_type_ids": INPUTS["ids"]}
    feed: Feed = {"ids": np.ones((1, 8), np.int64), "token_type_ids": padded(3)["attention_mask"]}
    assert all(without_padding(feed, inputs)[name] is value for name, value in feed.items())


def test_what_one_of_several_masks_shows_stays() -> None:
    """Attention that is global from the first place, local from all."""
    inputs = {"global_attention_mask": INPUTS["ids"], **INPUTS}
    feed = {"global_attention_mask": padded(1, 1)["attention_mask"], **padded(3, 5)}
    assert without_padding(feed, inputs)["ids"].shape == (2, 5)


def test_every_sequence_ends_by_its_own_mask() -> None:
    inputs = {**INPUTS, "decoder_mask": InputSpec(INTS, ("N", "S")), "target": InputSpec(INTS, ("N", "S"))}
    other = padded(2, 1, size=6)
    found = without_padding({**padded(3, 5), "decoder_mask": other["attention_mask"], "target": other["ids"]}, inputs)
    assert [found[n].shape[1] for n in inputs] == [5, 5, 2, 2]


def test_padding_changes_nothing() -> None:
    """The same widths and weights as for sentences that were never padded."""
    b = Builder()
    hidden = b.op("Cast", b.input("mask", "N", "T", dtype=np.int64), to=1)
    hidden = b.op("Unsqueeze", b.op("Mul", b.op("Sub", hidden, np.float32(1)), np.float32(1e4)), np.array([1]))
    x = linear(b, b.input("x", "N", "T", 6), 16, "embed")
    x = norm(b, b.op("Add", x, attention(b, x, 16, "attn", hidden)), "norm")
    x = b.op("Add", x, linear(b, b.op("Relu", linear(b, x, 64, "up")), 16, "down"))
    model, rng = b.model(norm(b, x, "last")), np.random.default_rng(0)
    short: list[Feed] = []
    for size in rng.integers(3, 12, 32):
        short.append({"x": rng.standard_normal((1, size, 6)).astype(np.float32), "mask": np.ones((1, size), np.int64)})
    long = [{n: np.pad(v, [(0, 0), (0, 12 - v.shape[1]), (0, 0)][: v.ndim]) for n, v in feed.items()} for feed in short]
    found = [prune(model, "macs=0.7", data=data, align=4, validate=False) for data in (short, long)]
    one, other = (result.record["recovery"]["distance"] for result in found)
    assert one == other
