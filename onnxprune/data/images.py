"""Images in files: which they are, which input they feed, and the feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from onnxprune.data.files import natural
from onnxprune.data.pixels import Recipe, Size, render
from onnxprune.data.preprocess import EXAMPLE, Preprocess
from onnxprune.errors import DataError
from onnxprune.feeds import Axis, Feed, InputSpec, batched, is_float, is_free

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
CHANNELS = (1, 3)


def is_image(path: Path) -> bool:
    """Whether a path names an image; hidden files, such as a Mac leaves behind, are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def has_images(path: Path) -> bool:
    """Whether a directory or one below it has an image."""
    return any(map(is_image, path.rglob("*")))


def recipe(path: Path, preprocess: Preprocess | None, inputs: Mapping[str, InputSpec]) -> Recipe:
    """How the images at `path` become the model's only 4-D input.

    Raises:
        DataError: no preprocessing is given, it does not fit, or inputs remain that images do not feed.
    """
    if preprocess is None:
        raise DataError(f"{path}: images; say how they become an input, with {EXAMPLE}")
    fours = [name for name, spec in inputs.items() if spec.shape is None or len(spec.shape) == 4]
    if len(fours) != 1:
        found = ", ".join(f"'{name}' {spec}" for name, spec in inputs.items())
        raise DataError(f"{path}: images feed the only 4-D input, and the model has {found}; save its inputs as .npz")
    name = fours[0]
    others = [other for other in inputs if other != name]
    if others:
        raise DataError(f"{path}: images feed input '{name}', and {', '.join(others)} stay unfed; save all as .npz")
    where, spec = f"{path}: input '{name}'", inputs[name]
    if not is_float(spec.dtype) and spec.dtype != np.uint8:
        raise DataError(f"{where} wants {spec}, and images become floats or uint8; save the inputs as .npz")
    axes: tuple[Axis, ...] = (None,) * 4 if spec.shape is None else spec.shape
    last = _is_last(where, spec, axes, preprocess.layout)
    wanted = axes[3] if last else axes[1]
    channels = wanted if isinstance(wanted, int) and not is_free(wanted) else 1 if preprocess.gray else 3
    if channels not in CHANNELS:
        raise DataError(f"{where} wants {spec}, and images have 1 or 3 channels; check layout= or save them as .npz")
    for key, numbers in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(numbers) not in (1, channels):
            raise DataError(f"{where} has 1 channel and {key} {len(numbers)} numbers; give one, as in {key}=0.5")
    size = _size(where, preprocess, axes[1:3] if last else axes[2:])
    batch = axes[0] if isinstance(axes[0], int) and not is_free(axes[0]) else None
    return Recipe(preprocess, name, spec.dtype, batch, size, channels, last)


def _is_last(where: str, spec: InputSpec, axes: Sequence[Axis], layout: str) -> bool:
    """Whether the channels are the last axis."""
    if layout != "auto":
        return layout == "nhwc"
    for fits in (lambda axis: axis in CHANNELS, is_free):
        for index in (1, 3):
            if fits(axes[index]):
                return index == 3
    raise DataError(f"{where} wants {spec}, where no axis has the 1 or 3 channels of an image; save them as .npz")


def _size(where: str, steps: Preprocess, sides: Sequence[Axis]) -> Size | None:
    """Height and width: what is asked for, the model's own, or the usual one."""
    fixed = [side if isinstance(side, int) and not is_free(side) else None for side in sides]
    known = [side for side in fixed if side is not None]
    both = steps.resize if steps.fit != "crop" else None
    size = steps.crop
    if size is None and known:
        size = (fixed[0] or known[0], fixed[1] or known[0])
    if size is None and (both or steps.usual):
        side = both or steps.usual or 0
        size = (side, side)
    if size is None and steps.fit != "crop":
        raise DataError(f"{where} leaves its size open; say it, as in crop=224 or letterbox=640")
    if size and any(want is not None and want != side for want, side in zip(fixed, size, strict=True)):
        asks = "x".join("?" if side is None else str(side) for side in fixed)
        raise DataError(f"{where} wants {asks} pixels and preprocess makes {size[0]}x{size[1]}; leave the size out")
    if size and steps.resize and steps.resize < min(size):
        raise DataError(f"{where} takes {size[0]}x{size[1]} pixels, more than resize={steps.resize}; leave resize out")
    return size


def feeds(path: Path, recipe: Recipe, inputs: Mapping[str, InputSpec], batch: int | None) -> Iterator[Feed]:
    """The images in natural order, each decoded when its turn comes.

    As many make a feed as the model asks for; else `batch` (1 if None) of those that follow each other in one size.
    """
    paths = sorted(_paths(path), key=lambda p: [natural(part) for part in p.parts])
    if recipe.batch is None:
        yield from batched(({recipe.name: render(p, recipe)} for p in paths), inputs, batch or 1)
        return
    if len(paths) < recipe.batch:
        raise DataError(f"{path}: input '{recipe.name}' wants {recipe.batch} images at a time, here are {len(paths)}")
    rest = iter(paths)
    while len(group := list(islice(rest, recipe.batch))) == recipe.batch:
        rows = [render(p, recipe) for p in group]
        if len({row.shape for row in rows}) > 1:
            raise DataError(f"{group[0]}: this image and those after it differ in size; add crop=224 to --preprocess")
        yield {recipe.name: np.concatenate(rows)}


def _paths(path: Path) -> Iterator[Path]:
    return iter([path]) if path.is_file() else filter(is_image, path.rglob("*"))
