"""Blocks that a model can do without: what lies between two values of one shape, found from the graph alone.

- A branch: y = x + f(x). Without it, y = x. What else f reads (a mask, what an encoder gives) does not matter.
- A stage of a chain: y = g(x), where nothing but x goes in and nothing but y comes out.
- A run: blocks one after the other, such as the attention and the MLP of a layer.

A block is what nobody needs any more once y is made of x: there is nothing to match, and what others read stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxprune.graph import Graph, Node
from onnxprune.groups import Coupling
from onnxprune.rules.base import Linear

SUMS = frozenset({"Add", "Sum"})
SIZES = frozenset({"Shape", "Size"})  # say nothing of what a value is


@dataclass(frozen=True)
class Block:
    """What goes where a value is made of an earlier one instead.

    Attributes:
        entry, exit: the values; of one shape.
        axis: of the channels.
        nodes: indices of those that nobody needs then, besides the one that makes the exit.
        weighted: those among them that contract with weights.
        parts: how many blocks it is a run of.
    """

    entry: str
    exit: str
    axis: int
    nodes: frozenset[int]
    weighted: frozenset[int]
    parts: int = 1


def alive(graph: Graph, around: Mapping[str, str]) -> frozenset[int]:
    """The nodes that are needed where values are made of others: `around` has exit -> entry."""
    needed, found = set(graph.outputs), set()
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        found.add(node.index)
        skipped = [around[name] for name in node.outputs if name in around]
        needed.update(skipped or filter(None, (*node.inputs, *node.captures)))
    return frozenset(found)


def around(blocks: Iterable[Block]) -> dict[str, str]:
    """What `alive` takes, for models without some blocks."""
    return {block.exit: block.entry for block in blocks}


def blocks(coupling: Coupling, run: int = 1) -> list[Block]:
    """The blocks of a model, in the order of the nodes that make their exits.

    Args:
        coupling: the analysis.
        run: the most blocks in a row that are a block, too.
    """
    found = _Finder(coupling)
    branches = list(found.branches())
    stages = {block.weighted: block for block in found.stages()}  # of those with the same layers, the longest
    single = [*branches, *(stage for stage in stages.values() if not _told(stage, branches))]
    single.sort(key=found.place)
    rows = (single[first : first + n] for n in range(2, run + 1) for first in range(len(single) - n + 1))
    known = {block.weighted for block in single}
    runs = [r for row in rows if (r := found.run(row)) and r.weighted not in known]
    return sorted([*single, *runs], key=found.place)


def _told(stage: Block, branches: Sequence[Block]) -> bool:
    """Whether a stage lies inside a branch (what goes past it is there, too, even if no layer made it), or is a run."""
    inside = frozenset[int]().union(*(b.weighted for b in branches if b.weighted <= stage.weighted))
    return inside == stage.weighted or any(stage.weighted <= b.weighted for b in branches)


class _Finder:
    """Looks for blocks in one model."""

    def __init__(self, coupling: Coupling) -> None:
        self.graph = coupling.graph
        self.linears: dict[int, Linear] = {node.index: spec for node, spec in coupling.linears}
        self.whole = alive(self.graph, {})

    def place(self, block: Block) -> int:
        return self.graph.producer[block.exit].index

    def branches(self) -> Iterator[Block]:
        """Operands of sums that are computed from the other operand, or from what that is the sum of."""
        before: dict[str, str] = {}  # exit -> entry: the way that values take past all branches
        for node in self.graph.nodes:
            if node.op not in SUMS or node.domain or len(set(node.inputs)) != 2 or node.index not in self.whole:
                continue
            for entry in node.inputs:
                way = [entry]
                while way[-1] in before:
                    way.append(before[way[-1]])
                block = self._block(entry, node.outputs[0])
                if block and block.weighted & self._after(way, node.index):
                    before[block.exit] = entry
                    yield block
                    break

    def stages(self) -> Iterator[Block]:
        """What lies between two values through which everything goes that layers made."""
        narrow = list(self._narrow())
        for number, last in enumerate(narrow):
            here = self.graph.producer[last].index
            for first in reversed(narrow[:number]):
                between = range(self.graph.producer[first].index + 1, here + 1)
                if self.graph.shapes.get(first) == self.graph.shapes.get(last) and self.linears.keys() & between:
                    block = self._block(first, last)
                    if block and not self._others(block):
                        yield block
                    break

    def run(self, parts: list[Block]) -> Block | None:
        """Blocks in a row as one; None where others lie between them."""
        block = self._block(parts[0].entry, parts[-1].exit, len(parts))
        layers = frozenset().union(*(part.weighted for part in parts))
        return block if block and block.weighted == layers else None

    def _block(self, entry: str, exit_: str, parts: int = 1) -> Block | None:
        graph, maker = self.graph, self.graph.producer[exit_]
        shape = graph.shapes.get(entry)
        if not shape or shape != graph.shapes.get(exit_) or entry in graph.fixed or exit_ in graph.fixed:
            return None
        nodes = self.whole - alive(graph, {exit_: entry})
        own = maker.index in self.linears  # the node that makes the exit is replaced, too
        weighted = (nodes | {maker.index} if own else nodes) & self.linears.keys()
        axis = self._channels(exit_, weighted) if len(maker.outputs) == 1 else None
        return None if axis is None else Block(entry, exit_, axis, nodes, frozenset(weighted), parts)

    def _channels(self, value: str, layers: frozenset[int]) -> int | None:
        """The axis that runs over what the last layer makes; None where there is none."""
        shape = self.graph.shapes.get(value) or ()
        for index in sorted(layers, reverse=True):
            y = self.linears[index].y
            made = self.graph.shapes.get(y.value) or () if y.value else ()
            size = made[y.axis] if made else None
            if isinstance(size, int) and size in shape:
                same = len(made) == len(shape) and shape[y.axis] == size
                return y.axis if same else max(a for a, s in enumerate(shape) if s == size)
        return None

    def _after(self, values: list[str], stop: int) -> set[int]:
        """Nodes before `stop` that compute with any of the values."""
        known, found = set(values), set()
        for node in self.graph.nodes[:stop]:
            if not known.isdisjoint(node.inputs) or not known.isdisjoint(node.captures):
                known.update(filter(None, node.outputs))
                found.add(node.index)
        return found

    def _others(self, block: Block) -> set[str]:
        """What goes into a block besides its entry, but for constants and sizes."""
        nodes = [self.graph.nodes[index] for index in (*block.nodes, self.place(block))]
        reads = {name for node in nodes for name in _reads(node) if name in self.computed}
        return reads - {block.entry} - {name for node in nodes for name in node.outputs}

    @cached_property
    def computed(self) -> set[str]:
        """Inputs, and what is computed from them: not from their sizes alone."""
        found = set(self.graph.inputs)
        for node in self.graph.nodes:
            if node.op not in SIZES and not found.isdisjoint(_reads(node)):
                found.update(filter(None, node.outputs))
        return found

    def _narrow(self) -> Iterator[str]:
        """Values that are all there is of what layers made, once they are computed."""
        made, last = self._made()
        here: set[str] = set()
        for node in self.graph.nodes:
            here.difference_update([name for name in _reads(node) if last.get(name) == node.index])
            here.update(name for name in node.outputs if name in made and name in last)
            if len(here) == 1 and here <= set(node.outputs):
                yield next(iter(here))

    def _made(self) -> tuple[set[str], dict[str, int]]:
        """The values that layers made, and what was computed from them; where those are read last."""
        made: set[str] = set()
        last: dict[str, int] = {}
        for node in self.graph.nodes:
            reads = [name for name in _reads(node) if name in made]
            last |= dict.fromkeys(reads, node.index)
            if (reads or node.index in self.linears) and node.op not in SIZES:
                made.update(filter(None, node.outputs))
        return made, last | {name: len(self.graph.nodes) for name in self.graph.outputs if name in made}


def _reads(node: Node) -> tuple[str, ...]:
    return (*node.inputs, *node.captures)
