"""Feeds of a batch that is asked for: made up, or put together from the user's samples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from onnxprune.errors import DataError, ShapeError
from onnxprune.feeds import (
    USUAL,
    Feed,
    FeedShapes,
    InputSpec,
    Shapes,
    choose_shapes,
    input_specs,
    is_free,
    random_feeds,
)


def of_batch(model: Any, size: int, feeds: Iterable[Feed] | None = None, shapes: Shapes | None = None) -> Feed:
    """A feed of so many samples.

    Args:
        model: as `input_specs` takes it.
        size: samples.
        feeds: where they are taken from, again and again until they are enough; None: they are random.
        shapes: input name -> shape, as for `choose_shapes`.

    Raises:
        ShapeError: as `batch_shapes`.
        DataError: the samples cannot be put together, or do not fit in memory.
    """
    specs = input_specs(model)
    chosen = batch_shapes(specs, size, shapes)
    if feeds is None:
        return random_feeds(specs, shapes=chosen.shapes)[0]
    return _joined(list(islice(feeds, size)), size)


def batch_shapes(specs: dict[str, InputSpec], size: int, shapes: Shapes | None = None) -> FeedShapes:
    """The shape of every input in a batch of so many samples; other open sizes as `choose_shapes` says.

    Raises:
        ShapeError: an input has another batch, or none takes it.
    """
    shapes = shapes or {}
    for name, spec in specs.items():
        first = next(iter(shapes.get(name) or spec.shape or ()), size)
        if not is_free(first) and first != size:
            why = "--shape gives it" if name in shapes else "the model gives it"
            raise ShapeError(f"--batch {size}: input '{name}' {spec}: {why} a batch of {first}; leave --batch out")
    chosen, other = (choose_shapes(specs, shapes, USUAL._replace(batch=n)) for n in (size, size + 1))
    said = any(shape[:1] == (size,) for shape in (*shapes.values(), *(spec.shape or () for spec in specs.values())))
    if chosen.shapes == other.shapes and not said:
        inputs = ", ".join(f"'{name}' {spec}" for name, spec in specs.items()) or "none"
        raise ShapeError(f"--batch {size}: no input has an open batch ({inputs}); give --shape instead")
    return chosen


def _joined(feeds: list[Feed], size: int) -> Feed:
    if not feeds:
        raise DataError("a batch needs at least one sample and got none; give --data with some")
    first = feeds[0]
    if all(array.shape[:1] == (size,) for array in first.values()):
        return first
    lengths = {len(array) if array.ndim else 0 for array in first.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(f"--batch {size}: rows of the inputs are not samples one by one; give --shape instead")
    alike = [f for f in feeds if all(array.shape == first[name].shape for name, array in f.items())]
    try:
        rows = np.arange(size) % (lengths.pop() * len(alike))
        return {name: np.concatenate([feed[name] for feed in alike])[rows] for name in first}
    except MemoryError as error:
        raise DataError(f"{size} samples do not fit in memory; give a smaller batch") from error
