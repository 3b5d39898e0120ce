"""Which nodes the wanted provider left to others, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fallback(bench: Mapping[str, Any]) -> list[str]:
    """The nodes that fell back, of each model that was measured; nothing where none did."""
    sides = [side for side in (bench["a"], bench["b"]) if side is not None]
    if not any(side["nodes"] for side in sides):
        unknown = "which nodes fell back to the CPU is not known: ONNX Runtime tells from 1.24 on"
        return [] if bench["provider"] == "cpu" else [unknown]
    if not any(side["fallback"] for side in sides):
        return []
    told = dict.fromkeys(_placed(side["nodes"], side["fallback"] or 0) for side in sides)
    return [f"nodes that fell back: {', then '.join(told)}"]


def _placed(nodes: Mapping[str, int], fallback: int) -> str:
    where = ", ".join(f"{name} {number}" for name, number in nodes.items())
    return f"{fallback} of {sum(nodes.values())} ({where})"
