"""Readers for `--data`: any supported source becomes a re-iterable stream of feeds that fit the model.

What does not fit is said in one line: which input of which file, and why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxprune.errors import DataError, one_line
from onnxprune.feeds import Array, Feed, Inputs, InputSpec, Source, as_specs, is_float, is_free, rows


@dataclass(frozen=True)
class Feeds:
    """A re-iterable stream of feeds, made by `read`; files are read as it advances."""

    source: Path | Mapping[str, Any] | Iterable[Any]
    inputs: dict[str, InputSpec]
    batch: int | None = None
    limit: int | None = None

    def __iter__(self) -> Iterator[Feed]:
        seen = 0
        for label, arrays, stacked in _records(self.source, self.inputs):
            for feed in _cut(label, arrays, self.inputs, self.batch or (1 if stacked else None)):
                yield feed
                seen += rows(feed)
                if self.limit is not None and seen >= self.limit:
                    return


def read(source: Source, inputs: Inputs, batch: int | None = None, limit: int | None = None) -> Feeds:
    """Read `source` as feeds for a model with these inputs (as `input_specs` gives them).

    Stacked samples are fed `batch` at a time (1 if not given) where the model's first axis is free, and as
    many as the model asks for where it is fixed; samples left over at the end are then dropped. The first
    feed is read at once, so that mistakes show early. Dtypes are cast only where values survive: between
    floats if nothing overflows, between integers and booleans if all are in range.

    Args:
        source: an `.npz` (a key for each input, samples stacked on axis 0; other keys are ignored); an `.npy`
            (models with one input); a directory of those, or of one `<input>.npy` for each input; an ONNX
            `test_data_set_*` directory or a parent of some; a dict of stacked arrays or one array; or an
            iterable of feeds. A generator is kept in memory, so that it can be read again.
        inputs: input name -> (dtype, shape).
        batch: samples in a feed.
        limit: samples to stop after.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, or does not fit the inputs.
    """
    if not inputs:
        raise DataError("the model has no inputs, so it needs no data; leave the data out")
    if any(n is not None and n < 1 for n in (batch, limit)):
        raise DataError(f"batch ({batch}) and limit ({limit}) must be at least 1; leave them out to read everything")
    specs = as_specs(inputs)
    if isinstance(source, str | os.PathLike):
        source = Path(source)
        if not source.exists():
            raise DataError(f"{source}: no such file or directory; check the path of the data")
    elif isinstance(source, Iterator):
        source = list(islice(source, limit))
    elif not isinstance(source, Iterable) or (isinstance(source, np.ndarray) and not source.ndim):
        raise DataError(f"the data are a {type(source).__name__}; give a path, arrays by input name or an iterable")
    feeds = Feeds(source, specs, min(batch, limit) if batch and limit else batch, limit)
    if next(iter(feeds), None) is None:
        raise DataError(f"{source if isinstance(source, Path) else 'the data'}: no samples; give at least one")
    return feeds


# Where arrays come from, the arrays by input name, and whether they are stacks of samples rather than one
# feed.
Record: TypeAlias = tuple[str, Mapping[str, Any], bool]


def _records(source: Path | Mapping[str, Any] | Iterable[Any], inputs: Mapping[str, InputSpec]) -> Iterator[Record]:
    if isinstance(source, Path):
        yield from _directory(source, inputs) if source.is_dir() else [_file(source, inputs)]
    elif isinstance(source, Mapping | np.ndarray):
        yield "the data", _named(source, inputs, "the data"), True
    else:
        for index, item in enumerate(source):
            label = f"feed {index} of the data"
            yield label, _named(item, inputs, label), False


def _named(value: Any, inputs: Mapping[str, InputSpec], label: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if len(inputs) > 1:
        raise DataError(f"{label}: one array, and the model has the inputs {', '.join(inputs)}; give them by name")
    return dict.fromkeys(inputs, value)


def _directory(path: Path, inputs: Mapping[str, InputSpec]) -> Iterator[Record]:
    entries = sorted(path.iterdir(), key=lambda e: [p.zfill(20) for p in re.split(r"(\d+)", e.name)])
    sets = [e for e in entries if e.is_dir() and e.name.startswith("test_data_set_")]
    files = [e for e in entries if e.suffix in (".npz", ".npy")]
    stems = {file.stem: file for file in files if file.suffix == ".npy"}
    if (path / "input_0.pb").exists():
        yield _test_set(path, inputs)
    elif sets:
        yield from (_test_set(entry, inputs) for entry in sets)
    elif len(inputs) > 1 and set(inputs) <= set(stems):
        yield str(path), {name: _load(stems[name]) for name in inputs}, True
    elif files:
        yield from (_file(file, inputs) for file in files)
    else:
        raise DataError(f"{path}: no .npz, .npy or test_data_set_* in it; save the inputs with numpy.savez")


def _file(path: Path, inputs: Mapping[str, InputSpec]) -> Record:
    if path.suffix not in (".npz", ".npy"):
        raise DataError(f"{path}: '{path.suffix}' files are not read; give an .npz, an .npy or a directory of them")
    loaded = _load(path)
    if path.suffix == ".npz" and len(loaded) == len(inputs) == 1:  # whatever its one key is
        loaded = next(iter(loaded.values()))
    return str(path), _named(loaded, inputs, str(path)), True


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if archive[name].dtype.kind != "O"}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(f"{path}: cannot be read ({one_line(error, 120)}); save it again with numpy") from error


def _test_set(path: Path, inputs: Mapping[str, InputSpec]) -> Record:
    arrays: dict[str, Array] = {}
    for index, name in enumerate(inputs):
        file, tensor = path / f"input_{index}.pb", onnx.TensorProto()
        try:
            if file.exists():
                tensor.ParseFromString(file.read_bytes())
                arrays[tensor.name if tensor.name in inputs else name] = onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # protobuf and numpy each have their own
            raise DataError(f"{file}: not a tensor ({one_line(error, 120)}); write it again") from error
    return str(path), arrays, False


@dataclass(frozen=True)
class _Stack:
    """One input's array and how it falls into `count` feeds of `step` rows each."""

    array: Array
    dtype: np.dtype[Any]
    where: str
    step: int | None  # None: a feed is one entry of axis 0, without that axis
    count: int
    constant: bool = False  # it fills a fixed shape exactly, so it may serve every feed

    def part(self, index: int) -> Array:
        if self.constant:
            return _cast(self.array, self.dtype, self.where)
        if self.step is None:
            return _cast(np.asarray(self.array[index]), self.dtype, self.where)
        return _cast(self.array[index * self.step : (index + 1) * self.step], self.dtype, self.where)


