"""What every operator of a model takes, as ONNX Runtime's own profile of a whole run tells it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.calls import quiet, runner, timed
from onnxprune.feeds import Feed
from onnxprune.runtime import run, session

# Providers whose kernels are done when the profile says so; on others it tells when they were launched.
PER_NODE = frozenset({"cpu", "dnnl", "xnnpack", "acl"})
QUANTILE = 0.3  # of the runs: a busy neighbour makes some of them longer, none shorter
WARM = 1

_ENDS = "_kernel_time"
_BLOCKED = "_nchwc"  # a convolution in blocked layout is named after the value that it makes
_NUMBER = re.compile(r"@(\d+)@")


@dataclass(frozen=True, eq=False)
class Events:
    """The kernels of one run, in their order.

    Attributes:
        values: the value that each makes, or a name of one of the nodes fused into it makes; None: a helper that ONNX
            Runtime put in, such as a change of layout.
        ops: ONNX Runtime's operators.
        ms: milliseconds of each.
    """

    values: Sequence[str | None]
    ops: Sequence[str]
    ms: NDArray[np.float64]


def events(model: ModelProto, feed: Feed, provider: str, threads: int | None, runs: int, seconds: float) -> Events:
    """Run a model and read its profile.

    Args:
        model: in memory; its nodes are renamed in a copy.
        feed: what it is run on.
        provider, threads: where.
        runs: the most that are made after the first.
        seconds: after which no more are made; at least two are.

    Raises:
        ModelError, ProviderError: it does not load or run.
    """
    named = ModelProto()
    named.CopyFrom(model)
    for number, node in enumerate(named.graph.node):
        node.name = f"@{number}@"
    made = [next((v for v in node.output if v), "") for node in named.graph.node]
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        ready = session(named, provider, threads, config=quiet(threads), profile=Path(folder) / "profile")
        run(ready, feed)
        call = runner(ready, feed, provider)
        taken, done = 0.0, 0
        while done < 2 or (done < runs and taken < seconds * 1e3):
            taken += timed(call)
            done += 1
        lines = json.loads(Path(ready.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in lines if e.get("cat") == "Node" and e["name"].endswith(_ENDS)]
    each = len(kernels) // (done + WARM)
    last = kernels[len(kernels) - each * done :]
    times = np.array([e["dur"] for e in last], dtype=np.float64).reshape(done, each) / 1e3
    names = [e["name"].removesuffix(_ENDS) for e in last[:each]]
    ops = [e["args"].get("op_name", "") for e in last[:each]]
    known = {v for node in named.graph.node for v in node.output}
    return Events([_value(name, made, known) for name in names], ops, np.quantile(times, QUANTILE, axis=0))


def _value(name: str, made: Sequence[str], known: set[str]) -> str | None:
    if (number := _NUMBER.search(name)) is not None:
        return made[int(number[1])]
    value = name.removesuffix(_BLOCKED)
    return value if value in known else None
