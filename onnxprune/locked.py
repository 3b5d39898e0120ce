"""What is locked and why, summed up for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from onnxprune.numerals import count


class LockSum(NamedTuple):
    """All locks of one kind, and the nodes that lock so."""

    what: str
    params: int
    nodes: tuple[str, ...]
    option: str | None
    opened: int | None = None  # parameters that the option frees of locks, where that was tried

    @property
    def hint(self) -> str:
        """What the option does about it, as far as that was tried."""
        if self.option is None:
            return ""
        if self.opened in (None, self.params):
            return f"{self.option} {'may open' if self.opened is None else 'opens'} it"
        return f"{self.option} opens {count(self.opened)} of it" if self.opened else f"{self.option} is not enough"


def locks(record: Mapping[str, Any]) -> list[LockSum]:
    """What is locked, by operator and reason, largest first; a tensor counts once for each reason."""
    kinds: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for lock in record.get("locked", ()):
        kinds.setdefault((blocker(lock), lock.get("option")), []).append(lock)
    sums = []
    for (what, option), each in kinds.items():
        nodes = tuple(dict.fromkeys(lock["node"] or lock["value"] for lock in each))
        tried = any("opened" in lock for lock in each)
        opened = _elements(lock for lock in each if lock.get("opened")) if tried else None
        sums.append(LockSum(what, _elements(each), nodes, option, opened))
    return sorted(sums, key=lambda lock: lock.params, reverse=True)


def blocker(lock: Mapping[str, Any]) -> str:
    """The operator that locks, and why."""
    op, reason = lock["op"], lock["reason"]
    return str(reason) if op in reason else f"{op}: {reason}"


def _elements(locks: Iterable[Mapping[str, Any]]) -> int:
    tensors: dict[str, int] = {}
    for lock in locks:
        tensors[lock["value"]] = max(tensors.get(lock["value"], 0), lock["params"])
    return sum(tensors.values())
