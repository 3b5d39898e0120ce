"""Numbers as people read them, and texts as wide as there is room."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: float) -> str:
    """25557032 -> `25.6 M`."""
    return _scaled(number, ("", "k", "M", "G", "T"))


def size(number: float) -> str:
    """Bytes: 102145325 -> `102 MB`."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB"))


def milliseconds(number: float) -> str:
    """A duration given in milliseconds, in the unit that suits it: `38 us`, `4.2 ms`, `1.3 s`."""
    if number < 0.995:
        return f"{_digits(number * 1e3)} us"
    return f"{_digits(number)} ms" if number < 999.5 else f"{_digits(number / 1e3)} s"


def percent(share: float) -> str:
    """0.4968 -> `49.7 %`."""
    return f"{100 * share:.1f} %"


def plural(number: int, word: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def tail(text: str, width: int) -> str:
    """The end of a text, which is where tensor names differ."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]


def _scaled(number: float, units: Sequence[str]) -> str:
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = f"{number:.0f}" if power == 0 else _digits(number)
    return f"{digits} {units[power]}".strip()


def _digits(number: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{number:.{2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0}f}"
