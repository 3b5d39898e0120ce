"""The smallest model whose loss stays within what the user allows: bisection on the share that may remain.

Every trial is a whole run (choice, cut, repair, proof) that is judged on the same held-out samples or by the same
metric, and shares with the others what does not depend on the share. The bisection assumes that who keeps less loses
more, and says so where its own trials contradict that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from onnxprune.errors import GateError, TargetError
from onnxprune.gates import loss

T = TypeVar("T")
Record = Mapping[str, Any]

TRIALS = 6  # which find the share to 1/64


@dataclass(frozen=True)
class Trial:
    """A share that was tried.

    Attributes:
        share: that might remain.
        drop: the loss, as the gate counts it; None: no model was made.
        passed: whether the gate let it through.
        error: why no model was made.
    """

    share: float
    drop: float | None
    passed: bool
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Search(Generic[T]):
    """What passed with the smallest share, and all trials in the order in which they were made."""

    best: T
    share: float
    what: str
    trials: tuple[Trial, ...]

    def to_dict(self, kind: str, bound: float) -> dict[str, Any]:
        """For the record."""
        return said(kind, bound, self.what, self.trials) | {"share": self.share}


def smallest(
    name: str, kind: str, bound: float, attempt: Callable[[float], tuple[T, Record]], tell: Callable[[str], None]
) -> Search[T]:
    """Bisect.

    Args:
        name: of the model, for messages.
        kind: what the share is of.
        bound: the most that may be lost.
        attempt: makes a model of a share; raises GateError (with the record) where it loses more than `bound`.
        tell: told about progress.

    Raises:
        GateError: not even the mildest trial passes; its record has the figures of that trial and all trials.
        TargetError: no trial made a model.
    """
    low, high, step = 0.0, 1.0, 2.0**-TRIALS
    trials, best, failed = list[Trial](), None, None
    what, reason = "", None
    while high - low > step:
        share = (low + high) / 2
        tell(f"trial {len(trials) + 1}/{TRIALS}: {kind}={share:g}")
        try:
            made, record = attempt(share)
        except GateError as error:
            what, amount = loss(error.record)
            trials.append(Trial(share, amount, False))
            low, failed = share, error
        except TargetError as error:
            trials.append(Trial(share, None, False, str(error)))
            low, reason = share, error
        else:
            what, amount = loss(record)
            trials.append(Trial(share, amount, True))
            high, best = share, (made, share)
    if best is not None:
        return Search(*best, what, tuple(trials))
    if failed is None:
        assert reason is not None
        raise reason
    mildest = max((t for t in trials if t.drop is not None), key=lambda t: t.share)
    line = f"{name}: not even {kind}={mildest.share:.3g} keeps {what} within --max-drop {bound:g} ({mildest.drop:.4f})"
    raise GateError(f"{line}; nothing was written", {**failed.record, "search": said(kind, bound, what, trials)})


def said(kind: str, bound: float, what: str, trials: tuple[Trial, ...] | list[Trial]) -> dict[str, Any]:
    """The trials for the record: `monotone` says whether less always lost more."""
    drops = [t.drop for t in sorted(trials, key=lambda t: t.share) if t.drop is not None]
    monotone = all(smaller >= larger for smaller, larger in pairwise(drops))
    return {"of": kind, "max_drop": bound, "what": what, "monotone": monotone, "trials": [asdict(t) for t in trials]}