def _cut(label: str, arrays: Mapping[str, Any], inputs: Mapping[str, InputSpec], batch: int | None) -> Iterator[Feed]:
    """Cut a record into feeds of `batch` rows (None: all), or of the model's own number where it is fixed."""
    missing = [name for name in inputs if name not in arrays]
    if missing:
        found = ", ".join(map(str, arrays)) or "none"
        raise DataError(f"{label}: no array for input {', '.join(missing)} (found: {found}); name one for every input")
    stacks = [_stack(f"{label}: input '{name}'", arrays[name], spec, batch) for name, spec in inputs.items()]
    count = max(stack.count for stack in stacks)
    for stack in stacks:
        if stack.count != count and not stack.constant:
            raise DataError(
                f"{stack.where} has {stack.count} feeds' worth of samples, another input {count}; align them"
            )
    for index in range(count):
        yield {name: stack.part(index) for name, stack in zip(inputs, stacks, strict=True)}


def _stack(where: str, value: Any, spec: InputSpec, batch: int | None) -> _Stack:
    given = np.asarray(value)
    axes = (None,) * given.ndim if spec.shape is None else spec.shape
    array = given[None] if given.ndim == len(axes) - 1 else given  # one sample without its batch axis
    stacked = array.ndim == len(axes) + 1
    have, want = array.shape[1:], axes if stacked else axes[1:]
    if (
        len(have) != len(want)
        or array.ndim < len(axes)
        or not all(is_free(w) or h == w for h, w in zip(have, want, strict=True))
    ):
        hint = "stack samples on axis 0 in the model's layout and size"
        if len(array.shape) == len(axes) == 4:
            if tuple(array.shape[i] for i in (3, 1, 2)) == tuple(axes[1:]):
                hint = "it looks channels-last: transpose it by (0, 3, 1, 2)"
            elif tuple(array.shape[i] for i in (2, 3, 1)) == tuple(axes[1:]):
                hint = "it looks channels-first: transpose it by (0, 2, 3, 1)"
        raise DataError(f"{where} wants {spec} and the data are {InputSpec(given.dtype, given.shape)}; {hint}")
    if not array.ndim:
        return _Stack(array, spec.dtype, where, None, 1, constant=True)
    if stacked:
        return _Stack(array, spec.dtype, where, None, len(array))
    fixed = axes[0] if isinstance(axes[0], int) and axes[0] >= 0 else None
    step = (batch or len(array)) if fixed is None else fixed
    if not len(array) or not step or (fixed and len(array) < fixed):
        raise DataError(f"{where} wants {fixed or 1} samples at a time and the data hold {len(array)}; give more")
    count = -(-len(array) // step) if fixed is None else len(array) // step
    return _Stack(array, spec.dtype, where, step, count, constant=len(array) == fixed)


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """The array as `dtype`, C-contiguous; its values must survive the cast and must not be NaN."""
    source = array.dtype
    if is_float(source) and bool(np.isnan(array).any()):
        raise DataError(f"{where} holds NaN; remove those samples")
    if source == dtype:
        return np.asarray(array, order="C")
    if is_float(source) and is_float(dtype):
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        safe = np.array_equal(np.isfinite(result), np.isfinite(array))
    elif source.kind in "iub" and not is_float(dtype) and dtype.kind != "O":
        result = array.astype(dtype)
        safe = np.array_equal(result.astype(source), array)
    elif source.kind in "US" and dtype.kind == "O":
        result, safe = array.astype(object), True
    else:
        hint = "scale it as in training and save it as floats" if is_float(dtype) else f"save it as {dtype}"
        raise DataError(f"{where} wants {dtype} and the data are {source}; {hint}")
    if not safe:
        raise DataError(f"{where} wants {dtype} and the {source} data are out of its range; rescale them")
    return np.asarray(result, order="C")
