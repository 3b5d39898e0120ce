"""What a model is fed with: the inputs it declares, random feeds, and readers for `--data`.

A *feed* is a dict from input name to array: what one run of the model takes. `read` turns any supported
source into a re-iterable stream of feeds that fit the model, or says in one line which input of which file
does not, and why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError, ShapeError, one_line

Array: TypeAlias = NDArray[Any]
Feed: TypeAlias = dict[str, Array]
Axis: TypeAlias = int | str | None  # a free axis is a name or None
Inputs: TypeAlias = Mapping[
    str, tuple[Any, Sequence[Axis] | None]
]  # name -> dtype, shape (None: unknown rank)
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]

# What free axes become where nobody says: sides and channels of an image, anything else. A free first axis is
# 1.
SIDE, CHANNELS, OTHER = 224, 3, 16


class InputSpec(NamedTuple):
    """What an input takes: dtype and shape. Shows as `float32 [N, 3, 224, 224]`."""

    dtype: np.dtype[Any]
    shape: tuple[Axis, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


def read_header(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """The model without its external data.

    Raises:
        ModelError: the file is missing or is not ONNX.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    name = "the model in memory" if isinstance(model, bytes) else os.fspath(model)
    try:
        if isinstance(model, bytes):
            return onnx.load_from_string(model)
        return onnx.load(name, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror or error}); check the path") from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: not an ONNX model, or a truncated one; export it again") from error


def input_specs(model: Any) -> dict[str, InputSpec]:
    """What each input of a model takes, in order; inputs with an initializer are left out.

    Args:
        model: a path, a `ModelProto`, its bytes, an `InferenceSession`, or a mapping of specs already.

    Raises:
        ModelError: the model cannot be read.
        DataError: an input is not a tensor.
    """
    if isinstance(model, Mapping):
        return _specs(model)
    if hasattr(model, "get_inputs"):
        return {meta.name: _session_spec(meta) for meta in model.get_inputs()}
    graph = read_header(model).graph
    constant = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    return {i.name: _proto_spec(i) for i in graph.input if i.name not in constant}


def _session_spec(meta: Any) -> InputSpec:
    kind = re.fullmatch(r"tensor\((\w+)\)", meta.type)
    if kind is None:
        raise DataError(
            f"input '{meta.name}' is a {meta.type}, not a tensor, and cannot be fed; export it as one"
        )
    element = onnx.TensorProto.DataType.Value(kind[1].upper())
    return InputSpec(onnx.helper.tensor_dtype_to_np_dtype(element), tuple(meta.shape))


def _proto_spec(info: onnx.ValueInfoProto) -> InputSpec:
    if not info.type.HasField("tensor_type"):
        kind = info.type.WhichOneof("value") or "value without a type"
        raise DataError(f"input '{info.name}' is a {kind}, not a tensor, and cannot be fed; export it as one")
    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return InputSpec(dtype, tuple(dims) if tensor.HasField("shape") else None)


def _specs(inputs: Inputs) -> dict[str, InputSpec]:
    shapes = {name: None if shape is None else tuple(shape) for name, (_, shape) in inputs.items()}
    return {name: InputSpec(np.dtype(dtype), shapes[name]) for name, (dtype, _) in inputs.items()}


def _free(axis: Axis) -> bool:
    return not isinstance(axis, int) or axis < 0


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name.startswith(("float", "bfloat"))


# Random feeds


@dataclass(frozen=True)
class FeedShapes:
    """The shape chosen for every input, and a sentence for each one that had free axes (for the record)."""

    shapes: dict[str, tuple[int, ...]]
    assumed: tuple[str, ...]


