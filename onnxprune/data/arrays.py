"""Arrays of samples become feeds: cut to the model's batch, cast where no value is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnxprune.errors import DataError, one_line
from onnxprune.feeds import Array, Feed, InputSpec, is_float, is_free

# Where arrays come from, the arrays by input name, and whether they are stacks of samples rather than one feed.
Record: TypeAlias = tuple[str, Mapping[str, Any], bool]


def named(value: Any, inputs: Mapping[str, InputSpec], label: str) -> Mapping[str, Any]:
    """Arrays by name; a lone array is the model's only input."""
    if isinstance(value, Mapping):
        return value
    if len(inputs) > 1:
        raise DataError(f"{label}: one array, and the model has the inputs {', '.join(inputs)}; give them by name")
    return dict.fromkeys(inputs, value)


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


def cut(label: str, arrays: Mapping[str, Any], inputs: Mapping[str, InputSpec], batch: int | None) -> Iterator[Feed]:
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
    try:
        given = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{where}: no array ({one_line(error, 120)}); make all samples the same size") from error
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
    """The array as `dtype`, C-contiguous; its values must be finite and survive the cast."""
    source = array.dtype
    if is_float(source) and not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinite values"
        raise DataError(f"{where} holds {what}; remove those samples or write finite numbers")
    if source == dtype:
        return np.asarray(array, order="C")
    if is_float(source) and is_float(dtype):
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        safe = bool(np.isfinite(result).all())
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
