"""Criteria that look at what channels do in the contractions that read them; they need data."""

from __future__ import annotations

import numpy as np

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.criteria.reading import RESOLUTION, mean_square, over_consumers, second_of, terms_of
from onnxprune.curves import curves
from onnxprune.instrument import Want


@criterion("obs", sees=Want.PAIRS)
def obs(context: Context) -> Scores:
    """Error of the consumers without the unit, the others making up for it (Optimal Brain Surgeon, see `curves`)."""
    assert context.moments is not None
    scores = np.full(context.coupling.units, np.nan)
    none = np.full(context.coupling.units, np.nan)
    for curve in curves(context.coupling, context.readers, context.moments, none):
        if np.isfinite(curve.error).all() and curve.error[-1] > 0:
            scores[curve.order] = np.maximum.accumulate(np.diff(curve.error))
    return scores


@criterion("wanda", sees=Want.PAIRS)
def wanda(context: Context) -> Scores:
    """Absolute weights of the consumers times the norm of what they read (Sun et al. 2024, Wanda)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        absolute = np.abs(reader.weights).sum(axis=(1, 3)).ravel()
        return absolute * np.sqrt(mean_square(stats)), max(float(terms_of(reader, second_of(stats)).sum()), 0.0) ** 0.5

    return over_consumers(context, worth)


@criterion("flap", sees=Want.PAIRS)
def flap(context: Context) -> Scores:
    """Variance of what the consumers read times their squared weights (An et al. 2024, FLAP)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        squares = np.square(reader.weights).sum(axis=(1, 3)).ravel()
        power = float(terms_of(reader, stats.variance if stats.second is None else stats.covariance).sum())
        return squares * stats.variance, max(power, RESOLUTION * float(squares @ mean_square(stats)))

    return over_consumers(context, worth)


@criterion("reconstruction", sees=Want.PAIRS)
def reconstruction(context: Context) -> Scores:
    """Error of the consumers without the unit, nothing making up for it (He et al. 2017, Channel Pruning)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        terms = terms_of(reader, second_of(stats))
        unit = reader.units.reshape(terms.shape[:2])
        alone = terms if terms.ndim == 2 else (terms * (unit[:, :, None] == unit[:, None, :])).sum(axis=2)
        return alone.ravel(), float(terms.sum())

    return over_consumers(context, worth)
