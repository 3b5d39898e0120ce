"""Random networks over every kind of operator that has a rule; `tools/random_graphs.py` prunes thousands of them."""

from tools.networks import channels, layers, mixing, pointwise
from tools.networks.grower import Grower, grow

__all__ = ["Grower", "channels", "grow", "layers", "mixing", "pointwise"]
