"""Weighted sums of criteria, as `--criterion` takes them: `0.7*wanda+0.3*l1`."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from onnxprune.errors import OptionError

FORM = "write a name, or a sum as in 0.7*wanda+0.3*l1"


class Part(NamedTuple):
    """A criterion, and how much it counts."""

    weight: float
    name: str


def parts_of(text: object) -> tuple[Part, ...]:
    """Read `NAME` or `WEIGHT*NAME+WEIGHT*NAME+...`; a weight that is left out is 1.

    Raises:
        OptionError: it is neither, or a weight is no number above 0.
    """
    if not isinstance(text, str):
        raise OptionError(f"--criterion {text!r}: {FORM}")
    return tuple(_part(part, text) for part in text.split("+"))


def _part(part: str, text: str) -> Part:
    weight, star, name = part.strip().rpartition("*")
    if not name.strip():
        raise OptionError(f"--criterion {text}: the part {part.strip()!r} names no criterion; {FORM}")
    try:
        value = float(weight) if star else 1.0
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value > 0):
        raise OptionError(f"--criterion {text}: {weight.strip()!r} is no weight above 0; {FORM}")
    return Part(value, name.strip())