def choose_shapes(inputs: Inputs, given: Shapes | None = None) -> FeedShapes:
    """Fix every free axis: from `given` (input name -> whole shape), else by the stated defaults.

    A free first axis and any axis named like a batch becomes 1; the sides of an image-like input 224, its
    channels 3; other axes 16. An axis name has one size in all inputs, and a name such as `past + seq` is a
    sum.

    Raises:
        ShapeError: `given` names no input or contradicts a fixed axis.
    """
    specs = _specs(inputs)
    chosen = {name: tuple(shape) for name, shape in (given or {}).items()}
    sizes: dict[str, int] = {}
    for name, shape in chosen.items():
        sizes |= _bind(name, shape, specs)
    open_specs = {name: spec for name, spec in specs.items() if name not in chosen}
    for spec in open_specs.values():
        for index, axis in enumerate(spec.shape or ()):
            if isinstance(axis, str) and "+" not in axis:
                sizes.setdefault(axis, _default(index, axis, spec))
    assumed = []
    for name, spec in open_specs.items():
        chosen[name] = tuple(_size(index, axis, spec, sizes) for index, axis in enumerate(spec.shape or ()))
        if spec.shape is None or any(map(_free, spec.shape)):
            assumed.append(f"input '{name}' {spec} was fed as {list(chosen[name])}")
    return FeedShapes(chosen, tuple(assumed))


def _bind(name: str, shape: tuple[int, ...], specs: Mapping[str, InputSpec]) -> dict[str, int]:
    """Sizes of the axis names of one input whose shape is given."""
    if name not in specs:
        raise ShapeError(f"a shape was given for '{name}', which is no input; inputs are {', '.join(specs)}")
    axes = specs[name].shape
    if axes is None:
        return {}
    if len(axes) != len(shape) or any(
        n < 0 or not (_free(a) or a == n) for a, n in zip(axes, shape, strict=True)
    ):
        raise ShapeError(
            f"input '{name}' is {specs[name]} and cannot take {list(shape)}; give a shape that fits"
        )
    return {axis: size for axis, size in zip(axes, shape, strict=True) if isinstance(axis, str)}


def _size(index: int, axis: Axis, spec: InputSpec, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int) and axis >= 0:
        return axis
    terms = re.split(r"\s*\+\s*", axis.strip()) if isinstance(axis, str) else []
    if terms and all(term in sizes or term.isdigit() for term in terms):
        return sum(sizes[term] if term in sizes else int(term) for term in terms)
    return _default(index, axis, spec)


def _default(index: int, axis: Axis, spec: InputSpec) -> int:
    name, shape = axis.lower() if isinstance(axis, str) else "", spec.shape or ()
    sequence = re.search("seq|len|past|token", name)
    if "batch" in name or (index == 0 and not sequence):
        return 1
    if sequence or len(shape) != 4 or not (_is_float(spec.dtype) or spec.dtype == np.uint8):
        return OTHER
    if shape[3] in (1, 3, 4) and _free(shape[1]):  # channels last
        return SIDE
    if shape[1] in (1, 3, 4) or (_free(shape[2]) and _free(shape[3])):
        return CHANNELS if index == 1 else SIDE
    return OTHER


def random_feeds(model: Any, seed: int = 0, count: int = 1, shapes: Shapes | None = None) -> list[Feed]:
    """Reproducible feeds for a model (as `input_specs` takes it), with free axes as `choose_shapes` says.

    Floats are N(0, 1), integers 0 or 1 (safe as token or index; 0 to 255 for 4-D uint8 images), booleans
    either; integers and booleans whose name contains "mask" are all ones.

    Raises:
        ModelError, DataError, ShapeError: as `input_specs` and `choose_shapes` do.
    """
    specs = input_specs(model)
    chosen = choose_shapes(specs, shapes).shapes
    streams = [np.random.default_rng([seed, index]) for index in range(count)]
    return [
        {name: _draw(rng, name, spec.dtype, chosen[name]) for name, spec in specs.items()} for rng in streams
    ]


