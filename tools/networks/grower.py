"""Random growth: the registry of steps, the pool of live values of several kinds, and the networks they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from random import Random
from typing import Any, NamedTuple

import onnx

from tools.networks.spelling import Speller

# The kinds of values, and the axis of their channels.
KINDS = {
    "map": 1,  # [N, C, H, W]
    "line": 1,  # [N, C, L]
    "tokens": 2,  # [B, S, C]
    "sequence": 2,  # [S, B, C], as recurrent layers read it
    "heads": 1,  # [B, H, S, D]
    "flat": 1,  # [B, C]
}
RANKS = {"map": 4, "line": 3, "tokens": 3, "sequence": 3, "heads": 4, "flat": 2}
LARGEST, WIDEST = 1024, 48  # elements of a value, and indices of an axis

Step = Callable[["Grower", str], str | None]


class Entry(NamedTuple):
    """A way to grow: what it takes and gives, and where it may be used."""

    run: Step
    weight: int
    takes: tuple[str, ...]
    gives: str | None
    since: int
    until: int
    tag: str


STEPS: list[Entry] = []


def step(
    weight: int = 2, *takes: str, gives: str | None = None, since: int = 1, until: int = 99, tag: str = ""
) -> Callable[[Step], Step]:
    """Register a way to grow; it may return None where it does not fit.

    Args:
        weight: how often it is drawn.
        takes: kinds of values that it starts from; all where none is named.
        gives: the kind that it makes, unless that is the kind it took.
        since: the first opset that has its operators.
        until: the last one.
        tag: only in networks of this flavour.
    """

    def add(function: Step) -> Step:
        STEPS.append(Entry(function, weight, takes or tuple(KINDS), gives, since, until, tag))
        return function

    return add


class Grower(Speller):
    """A builder that draws, with the pool of what it has made."""

    def __init__(self, random: Random, opset: int | None = None) -> None:
        super().__init__(random, opset or random.choice([9, 11, *range(13, 25), 13, 17, 17, 18, 21, 23]))
        self.live: list[tuple[str, str]] = []
        self.kind = ""  # of the value that a step is given
        # Rounding to few bits hides small mistakes: networks of these flavours are few.
        self.tags = {"", *random.choices(["", "quant", "half"], [80, 15, 5])}
        if random.random() < 0.4:
            self.tags.add("fused")

    def chance(self, share: float) -> bool:
        """True that often."""
        return self.random.random() < share

    def pick(self, *choices: Any) -> Any:
        """One of several, whatever they are."""
        return self.random.choice(choices)

    def divisor(self, n: int, least: int = 2) -> int | None:
        """A divisor of n, from `least` on."""
        found = [d for d in range(least, n + 1) if n % d == 0]
        return self.random.choice(found) if found else None

    def width(self) -> int:
        """A number of channels; those with many divisors come more often."""
        return self.random.choice([1, 2, 3, 4, 4, 4, 5, 6, 6, 8, 8, 8, 12, 12, 16])

    def channels(self, x: str) -> int:
        """The number of channels of the value that a step is given."""
        return self.shape(x)[KINDS[self.kind]]

    def along(self, x: str, size: int | None = None) -> tuple[int, ...]:
        """The shape of a constant along the channels of the value that a step is given."""
        rank, axis = len(self.shape(x)), KINDS[self.kind]
        tail = (1,) * (rank - axis - 1)
        return (size or self.shape(x)[axis], *tail)

    def fitting(self, fits: Callable[[str], bool], kind: str | None = None) -> str | None:
        """A live value of the same kind (or another) that fits."""
        found = [v for k, v in self.live if k == (kind or self.kind) and fits(v)]
        return self.random.choice(found) if found else None

    def alike(self, x: str) -> str | None:
        """A live value with the same sizes."""
        return self.fitting(lambda v: self.pairs(v) == self.pairs(x))

    def keep(self, kind: str, value: str) -> bool:
        """Take a value into the pool, unless it is too large to go on with."""
        shape = self.shape(value)
        assert len(shape) == RANKS[kind], f"{kind} {value} has the shape {shape}"
        fits = all(0 < s <= WIDEST for s in shape) and prod(shape[1:]) <= LARGEST
        if fits:
            self.live.append((kind, value))
        return fits

    def apply(self, entry: Entry, kind: str, x: str) -> bool:
        """Take a step; whether it led anywhere."""
        self.kind = kind
        graph, live = self.graph, list(self.live)
        known = {shape: list(names) for shape, names in self._weights.items()}
        fields = [graph.node, graph.initializer, graph.value_info]
        counts = [len(field) for field in fields]
        made = entry.run(self, x)
        if made is not None and self.keep(entry.gives or kind, made):
            return True
        gone = [name for node in graph.node[counts[0] :] for name in node.output]
        self.forget(*gone, *(t.name for t in graph.initializer[counts[1] :]))
        for field, count in zip(fields, counts, strict=True):  # nobody would read it
            del field[count:]
        self.live, self._weights = live, known
        return False


def possible(g: Grower, kind: str) -> list[Entry]:
    """The steps that a network may take from a kind of value."""
    return [e for e in STEPS if kind in e.takes and e.tag in g.tags and e.since <= g.opset <= e.until]


def start(g: Grower, kinds: Sequence[str] = ()) -> None:
    """One input, or two, and a first layer behind each."""
    opened = g.random.choice(["", "", "", "batch", "batch", "all"])
    g.open = bool(opened)
    batch = g.pick(1, 2, 2, 3, 4) if not opened else (2, 3)
    for name in ["x", "z"][: 2 if g.chance(0.3) else 1]:
        kind = g.random.choice(kinds or ["map", "map", "map", "tokens", "tokens", "line", "flat"])
        g.kind = kind
        g.keep(kind, g.stem(name, kind, batch, opened == "all"))


def grow(
    random: Random, steps: int | None = None, size: int = 12, kinds: Sequence[str] = (), opset: int | None = None
) -> onnx.ModelProto:
    """A random network of at most `size` steps; `steps` cuts its growth short, `kinds` are those it starts from."""
    g = Grower(random, opset)
    start(g, kinds)
    for _ in range(min(random.randint(3, size), steps if steps is not None else size)):
        kind, x = random.choice(g.live[-3:])
        ways = possible(g, kind)
        g.apply(random.choices(ways, [e.weight for e in ways])[0], kind, x)
    return g.model(*tails(g))


def tails(g: Grower) -> list[str]:
    """Outputs: a last layer behind each of a few ends, and now and then a value as it is."""
    read = {name for node in g.graph.node for name in node.input}
    ends = [entry for entry in g.live[:-1] if entry[1] not in read]
    if g.chance(0.15):
        ends = g.live[:-1]  # the same value may be read again
    outputs = [g.head(*entry) for entry in [g.live[-1], *g.random.sample(ends, min(len(ends), g.pick(1, 2, 4, 4)))]]
    if g.chance(0.05):
        outputs.append(g.random.choice(g.live)[1])
    return sorted({v for v in outputs if v not in {i.name for i in g.graph.input}})
