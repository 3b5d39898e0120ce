"""What a model's contractions read on the data: the consumers of its channels, and statistics of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnxprune.calibrate import Statistics, calibrate
from onnxprune.consumers import Consumer, consumers
from onnxprune.feeds import Feed, rows
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.recall import recall
from onnxprune.rules.base import Dim


class Seen(NamedTuple):
    """Consumers, and statistics of the channels that they contract and that may go."""

    readers: list[Consumer]
    moments: dict[Dim, Statistics]


def observe(
    coupling: Coupling,
    batches: Sequence[Feed],
    engine: Engine,
    want: Want = Want.PAIRS,
    seed: int = 0,
    keep: bool = False,
) -> Seen:
    """Run a model over inputs and collect what criteria and repairs ask for.

    Args:
        coupling: the analysis.
        batches: its inputs.
        engine: where it runs.
        want: what is collected.
        seed: of the places that are sampled.
        keep: on disk, for the next time that this model meets these inputs: not worth it for one that is on its way.

    Raises:
        DataError, ModelError: as `calibrate`.
    """
    readers = list(consumers(coupling))
    wanted = {r.x: want for r in readers if r.mixes and (r.units >= 0).any()}
    collect = recall if keep else calibrate
    return Seen(readers, collect(coupling.graph, batches, wanted, engine, sum(map(rows, batches)), seed))