def _draw(rng: np.random.Generator, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if _is_float(dtype):
        return np.asarray(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if "mask" in name.lower():
        return np.ones(shape, dtype=dtype)
    return np.asarray(rng.integers(0, 256 if dtype == np.uint8 and len(shape) == 4 else 2, shape)).astype(
        dtype
    )


# Readers


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


def rows(feed: Mapping[str, Array]) -> int:
    """Number of samples in a feed: the length of its first input, 1 if that has no axes."""
    first = next(iter(feed.values()))
    return first.shape[0] if first.ndim else 1


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
        raise DataError(
            f"batch ({batch}) and limit ({limit}) must be at least 1; leave them out to read everything"
        )
    specs = _specs(inputs)
    if isinstance(source, str | os.PathLike):
        source = Path(source)
        if not source.exists():
            raise DataError(f"{source}: no such file or directory; check the path of the data")
    elif isinstance(source, Iterator):
        source = list(islice(source, limit))
    elif not isinstance(source, Iterable) or (isinstance(source, np.ndarray) and not source.ndim):
        raise DataError(
            f"the data are a {type(source).__name__}; give a path, arrays by input name or an iterable"
        )
    feeds = Feeds(source, specs, min(batch, limit) if batch and limit else batch, limit)
    if next(iter(feeds), None) is None:
        raise DataError(
            f"{source if isinstance(source, Path) else 'the data'}: no samples; give at least one"
        )
    return feeds


# Where arrays come from, the arrays by input name, and whether they are stacks of samples rather than one
# feed.
Record: TypeAlias = tuple[str, Mapping[str, Any], bool]


def _records(
    source: Path | Mapping[str, Any] | Iterable[Any], inputs: Mapping[str, InputSpec]
) -> Iterator[Record]:
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
        raise DataError(
            f"{label}: one array, and the model has the inputs {', '.join(inputs)}; give them by name"
        )
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
        raise DataError(
            f"{path}: '{path.suffix}' files are not read; give an .npz, an .npy or a directory of them"
        )
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
        raise DataError(
            f"{path}: cannot be read ({one_line(error, 120)}); save it again with numpy"
        ) from error


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


def _cut(
    label: str, arrays: Mapping[str, Any], inputs: Mapping[str, InputSpec], batch: int | None
) -> Iterator[Feed]:
    """Cut a record into feeds of `batch` rows (None: all), or of the model's own number where it is fixed."""
    missing = [name for name in inputs if name not in arrays]
    if missing:
        found = ", ".join(map(str, arrays)) or "none"
        raise DataError(
            f"{label}: no array for input {', '.join(missing)} (found: {found}); name one for every input"
        )
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
        or not all(_free(w) or h == w for h, w in zip(have, want, strict=True))
    ):
        hint = "stack samples on axis 0 in the model's layout and size"
        if len(array.shape) == len(axes) == 4 and axes[1] == array.shape[3]:
            hint = "it looks channels-last: transpose it by (0, 3, 1, 2)"
        raise DataError(
            f"{where} wants {spec} and the data are {InputSpec(given.dtype, given.shape)}; {hint}"
        )
    if not array.ndim:
        return _Stack(array, spec.dtype, where, None, 1, constant=True)
    if stacked:
        return _Stack(array, spec.dtype, where, None, len(array))
    fixed = axes[0] if isinstance(axes[0], int) and axes[0] >= 0 else None
    step = (batch or len(array)) if fixed is None else fixed
    if not len(array) or not step or (fixed and len(array) < fixed):
        raise DataError(
            f"{where} wants {fixed or 1} samples at a time and the data hold {len(array)}; give more"
        )
    count = -(-len(array) // step) if fixed is None else len(array) // step
    return _Stack(array, spec.dtype, where, step, count, constant=len(array) == fixed)


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """The array as `dtype`, C-contiguous; its values must survive the cast and must not be NaN."""
    source = array.dtype
    if _is_float(source) and bool(np.isnan(array).any()):
        raise DataError(f"{where} holds NaN; remove those samples")
    if source == dtype:
        return np.asarray(array, order="C")
    if _is_float(source) and _is_float(dtype):
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        safe = np.array_equal(np.isfinite(result), np.isfinite(array))
    elif source.kind in "iub" and not _is_float(dtype) and dtype.kind != "O":
        result = array.astype(dtype)
        safe = np.array_equal(result.astype(source), array)
    elif source.kind in "US" and dtype.kind == "O":
        result, safe = array.astype(object), True
    else:
        hint = "scale it as in training and save it as floats" if _is_float(dtype) else f"save it as {dtype}"
        raise DataError(f"{where} wants {dtype} and the data are {source}; {hint}")
    if not safe:
        raise DataError(f"{where} wants {dtype} and the {source} data are out of its range; rescale them")
    return np.asarray(result, order="C")
