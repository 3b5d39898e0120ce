"""Private uses: each reader of a shared vector has one under a name of its own, since exporters merge equal biases."""

from __future__ import annotations


def private(constant: str, node: int, slot: int) -> str:
    """The name under which input `slot` of a node (its index) reads a shared constant."""
    return f"{constant}@{node}:{slot}"


def reader(use: str) -> tuple[int, int]:
    """The node and the slot of a private use."""
    node, slot = use.rpartition("@")[2].split(":")
    return int(node), int(slot)
