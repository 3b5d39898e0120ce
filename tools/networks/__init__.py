"""Random networks over every kind of operator that has a rule; `tools/fuzz.py` prunes thousands of them."""

from tools.networks import (
    attention,
    by_index,
    channels,
    fused,
    layers,
    mixing,
    places,
    pointwise,
    quantised,
    stateful,
    tokens,
)
from tools.networks.feeds import feeds
from tools.networks.grower import KINDS, STEPS, Grower, grow

__all__ = ["KINDS", "STEPS", "Grower", "attention", "by_index", "channels", "feeds", "fused", "grow", "layers"]
__all__ += ["mixing", "places", "pointwise", "quantised", "stateful", "tokens"]
