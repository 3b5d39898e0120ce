"""Generated inputs that stand in for data: they excite a model more like images than white noise does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnxprune.feeds import Array, Feed, Inputs, InputSpec, Shapes, as_specs, choose_shapes, is_float, random_feeds

COUNT = 64
# Shares of the variance. The amplitudes of natural images fall with 1 / frequency; they also differ in brightness
# and have some grain.
SMOOTH, WHITE, BRIGHTNESS = 0.7, 0.1, 0.2
CONTRAST = 64.0  # of 8-bit pixels


def synthetic(
    inputs: Inputs,
    count: int = COUNT,
    seed: int = 0,
    shapes: Shapes | None = None,
    vocabulary: Mapping[str, int] | None = None,
) -> Iterator[Feed]:
    """Reproducible feeds, made one by one; free axes are as `choose_shapes` says.

    Images (4-D floats or uint8 with 1, 3 or 4 channels) get smooth noise and a little white noise in every channel:
    floats of about zero mean and unit variance, pixels from 0 to 255. Integers that are an index into a table are
    uniform over it. All else is as `random_feeds` draws it.

    Args:
        inputs: input name -> (dtype, shape).
        count: feeds to make.
        seed: the same seed, the same feeds.
        shapes: input name -> shape, where the model leaves it open.
        vocabulary: input name -> entries of the table that it is an index into, where that is known.

    Raises:
        ShapeError: as `choose_shapes` does.
    """
    specs = as_specs(inputs)
    chosen = choose_shapes(specs, shapes).shapes
    return (_feed(specs, chosen, vocabulary or {}, seed, index) for index in range(count))


def _feed(
    specs: Mapping[str, InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    vocabulary: Mapping[str, int],
    seed: int,
    index: int,
) -> Feed:
    rng = np.random.default_rng([seed, index])
    feed: Feed = {}
    for name, spec in specs.items():
        sides = _sides(name, spec, shapes[name])
        if sides is not None:
            feed[name] = _image(rng, spec.dtype, shapes[name], sides)
        elif spec.dtype.kind in "iu" and name in vocabulary and "mask" not in name.lower():
            top = min(vocabulary[name], np.iinfo(spec.dtype).max)
            feed[name] = np.asarray(rng.integers(0, top, shapes[name])).astype(spec.dtype)
    others = {name: spec for name, spec in specs.items() if name not in feed}
    own = int(rng.integers(2**32))
    feed |= random_feeds(others, own, shapes={name: shapes[name] for name in others})[0]
    return {name: feed[name] for name in specs}


def _sides(name: str, spec: InputSpec, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width among the axes of an image; None: it is no image."""
    if len(shape) != 4 or not (is_float(spec.dtype) or spec.dtype == np.uint8):
        return None
    words = " ".join([name, *(axis for axis in spec.shape or () if isinstance(axis, str))]).lower()
    if re.search("past|cache|seq|token|mask", words):
        return None
    if shape[1] in (1, 3, 4):
        return 2, 3
    return (1, 2) if shape[3] in (1, 3, 4) else None


def _image(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], sides: tuple[int, int]) -> Array:
    flat = tuple(1 if axis in sides else n for axis, n in enumerate(shape))
    smooth = _smooth(rng.standard_normal(shape, dtype=np.float32), sides)
    white, level = rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(flat, dtype=np.float32)
    image = np.sqrt(SMOOTH) * smooth + np.sqrt(WHITE) * white + np.sqrt(BRIGHTNESS) * level
    if dtype == np.uint8:
        image = np.clip(np.rint(127.5 + CONTRAST * image), 0, 255)
    return np.asarray(image).astype(dtype)


def _smooth(noise: Array, sides: tuple[int, int]) -> Array:
    """Noise whose amplitudes fall with 1 / frequency; zero mean and unit variance in every channel."""
    height, width = (noise.shape[axis] for axis in sides)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # the mean goes
    gain = 1 / frequency
    spectrum = np.fft.rfft2(noise, axes=sides) * (gain if sides == (2, 3) else gain[:, :, None])
    smooth = np.fft.irfft2(spectrum, s=(height, width), axes=sides)
    deviation = smooth.std(axis=sides, keepdims=True)
    return np.asarray(smooth / np.where(deviation > 0, deviation, 1)).astype(np.float32)
