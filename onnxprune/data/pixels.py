"""One image: from its file to an array of the size, colours and range that a model takes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, one_line
from onnxprune.feeds import Array

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = 114  # of the bars around a letterboxed image, as detectors are trained with
Size = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """A `Preprocess` for one input of one model.

    Attributes:
        preprocess: what to do.
        name, dtype: of the input.
        batch: images that the model takes at once; None: any number.
        size: height and width; None: each image has its own.
        channels: 1 or 3.
        last: whether they are the last axis.
    """

    preprocess: Preprocess
    name: str
    dtype: np.dtype[Any]
    batch: int | None
    size: Size | None
    channels: int
    last: bool


def render(path: Path, recipe: Recipe) -> Array:
    """An image file as the one row of an input.

    Raises:
        DataError: Pillow is missing, or the file is broken.
    """
    steps, image = recipe.preprocess, _decoded(path)
    if steps.gray or recipe.channels == 1:
        image = image.convert("L")
    image = _fitted(image.convert("L" if recipe.channels == 1 else "RGB"), recipe.size, steps)
    pixels = np.asarray(image).reshape(image.height, image.width, recipe.channels)
    if steps.order == "bgr":
        pixels = pixels[:, :, ::-1]
    if recipe.dtype != np.uint8:
        mean, std = np.asarray(steps.mean, np.float32), np.asarray(steps.std, np.float32)
        pixels = ((pixels.astype(np.float32) / np.float32(steps.scale) - mean) / std).astype(recipe.dtype)
    return np.ascontiguousarray((pixels if recipe.last else pixels.transpose(2, 0, 1))[None])


def _decoded(path: Path) -> Image:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"{path}: images are read with Pillow, which is missing; pip install pillow") from error
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # a large image, an odd tag: it is read all the same
            image = ImageOps.exif_transpose(file)  # upright, as people see it
            image.load()
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    except Exception as error:  # each decoder has its own
        reason = one_line(str(error).replace(str(path), "the file"), 120) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({reason}); replace or remove it") from error
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: pixels of more than 16 bits are not read; save it with 8 bits a channel")
    return image


def _fitted(image: Image, size: Size | None, steps: Preprocess) -> Image:
    """The image in a size (height, width)."""
    height, width = image.height, image.width
    if size is None:
        return image if steps.resize is None else _scaled(image, steps.resize / min(height, width))
    if steps.fit == "pad":
        return _padded(_scaled(image, min(size[0] / height, size[1] / width), most=size), size)
    short = steps.resize or int(min(size) / steps.crop_pct + 1e-6)
    if steps.fit == "stretch":
        zoom = short / min(size)
        return _centre(_resized(image, tuple(max(round(n * zoom), n) for n in size)), size)
    return _centre(_scaled(image, max(short / min(height, width), size[0] / height, size[1] / width), size), size)


def _scaled(image: Image, factor: float, least: Size = (1, 1), most: Size | None = None) -> Image:
    """In its own proportions; rounding goes down, as torchvision's does, but never below `least`."""
    sides = [max(int(n * factor + 1e-6), low) for n, low in zip((image.height, image.width), least, strict=True)]
    return _resized(image, tuple(map(min, sides, most)) if most else tuple(sides))


def _resized(image: Image, size: tuple[int, ...]) -> Image:
    from PIL.Image import Resampling

    height, width = size
    return (
        image if (image.height, image.width) == (height, width) else image.resize((width, height), Resampling.BILINEAR)
    )


def _centre(image: Image, size: Size) -> Image:
    top, left = round((image.height - size[0]) / 2), round((image.width - size[1]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def _padded(image: Image, size: Size) -> Image:
    from PIL.Image import new

    canvas = new(image.mode, (size[1], size[0]), GREY if image.mode == "L" else (GREY, GREY, GREY))
    canvas.paste(image, ((size[1] - image.width) // 2, (size[0] - image.height) // 2))
    return canvas
