"""The lossless cut with widths that runtimes like: of what could go, as much stays as fills the last block."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.groups import Coupling
from onnxprune.lossless.reading import Mask
from onnxprune.lossless.search import lossless
from onnxprune.problem import Limits, problem_of


def aligned(coupling: Coupling, align: int, keep: Mask | None = None) -> tuple[Mask, dict[str, Any]]:
    """What `lossless` finds, less what would leave a width that is no multiple of `align`.

    What has to stay needs what it is computed from, so this is repeated until all widths are multiples (or whole).

    Args:
        coupling: the analysis.
        align: widths stay multiples of this; 1: any will do.
        keep: [units], True where a unit has to stay.

    Returns:
        As `lossless`.

    Raises:
        OptionError: there is no such alignment.
    """
    problem = problem_of(coupling, np.zeros(coupling.units), Limits(align))
    stays = np.zeros(coupling.units, dtype=bool) if keep is None else keep.copy()
    while True:
        removed, folds = lossless(coupling, stays)
        gone = np.bincount(coupling.group_of[removed], minlength=len(problem.count))
        width = np.minimum(-(-(problem.count - gone) // problem.step) * problem.step, problem.count)
        more = width - (problem.count - gone)
        if not more.any():
            return removed, folds
        units = np.flatnonzero(removed)
        units = units[np.argsort(coupling.group_of[units], kind="stable")]
        group = coupling.group_of[units]
        place = np.arange(units.size) - np.searchsorted(group, group)  # of each among those of its group
        stays[units[place < more[group]]] = True
