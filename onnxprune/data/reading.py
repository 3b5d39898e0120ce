"""From a source of any kind to a stream of feeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import arrays, files, images
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.synthetic import COUNT, synthetic
from onnxprune.data.vocabulary import vocabularies
from onnxprune.errors import DataError
from onnxprune.feeds import Feed, Inputs, InputSpec, Shapes, Source, batched, input_specs, rows

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Data:
    """A source and how it is read, for those who pass it on before the model is known; `read` takes it as a source.

    Attributes:
        source, preprocess, shapes, seed: as `read` takes them.
    """

    source: Source
    preprocess: Preprocess | str | None = None
    shapes: Shapes | None = None
    seed: int = 0


@dataclass(frozen=True)
class Feeds:
    """A re-iterable stream of feeds, made by `read`; files are read as it advances.

    Attributes:
        stream: starts the feeds anew, with this many samples in each.
        inputs: what they are made for.
        batch, limit: as `read` takes them.
        kind: what they are: `data` (arrays of the user's), `images` or `synthetic`.
    """

    stream: Callable[[int | None], Iterator[Feed]]
    inputs: dict[str, InputSpec]
    batch: int | None = None
    limit: int | None = None
    kind: str = "data"

    def __iter__(self) -> Iterator[Feed]:
        seen = 0
        for feed in self.stream(self.batch):
            yield feed
            seen += rows(feed)
            if self.limit is not None and seen >= self.limit:
                return

    def samples(self) -> Iterator[Feed]:
        """Feeds of one sample where the model's first axis is free; an iterable's feeds come as they are."""
        return iter(replace(self, batch=None))


def read(
    source: Source | Data,
    inputs: Inputs | Any,
    batch: int | None = None,
    limit: int | None = None,
    *,
    preprocess: Preprocess | str | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> Feeds:
    """Read `source` as feeds for a model with these inputs.

    Stacked samples are fed `batch` at a time (1 if not given) where the model's first axis is free, and as
    many as the model asks for where it is fixed; samples left over at the end are then dropped. The first
    feed is read at once, so that mistakes show early. Dtypes are cast only where values survive: between
    floats if nothing overflows, between integers and booleans if all are in range.

    Args:
        source: an `.npz` (a key for each input, samples stacked on axis 0; other keys are ignored); an `.npy`
            (models with one input); a directory of those, or of one `<input>.npy` for each input; an ONNX
            `test_data_set_*` directory or a parent of some; an image or a directory of images; `synthetic`;
            a dict of stacked arrays or one array; an iterable of feeds; or `Data`, any of these with the options
            below. A generator is kept in memory, so that it can be read again.
        inputs: input name -> (dtype, shape), or a model as `input_specs` takes it: the vocabularies of synthetic
            token ids are known only then.
        batch: samples in a feed.
        limit: samples to stop after; of synthetic data there are 64 otherwise.
        preprocess: how images become an input: a `Preprocess` or its text, as in `imagenet`.
        shapes: input name -> shape, where synthetic data are to have a size that the model leaves open.
        seed: for synthetic data.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, or does not fit the inputs.
    """
    if isinstance(source, Data):
        steps = source.preprocess if preprocess is None else preprocess
        sizes = source.shapes if shapes is None else shapes
        return read(source.source, inputs, batch, limit, preprocess=steps, shapes=sizes, seed=source.seed or seed)
    specs = input_specs(inputs)
    if not specs:
        raise DataError("the model has no inputs, so it needs no data; leave the data out")
    if any(n is not None and n < 1 for n in (batch, limit)):
        raise DataError(f"batch ({batch}) and limit ({limit}) must be at least 1; leave them out to read everything")
    steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    batch = min(batch, limit) if batch and limit else batch
    stream: Callable[[int | None], Iterator[Feed]]
    kind, name = "data", str(source) if isinstance(source, str | os.PathLike) else "the data"
    if isinstance(source, str) and source == SYNTHETIC:
        shapes = {n: shape for n, shape in (shapes or {}).items() if n in specs}
        known = {} if isinstance(inputs, Mapping) else vocabularies(inputs)
        kind, stream = "synthetic", partial(_generated, specs, limit or COUNT, seed, shapes, known)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; check the path of the data")
        if images.is_image(path) or (path.is_dir() and not files.has_arrays(path) and images.has_images(path)):
            kind, stream = "images", partial(images.feeds, path, images.recipe(path, steps, specs), specs)
        else:
            stream = partial(_cut, partial(files.records, path, specs), specs)
    else:
        stream = partial(_cut, partial(_records, _kept(source, limit), specs), specs)
    if steps is not None and kind != "images":
        raise DataError(f"{name}: holds no images to preprocess; leave --preprocess out")
    feeds = Feeds(stream, specs, batch, limit, kind)
    if next(iter(feeds), None) is None:
        raise DataError(f"{name}: no samples; give at least one")
    return feeds


def _generated(
    specs: dict[str, InputSpec], count: int, seed: int, shapes: Shapes, vocabulary: Mapping[str, int], batch: int | None
) -> Iterator[Feed]:
    return batched(synthetic(specs, count, seed, shapes, vocabulary), specs, batch or 1)


def _cut(
    records: Callable[[], Iterator[arrays.Record]], inputs: Mapping[str, InputSpec], batch: int | None
) -> Iterator[Feed]:
    for label, found, stacked in records():
        yield from arrays.cut(label, found, inputs, batch or (1 if stacked else None))


def _kept(source: Any, limit: int | None) -> Any:
    """A source that can be read again."""
    if isinstance(source, Iterator):
        return list(islice(source, limit))
    if not isinstance(source, Iterable) or (isinstance(source, np.ndarray) and not source.ndim):
        raise DataError(f"the data are a {type(source).__name__}; give a path, arrays by input name or an iterable")
    return source


def _records(source: Any, inputs: Mapping[str, InputSpec]) -> Iterator[arrays.Record]:
    if isinstance(source, Mapping | np.ndarray):
        yield "the data", arrays.named(source, inputs, "the data"), True
    else:
        for index, item in enumerate(source):
            label = f"feed {index} of the data"
            yield label, arrays.named(item, inputs, label), False
