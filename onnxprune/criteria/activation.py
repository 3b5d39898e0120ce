"""Criteria that look at what the consumers of channels read; they need data."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.curves import curves


@criterion("obs", sees_data=True)
def obs(context: Context) -> Scores:
    """Error of the consumers without the unit, the others making up for it (Optimal Brain Surgeon, see `curves`)."""
    assert context.moments is not None
    scores = np.full(context.coupling.units, np.nan)
    none = np.full(context.coupling.units, np.nan)
    for curve in curves(context.coupling, context.readers, context.moments, none):
        if np.isfinite(curve.error).all() and curve.error[-1] > 0:
            scores[curve.order] = np.maximum.accumulate(np.diff(curve.error))
    return scores
