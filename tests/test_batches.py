"""Batches that are asked for: made up, put together from samples, or refused by the input that has another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.batches import batch_shapes, of_batch
from onnxprune.errors import DataError, ShapeError
from onnxprune.feeds import InputSpec, random_feeds

F, INTEGER = np.dtype(np.float32), np.dtype(np.int64)


def specs(**shapes: Any) -> dict[str, InputSpec]:
    return {name: InputSpec(F, shape) for name, shape in shapes.items()}


def test_every_input_with_an_open_first_axis_gets_the_batch() -> None:
    inputs = {
        "image": InputSpec(F, ("N", 3, "H", "W")),
        "size": InputSpec(INTEGER, (None, 2)),
        "scale": InputSpec(F, ()),
    }
    feed = of_batch(inputs, 7)
    assert {name: array.shape for name, array in feed.items()} == {
        "image": (7, 3, 224, 224),
        "size": (7, 2),
        "scale": (),
    }
    assert batch_shapes(inputs, 7).assumed[0] == "input 'image' float32 [N, 3, H, W] was fed as [7, 3, 224, 224]"


def test_a_batch_behind_a_sequence() -> None:
    assert of_batch(specs(tokens=("seq", "batch")), 5)["tokens"].shape == (16, 5)


def test_sizes_that_are_given_are_kept() -> None:
    assert of_batch(specs(x=("N", 3, "H", "W")), 2, shapes={"x": (2, 3, 8, 9)})["x"].shape == (2, 3, 8, 9)
    with pytest.raises(ShapeError, match=r"--batch 4: input 'x' .*--shape gives it a batch of 2; leave --batch out"):
        batch_shapes(specs(x=("N", 3)), 4, {"x": (2, 3)})


def test_a_fixed_batch_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match=r"--batch 8: input 'b' float32 \[1, 3\]: the model gives it a batch of 1"):
        batch_shapes(specs(a=("N", 3), b=(1, 3)), 8)
    assert of_batch(specs(a=(8, 3)), 8)["a"].shape == (8, 3)


@pytest.mark.parametrize("shapes", [{}, {"x": ()}, {"x": ("seq_len", 4)}, {"x": None}])
def test_no_input_that_takes_a_batch(shapes: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="--batch 8: no input has an open batch"):
        batch_shapes(specs(**shapes), 8)


def test_samples_are_put_together_again_and_again() -> None:
    samples = [{"x": np.full((1, 2), n, dtype=np.float32)} for n in range(3)]
    assert of_batch(specs(x=("N", 2)), 5, samples)["x"][:, 0].tolist() == [0, 1, 2, 0, 1]
    pairs = [{"x": np.arange(4, dtype=np.float32).reshape(2, 2)}]
    assert of_batch(specs(x=("N", 2)), 3, pairs)["x"].tolist() == [[0, 1], [2, 3], [0, 1]]


def test_samples_of_other_sizes_are_left_out() -> None:
    samples = [{"x": np.zeros((1, n), np.float32)} for n in (3, 4, 3)]
    assert of_batch(specs(x=("N", "len")), 4, samples)["x"].shape == (4, 3)


def test_samples_that_cannot_be_put_together() -> None:
    with pytest.raises(DataError, match="rows of the inputs are not samples one by one"):
        of_batch(specs(x=("N", 3), y=("M", 3)), 4, [{"x": np.zeros((1, 3)), "y": np.zeros((2, 3))}])
    with pytest.raises(DataError, match="got none"):
        of_batch(specs(x=("N", 3)), 4, [])


def test_what_does_not_fit_in_memory() -> None:
    with pytest.raises(
        DataError, match=r"the inputs x \[4398046511104, 3\] do not fit in memory; give a smaller batch"
    ):
        of_batch(specs(x=("N", 3)), 1 << 42)
    with pytest.raises(DataError, match="4398046511104 samples do not fit in memory; give a smaller batch"):
        of_batch(specs(x=("N", 3)), 1 << 42, [{"x": np.zeros((1, 3), np.float32)}])
    with pytest.raises(DataError, match="do not fit in memory"):
        random_feeds(specs(x=(1 << 42, 1 << 42)))
