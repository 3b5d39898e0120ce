"""The order of passes: what one made of the weights, a later one must not undo.

A pass says so of itself, by attributes of its class or by properties; without them anything may follow it, and it may
follow anything:

- `settles`: it gives weights a form (zeros, few bits) that cutting them or fitting them anew would undo;
- `alters`: it cuts weights, or fits them anew;
- `last`: what it writes (sparse tensors, say) no other pass keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import OptionError
from onnxprune.steps import Pass


class OrderError(OptionError):
    """A pass is in a place where it, or one before it, would be in vain; `number` counts from 0."""

    def __init__(self, message: str = "", number: int = 0) -> None:
        """*number* is that of the pass that is in the wrong place."""
        super().__init__(message)
        self.number = number


def check_order(passes: Sequence[Pass], names: Sequence[str]) -> None:
    """Refuse passes that undo what passes before them did.

    Args:
        passes: in their order.
        names: what they are called.

    Raises:
        OrderError: with what to do.
    """
    settled = ""
    for number, (step, name) in enumerate(zip(passes, names, strict=True)):
        if settled and getattr(step, "alters", False):
            raise OrderError(f"{name}: would undo what {settled} did to the weights; put it before that", number)
        if getattr(step, "settles", False):
            settled = name
        if getattr(step, "last", False) and number + 1 < len(passes):
            raise OrderError(f"{name}: writes what no pass after it keeps; put it at the end", number)
