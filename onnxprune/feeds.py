"""What a model is fed with: the inputs that it declares, and random feeds.

A *feed* is a dict from input name to array: what one run of the model takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError, ShapeError

Array: TypeAlias = NDArray[Any]
Feed: TypeAlias = dict[str, Array]
Axis: TypeAlias = int | str | None  # a free axis is a name or None
Inputs: TypeAlias = Mapping[str, tuple[Any, Sequence[Axis] | None]]  # name -> dtype, shape (None: unknown rank)
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]


class Defaults(NamedTuple):
    """What free axes become where nobody says: the batch, sides and channels of an image, anything else."""

    batch: int = 1
    side: int = 224
    channels: int = 3
    other: int = 16


USUAL = Defaults()
UNUSUAL = Defaults(batch=2, side=256, other=11)  # a second opinion


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
        return onnx.load(name, format="protobuf", load_external_data=False)
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
        return as_specs(model)
    if hasattr(model, "get_inputs"):
        return {meta.name: _session_spec(meta) for meta in model.get_inputs()}
    graph = read_header(model).graph
    constant = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    return {i.name: _proto_spec(i) for i in graph.input if i.name not in constant}


def _session_spec(meta: Any) -> InputSpec:
    kind = re.fullmatch(r"tensor\((\w+)\)", meta.type)
    if kind is None:
        raise DataError(f"input '{meta.name}' is a {meta.type}, not a tensor, and cannot be fed; export it as one")
    element = onnx.TensorProto.DataType.Value(kind[1].upper())
    return InputSpec(onnx.helper.tensor_dtype_to_np_dtype(element), tuple(meta.shape))


def _proto_spec(info: onnx.ValueInfoProto) -> InputSpec:
    if not info.type.HasField("tensor_type"):
        kind = info.type.WhichOneof("value") or "value without a type"
        raise DataError(f"input '{info.name}' is a {kind}, not a tensor, and cannot be fed; export it as one")
    tensor = info.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as error:
        raise DataError(f"input '{info.name}' has the unknown type {tensor.elem_type}; export it again") from error
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return InputSpec(dtype, tuple(dims) if tensor.HasField("shape") else None)


def as_specs(inputs: Inputs) -> dict[str, InputSpec]:
    """Inputs as anybody may write them, as specs."""
    shapes = {name: None if shape is None else tuple(shape) for name, (_, shape) in inputs.items()}
    return {name: InputSpec(np.dtype(dtype), shapes[name]) for name, (dtype, _) in inputs.items()}


def is_free(axis: Axis) -> bool:
    """Whether the model leaves an axis open."""
    return not isinstance(axis, int) or axis < 0


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type is a float, NumPy's own or one of ml_dtypes."""
    return dtype.name.startswith(("float", "bfloat"))


def suited(feed: Feed, inputs: Mapping[str, InputSpec]) -> Feed:
    """A feed with floats in the format that a model takes: what a float32 model is fed with, for its float16 form."""
    return {name: _suited(value, inputs.get(name)) for name, value in feed.items()}


def _suited(value: Array, spec: InputSpec | None) -> Array:
    floats = spec is not None and is_float(value.dtype) and is_float(spec.dtype)
    return value.astype(spec.dtype) if spec is not None and floats and value.dtype != spec.dtype else value


# Random feeds


@dataclass(frozen=True)
class FeedShapes:
    """The shape chosen for every input, and a sentence for each one that had free axes (for the record)."""

    shapes: dict[str, tuple[int, ...]]
    assumed: tuple[str, ...]


def choose_shapes(inputs: Inputs, given: Shapes | None = None, defaults: Defaults = USUAL) -> FeedShapes:
    """Fix every free axis: from `given` (input name -> whole shape), else by the defaults.

    A free first axis and any axis named like a batch is the batch; an image-like input has sides and channels. An axis
    name has one size in all inputs, and a name such as `past + seq` is a sum.

    Raises:
        ShapeError: `given` names no input or contradicts a fixed axis.
    """
    specs = as_specs(inputs)
    chosen = {name: tuple(shape) for name, shape in (given or {}).items()}
    sizes: dict[str, int] = {}
    for name, shape in chosen.items():
        sizes |= _bind(name, shape, specs)
    open_specs = {name: spec for name, spec in specs.items() if name not in chosen}
    for spec in open_specs.values():
        for index, axis in enumerate(spec.shape or ()):
            if isinstance(axis, str) and "+" not in axis:
                sizes.setdefault(axis, _default(index, axis, spec, defaults))
    assumed = []
    for name, spec in open_specs.items():
        chosen[name] = tuple(_size(index, axis, spec, sizes, defaults) for index, axis in enumerate(spec.shape or ()))
        if spec.shape is None or any(map(is_free, spec.shape)):
            assumed.append(f"input '{name}' {spec} was fed as {list(chosen[name])}")
    return FeedShapes(chosen, tuple(assumed))


