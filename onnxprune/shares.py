"""The shares that a sweep goes through, from what the user writes: `0.9:0.3`, `0.9:0.3:4` or `0.9,0.75,0.5`."""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.errors import TargetError

COUNT = 7  # shares in a range that does not say how many
MOST = 100
DIGITS = 6


def shares_of(targets: str | Iterable[float]) -> tuple[float, ...]:
    """The shares that may remain, largest first.

    Args:
        targets: `FROM:TO` or `FROM:TO:COUNT`, both ends included; numbers with commas between; or an iterable of them.

    Raises:
        TargetError: it is none of these, a share is not in (0, 1] or there twice, or there are none.
    """
    text = targets if isinstance(targets, str) else ",".join(str(t) for t in targets)
    parts = text.split(":")
    found = _spaced(text, parts) if len(parts) > 1 else [_number(text, part) for part in parts[0].split(",")]
    shares = sorted((round(share, DIGITS) for share in found), reverse=True)
    if outside := [share for share in shares if not 0 < share <= 1]:
        raise _wrong(text, f"{outside[0]:g} is no share that may remain")
    if len(set(shares)) < len(shares):
        raise _wrong(text, "a share is there twice")
    return tuple(shares)


def _spaced(text: str, parts: list[str]) -> list[float]:
    if len(parts) > 3:
        raise _wrong(text, "there is a colon too many")
    first, last = (_number(text, part) for part in parts[:2])
    if len(parts) == 3 and not parts[2].strip().isdecimal():
        raise _wrong(text, f"{parts[2]!r} is no number of shares")
    count = int(parts[2]) if len(parts) == 3 else COUNT
    if not 2 <= count <= MOST:
        raise _wrong(text, f"a range has 2 to {MOST} shares")
    if first == last:
        raise _wrong(text, "the range has no length")
    return [first + (last - first) * n / (count - 1) for n in range(count)]


def _number(text: str, part: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise _wrong(text, f"{part!r} is no number") from None


def _wrong(text: str, why: str) -> TargetError:
    return TargetError(f"--targets {text}: {why}; write 0.9:0.3, 0.9:0.3:4 or 0.9,0.75,0.5, each in (0, 1]")
