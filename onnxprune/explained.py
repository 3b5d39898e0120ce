"""The explanation of a tensor in words: for each axis its group, or what locks it and how the lock gets there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from onnxprune import words
from onnxprune.locked import blocker
from onnxprune.numerals import plural, tail
from onnxprune.words import ANONYMOUS

FEW = 6  # members, steps and locks that are shown unless all are asked for
NAME = 44  # characters of a name
ROLES = {
    "out": "output channels",
    "in": "input channels",
    "bias": "bias",
    "scale": "scale",
    "shift": "shift or statistics",
    "window": "window of the kernel",
}
MEMBERS = {"out": "  made by", "in": "  read by"}  # all other roles go along
ALONG = "  with"

Part = Mapping[str, Any]


class Line(NamedTuple):
    """A label, where it changes, and a text."""

    label: str
    text: str


def title(value: Part) -> str:
    """What the tensor is, and the nodes that make and read it."""
    shape = "of unknown shape; give --shape" if value["shape"] is None else f"[{', '.join(map(str, value['shape']))}]"
    said = [f"{value['kind']} {shape}"]
    if value["made_by"]:
        said.append(f"made by {_node(value['made_by'])}")
    readers = [_node(reader) for reader in value["read_by"]]
    if readers:
        said.append(f"read by {readers[0]}" + (f" and {plural(len(readers) - 1, 'more node')}" if readers[1:] else ""))
    return ", ".join(said)


def lines(value: Part, full: bool = False) -> Iterator[Line]:
    """Every axis of a tensor."""
    for axis in value["axes"]:
        yield Line(f"axis {axis['axis']}", _state(axis))
        if axis["size"] == 1:
            continue
        for group in axis["groups"][: None if full else FEW]:
            yield from _group(axis, group, full)
        for lock in axis["locks"][: None if full else FEW]:
            yield from _lock(axis, lock, full)
        for choice in axis["choices"]:
            yield from _choice(choice, full)


def indices(numbers: Sequence[int]) -> str:
    """`0-3, 7`."""
    runs = [
        [n for _, n in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])
    ]  # in a run, number and place are the same distance apart
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(shown[:FEW]) + (f" and {plural(len(shown) - FEW, 'more range')}" if shown[FEW:] else "")


def _state(axis: Part) -> str:
    if axis["size"] == 1:
        return "1: nothing to cut"
    role = ROLES.get(axis["role"], "")
    size = axis["size"] if isinstance(axis["size"], int) else f"open size {axis['size'] or ''}".strip()
    where = f", as {axis['reader']} reads it" if "reader" in axis else ""
    return f"{size} {role}".strip() + where + f": {_verdict(axis)}"


def _verdict(axis: Part) -> str:
    groups, locks = axis["groups"], axis["locks"]
    held = sum(len(lock["indices"] or ()) for lock in locks)
    if any(lock["indices"] is None for lock in locks) or held == axis["size"]:
        return "locked"
    if not groups:
        return "not locked, but no parameter goes with it"
    inside = "in a group" if len(groups) == 1 else f"in {len(groups)} groups"
    return f"{inside}; {held} of {axis['size']} indices locked" if held else inside


def _group(axis: Part, group: Part, full: bool) -> Iterator[Line]:
    units, width = group["units"], group["width"]
    each = "" if width == 1 else f" of {width} indices each"
    last = "; a group keeps one, so it stays" if units == 1 else ""
    yield Line("  group", f"{_name(words.title(group), full)}: {plural(units, 'unit')}{each}{last}")
    by_label: dict[str, list[Part]] = {label: [] for label in (*MEMBERS.values(), ALONG)}
    for member in group["members"]:
        by_label[MEMBERS.get(member["role"], ALONG)].append(member)
    for label, members in by_label.items():
        shown = members if full else members[:FEW]
        texts = [_member(member, width, full) for member in shown]
        texts += [f"... and {len(members) - len(shown)} more"] if members[len(shown) :] else []
        yield from _block(label, texts)


def _member(member: Part, width: int, full: bool) -> str:
    role = ROLES.get(member["role"], "")
    what = f" ({role})" if role and member["role"] not in MEMBERS else ""
    each = (
        f", {plural(member['width'], 'index').replace('indexs', 'indices')} a unit" if member["width"] != width else ""
    )
    # What has no name of its own is found by its node.
    node = f" of {_name(member['node'], full)}" if ANONYMOUS.match(member["value"]) else ""
    return f"{_place(member, full)}{node}{what}{each}"


def _lock(axis: Part, lock: Part, full: bool) -> Iterator[Line]:
    if lock["indices"] is not None:
        yield Line("  indices", indices(lock["indices"]))
    steps = lock["path"]
    texts = [_place(steps[0], full)] if steps[1:] else []
    through = [f"{_node(step, full)} -> {_place(step, full)}{_way(step)}" for step in steps[1:]]
    if len(through) > FEW and not full:
        through[FEW // 2 : -FEW // 2] = [f"... {len(through) - FEW} more steps (--all) ..."]
    yield from _block("  path", [*texts, *through])
    at = f", at {_name(lock['node'], full)}" if lock["node"] else ""
    yield Line("  locked by", f"{blocker(lock)}{at}")
    if "option" in lock:
        yield Line("  option", _opening(lock, full))


def _opening(lock: Part, full: bool) -> str:
    then = lock.get("then", {"locks": []})
    if not then["locks"]:
        return f"{lock['option']} opens it"
    after = then["locks"][0]
    at = f", at {_name(after['node'], full)}" if after["node"] else ""
    part = f" indices {indices(after['indices'])} stay locked:" if after["indices"] else " it stays locked:"
    return f"with {lock['option']}{part} {blocker(after)}{at}"


def _choice(choice: Part, full: bool) -> Iterator[Line]:
    ways = choice["ways"]
    if len(ways) < 2:
        return
    taken = next((way for way in ways if way["taken"]), None)
    texts = [f"{_node(choice, full)} can be cut in {len(ways)} ways"]
    texts += [f"taken: {_cut(taken, full)}"] if taken else []
    for way in ways:
        if not way["taken"]:
            why = f" ({way['blocked']})" if "blocked" in way else ""
            texts.append(f"{'not taken' if taken else 'not left'}: {_cut(way, full)}{why}")
    yield from _block("  choice", texts)


def _cut(way: Part, full: bool) -> str:
    """A way to cut: its name, or the axis that counts its units."""
    factor = way["name"].removeprefix("factor ")
    if factor == way["name"]:
        return str(way["name"])
    return f"the {factor} of {_place(way['cuts'][0], full)}"


def _way(step: Part) -> str:
    return f" ({step['way']})" if "way" in step else ""


def _place(part: Part, full: bool) -> str:
    return f"{_name(part['value'], full)} axis {part['axis']}"


def _node(part: Part, full: bool = True) -> str:
    return f"{part['op']} {_name(part['node'], full)}"


def _name(name: str, full: bool) -> str:
    return name if full else tail(name, NAME)


def _block(label: str, texts: list[str]) -> Iterator[Line]:
    for number, text in enumerate(texts):
        yield Line("" if number else label, text)