def _bind(name: str, shape: tuple[int, ...], specs: Mapping[str, InputSpec]) -> dict[str, int]:
    """Sizes of the axis names of one input whose shape is given."""
    if name not in specs:
        raise ShapeError(f"a shape was given for '{name}', which is no input; inputs are {', '.join(specs)}")
    axes = specs[name].shape
    if axes is None:
        return {}
    if len(axes) != len(shape) or any(n < 0 or not (is_free(a) or a == n) for a, n in zip(axes, shape, strict=True)):
        raise ShapeError(f"input '{name}' is {specs[name]} and cannot take {list(shape)}; give a shape that fits")
    return {axis: size for axis, size in zip(axes, shape, strict=True) if isinstance(axis, str)}


def _size(index: int, axis: Axis, spec: InputSpec, sizes: Mapping[str, int], defaults: Defaults) -> int:
    if isinstance(axis, int) and axis >= 0:
        return axis
    terms = re.split(r"\s*\+\s*", axis.strip()) if isinstance(axis, str) else []
    if terms and all(term in sizes or term.isdigit() for term in terms):
        return sum(sizes[term] if term in sizes else int(term) for term in terms)
    return _default(index, axis, spec, defaults)


def _default(index: int, axis: Axis, spec: InputSpec, defaults: Defaults) -> int:
    name, shape = axis.lower() if isinstance(axis, str) else "", spec.shape or ()
    sequence = re.search("seq|len|past|token", name)
    if "batch" in name or (index == 0 and not sequence):
        return defaults.batch
    if sequence or len(shape) != 4 or not (is_float(spec.dtype) or spec.dtype == np.uint8):
        return defaults.other
    if shape[3] in (1, 3, 4) and is_free(shape[1]):  # channels last
        return defaults.side
    if shape[1] in (1, 3, 4) or (is_free(shape[2]) and is_free(shape[3])):
        return defaults.channels if index == 1 else defaults.side
    return defaults.other


def random_feeds(
    model: Any, seed: int = 0, count: int = 1, shapes: Shapes | None = None, defaults: Defaults = USUAL
) -> list[Feed]:
    """Reproducible feeds for a model (as `input_specs` takes it), with free axes as `choose_shapes` says.

    Floats are N(0, 1), integers 0 or 1 (safe as token or index; 0 to 255 for 4-D uint8 images), booleans
    either; integers and booleans whose name contains "mask" are all ones.

    Raises:
        ModelError, DataError, ShapeError: as `input_specs` and `choose_shapes` do.
        DataError: they do not fit in memory.
    """
    specs = input_specs(model)
    chosen = choose_shapes(specs, shapes, defaults).shapes
    streams = [np.random.default_rng([seed, index]) for index in range(count)]
    try:
        return [{name: _draw(rng, name, spec.dtype, chosen[name]) for name, spec in specs.items()} for rng in streams]
    except (MemoryError, OverflowError, ValueError) as error:  # a size beyond all bounds is a ValueError
        sizes = ", ".join(f"{name} {list(shape)}" for name, shape in chosen.items())
        raise DataError(f"the inputs {sizes} do not fit in memory; give a smaller batch or smaller sizes") from error


def _draw(rng: np.random.Generator, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if is_float(dtype):
        return np.asarray(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if "mask" in name.lower():
        return np.ones(shape, dtype=dtype)
    return np.asarray(rng.integers(0, 256 if dtype == np.uint8 and len(shape) == 4 else 2, shape)).astype(dtype)


def rows(feed: Mapping[str, Array]) -> int:
    """Number of samples in a feed: the length of its first input, 1 if that has no axes."""
    first = next(iter(feed.values()))
    return first.shape[0] if first.ndim else 1


def batched(feeds: Iterable[Feed], inputs: Inputs, size: int) -> Iterator[Feed]:
    """Join feeds of equal shapes that follow each other along axis 0, up to `size` rows.

    Only where the first axis of every input is free and its rows are samples, as far as names and lengths tell; else
    the feeds come as they are.
    """
    joins = size > 1 and all(map(_is_batch_first, as_specs(inputs).values()))
    waiting: list[Feed] = []
    for feed in feeds:
        if waiting and any(array.shape != waiting[0][name].shape for name, array in feed.items()):
            yield _joined(waiting)
            waiting = []
        waiting.append(feed)
        lengths = {len(array) if array.ndim else None for array in feed.values()}
        if not joins or len(lengths) > 1 or (len(waiting) + 1) * rows(feed) > size:  # it grows no more
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _is_batch_first(spec: InputSpec) -> bool:
    names = [axis.lower() if isinstance(axis, str) else "" for axis in spec.shape or ()]
    if not spec.shape or not is_free(spec.shape[0]) or re.search("seq|len|past|token|time", names[0]):
        return False
    return not any("batch" in name for name in names[1:])


def _joined(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
