"""Well-known families of networks in miniature: what exporters make of them is what tests prune.

Written for this project in plain torch, a few hundred thousand parameters each. The weights are random but
settled: norms have uneven scales, shifts and statistics, and activations keep their size from input to
output, so that a slip in surgery shows in the outputs. `ARCHITECTURES[name](width=1.0)` builds one, always
with the same weights.
"""

import torch
from torch import Tensor

from . import attention, branching, detectors, mobile, other, prediction, pyramids, queries, residual
from .common import ARCHITECTURES, INPUTS

__all__ = [
    "ARCHITECTURES",
    "attention",
    "branching",
    "detectors",
    "example_inputs",
    "mobile",
    "other",
    "prediction",
    "pyramids",
    "queries",
    "residual",
]


def example_inputs(name: str, batch: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs for one architecture."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in INPUTS[name])
