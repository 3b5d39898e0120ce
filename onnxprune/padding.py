"""Sentences without the padding that brought them to one length.

What a model makes of padding is nobody's answer, but it would be fitted to, and compared, like everything else; often
it is most of the data. Where tokens are an axis of open size, samples do without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.feeds import Array, Axis, Feed, InputSpec, is_free


def without_padding(feed: Feed, inputs: Mapping[str, InputSpec]) -> Feed:
    """The samples without the places at their end that none of them shows.

    Inputs [samples, places] of ones and zeros (integers or booleans) with "mask" in their names tell which those are:
    what one of them shows stays. Their second axis has to be open, and to have one name in all inputs that are as long.

    Args:
        feed: the samples.
        inputs: what the model takes.
    """
    shapes = {name: spec.shape or () for name, spec in inputs.items()}
    if any(len(shapes[name]) != feed[name].ndim for name in shapes):  # who knows which axes are open
        return feed
    shown: dict[tuple[Axis, int], NDArray[np.bool_]] = {}
    for name, shape in shapes.items():
        mask = feed[name]
        if "mask" in name.lower() and mask.ndim == 2 and shape[1] and is_free(shape[1]) and _tells(mask):
            key = shape[1], mask.shape[1]
            shown[key] = shown.get(key, np.zeros(key[1], dtype=bool)) | mask.any(axis=0)
    found = dict(feed)
    for (axis, size), seen in shown.items():
        places = [(n, p) for n in shapes for p in range(1, feed[n].ndim) if feed[n].shape[p] == size]
        if seen.any() and all(shapes[n][p] == axis for n, p in places):
            short = slice(int(np.flatnonzero(seen)[-1]) + 1)
            for n, p in places:
                found[n] = found[n][(*[slice(None)] * p, short)]
    return found


def _tells(mask: Array) -> bool:
    return mask.dtype.kind in "iub" and bool(mask.size) and mask.min() >= 0 and mask.max() <= 1
