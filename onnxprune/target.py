"""What must remain of a model: the targets of `--target`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf

from onnxprune.errors import TargetError

KINDS = ("channels", "params", "macs", "latency")
LOSSLESS = "lossless"
THRESHOLD = "threshold"
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Target:
    """What may remain: a share (0 < amount <= 1) of a cost, so many milliseconds, units with at least a score, or all
    that is needed ("lossless").
    """

    kind: str
    amount: float = 1.0
    absolute: bool = False

    def __str__(self) -> str:
        """As it is written on the command line."""
        return self.kind if self.kind == LOSSLESS else f"{self.kind}={self.amount:g}{'ms' if self.absolute else ''}"

    def bound(self, before: float) -> float:
        """What may remain of a cost of which there was `before`."""
        return self.amount if self.absolute else self.amount * before

    def cuts(self, before: float) -> bool:
        """Whether less than `before` may remain."""
        return self.amount < (before if self.absolute else 1)


def automatic(text: object) -> str | None:
    """What the smallest model is to have least of, where that is asked for (`macs=auto`); None: it is not."""
    kind, _, amount = text.partition("=") if isinstance(text, str) else ("", "", "")
    return kind if amount == "auto" and kind in KINDS else None


def parse_target(text: object) -> Target:
    """Read `macs=0.5`, `params=0.5`, `channels=0.5`, `latency=0.5`, `latency=5ms`, `threshold=0.5` or `lossless`.

    Raises:
        TargetError: it is none of these.
    """
    kind, _, amount = text.partition("=") if isinstance(text, str) else ("", "", "")
    if text == LOSSLESS:
        return Target(LOSSLESS)
    if automatic(text):
        raise TargetError(f"--target {text}: is searched for by `prune`, with --max-drop; write a share here")
    unit = next((u for u in MILLISECONDS if kind == "latency" and amount.endswith(u)), "")
    try:
        value = float(amount.removesuffix(unit)) * MILLISECONDS.get(unit, 1.0)
    except ValueError:
        value = float("nan")
    most = float("inf") if unit or kind == THRESHOLD else 1.0
    if kind not in (*KINDS, THRESHOLD) or not 0 < value <= most or isinf(value):
        choices = ", ".join(f"{kind}=X" for kind in KINDS)
        raise TargetError(
            f"--target {text}: write {choices} with 0 < X <= 1 (the share that may remain) or X = auto, latency=5ms, "
            "threshold=X (the least score that stays), or lossless"
        )
    return Target(kind, value, bool(unit))
