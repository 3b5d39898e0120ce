"""Sentences without the padding that brought them to one length.

What a model makes of padding is nobody's answer, but it would be fitted to, and compared, like everything else; often
it is most of the data. Where tokens are an axis of open size, samples do without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.feeds import Feed, InputSpec, is_free


def without_padding(feed: Feed, inputs: Mapping[str, InputSpec]) -> Feed:
    """The samples without the places at their end that none of them shows.

    An input [samples, places] of ones and zeros, with "mask" in its name, tells which those are. Its second axis has to
    be open, and to have the same name in all inputs that are as long as it.

    Args:
        feed: the samples.
        inputs: what the model takes.
    """
    for name, spec in inputs.items():
        shape, mask = spec.shape, feed[name]
        if "mask" not in name.lower() or mask.ndim != 2 or mask.dtype.kind not in "iub" or not shape:
            continue
        axis, size = shape[1], mask.shape[1]
        shown = np.flatnonzero(mask.any(axis=0))
        if not is_free(axis) or not axis or not shown.size or shown[-1] + 1 == size or mask.max() > 1 or mask.min() < 0:
            continue
        places = {n: _places(feed[n].shape, s, size) for n, s in inputs.items()}
        if all((inputs[n].shape or ())[place] == axis for n, found in places.items() for place in found):
            short = slice(int(shown[-1]) + 1)
            return {n: value[(slice(None), *_cut(value.ndim, places[n], short))] for n, value in feed.items()}
    return feed


def _places(shape: tuple[int, ...], spec: InputSpec, size: int) -> list[int]:
    """The axes behind the samples that have this size."""
    return [place for place in range(1, len(shape)) if shape[place] == size and spec.shape]


def _cut(rank: int, places: list[int], short: slice) -> list[slice]:
    return [short if place in places else slice(None) for place in range(1, rank)]
