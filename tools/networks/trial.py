"""One network, one cut, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import runtime, surgery
from onnxprune.coupling import couple
from onnxprune.errors import OnnxPruneError
from onnxprune.feeds import Feed
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.parity import compare
from onnxprune.rules.base import Dim, Options
from onnxprune.testing import OracleError, VacuousError, draw, oracle
from tools.networks.feeds import feeds

Outputs = list[dict[str, Any]]

# Why a network proves nothing.
NOTHING, UNSEEN, SILENT = "nothing can be cut", "no output changes with the cut", "outputs are zero or not finite"


@dataclass(frozen=True)
class Cut:
    """How a network is cut.

    Attributes:
        share: of each group that goes; None draws one for each.
        seed: for the units and the feeds.
        options: of the analysis.
        optimize: let ONNX Runtime optimise the graphs before they are compared.
    """

    share: float | None
    seed: int
    options: Options
    optimize: bool = False


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        failure: what is wrong; empty where nothing is.
        kind: the sort of failure.
        noise: whether rounding explains the difference.
        vacuous: why nothing is proved; empty where something is.
        ops: kinds of operators in the network, and those of them that lost indices.
    """

    failure: str = ""
    kind: str = ""
    noise: bool = False
    vacuous: str = ""
    ops: frozenset[str] = frozenset()
    cut_ops: frozenset[str] = frozenset()


def cut_of(seed: int) -> Cut:
    """A cut, drawn with the network."""
    random = Random(~seed)
    options = Options(align=random.choice([1, 1, 1, 2, 4]), head_dims=random.random() < 0.3)
    return Cut(random.choice([0.5, 0.8, None, None]), seed, options, random.random() < 0.2)


def attempt(model: ModelProto, cut: Cut) -> Trial:
    """Prove one cut of a network."""
    given, seen = feeds(model, cut.seed), []

    def evaluate(proto: ModelProto, fed: Sequence[Feed]) -> Outputs:
        seen.append(run(proto, fed, cut.optimize))
        return seen[-1]

    try:
        result = oracle(model, cut.share, cut.seed, options=cut.options, feeds=given, evaluate=evaluate, both=True)
    except VacuousError:
        return Trial(vacuous=SILENT)
    except OracleError as error:
        kind = "mismatch" if "is not" in str(error) and "valid" not in str(error) else "edit"
        noise = kind == "mismatch" and is_noise(model, cut, seen)
        return Trial(str(error), kind, noise)
    except OnnxPruneError as error:
        if cut.optimize and not runs(model, given):  # ONNX Runtime's own affair
            return attempt(model, replace(cut, optimize=False))
        return Trial(f"{type(error).__name__}: {error}", f"refusal {type(error).__name__}")
    except Exception as error:
        return Trial(f"{type(error).__name__}: {error} (a crash)", f"crash {type(error).__name__}")
    ops = frozenset(view.key for view in result.coupling.views)
    touched = touched_ops(result.coupling, result.removed)
    if not result.removed.any():
        return Trial(vacuous=NOTHING, ops=ops)
    if not differ(run(model, given, cut.optimize), seen[0]):
        return Trial(vacuous=UNSEEN, ops=ops, cut_ops=touched)
    return Trial(ops=ops, cut_ops=touched)


def runs(model: ModelProto, given: Sequence[Feed]) -> bool:
    """Whether ONNX Runtime runs a model with its optimisations."""
    try:
        run(model, given, True)
    except OnnxPruneError:
        return False
    return True


def run(model: ModelProto, given: Sequence[Feed], optimize: bool) -> Outputs:
    """The outputs of a model."""
    session = runtime.session(model, threads=1, optimize=optimize, arena=False)
    return [runtime.run(session, feed) for feed in given]


def differ(a: Outputs, b: Outputs) -> float:
    """The largest difference of two runs relative to the outputs' size, where it is no noise."""
    found = [o for x, y in zip(a, b, strict=True) for o in compare(x, y).outputs]
    return max((o.relative for o in found if not o.is_noise), default=0.0)


def touched_ops(coupling: Coupling, removed: NDArray[np.bool_]) -> frozenset[str]:
    """Kinds of operators with an input or an output that lost indices."""
    lost: dict[str, bool] = {}

    def loses(value: str) -> bool:
        if value not in lost:
            shape = coupling.graph.shapes.get(coupling.source.get(value, value)) or ()
            found = [coupling.unit_of(Dim(value, axis)) for axis in range(len(shape))]
            lost[value] = any(bool(removed[u[u >= 0]].any()) for u in found if u is not None)
        return lost[value]

    return frozenset(v.key for v in coupling.views if any(loses(n) for n in (*v.names, *v.node.outputs) if n))


def is_noise(model: ModelProto, cut: Cut, seen: Sequence[Outputs]) -> bool:
    """Whether the masked original differs as much from itself, with inputs moved in their last digits or without
    ONNX Runtime's optimisations (which round to integers where they find quantised weights), or other inputs show
    nothing.
    """
    coupling = couple(load(model), cut.options)
    removed = draw(coupling, cut.share, np.random.default_rng(cut.seed))
    masked, apart = surgery.mask(coupling, removed), max(differ(seen[0], other) for other in seen[1:])
    given = feeds(model, cut.seed)
    moved = [{k: v * np.float32(1 + 3e-7) if v.dtype == np.float32 else v for k, v in f.items()} for f in given]
    wanted = run(masked, given, cut.optimize)
    others = [run(masked, moved, cut.optimize), *([run(masked, given, False)] if cut.optimize else [])]
    if apart <= 10 * max(differ(wanted, other) for other in others):
        return True
    return not any(fails_again(model, cut, removed, cut.seed + 1000 * i) for i in (1, 2, 3))


def fails_again(model: ModelProto, cut: Cut, removed: NDArray[np.bool_], seed: int) -> bool:
    """Whether the same cut fails on other inputs: a value that was rounded the other way does so once."""
    evaluate = lambda proto, fed: run(proto, fed, cut.optimize)  # noqa: E731
    try:
        oracle(model, removed, options=cut.options, feeds=feeds(model, seed), evaluate=evaluate, both=True)
    except VacuousError:
        return False
    except OracleError:
        return True
    return False
