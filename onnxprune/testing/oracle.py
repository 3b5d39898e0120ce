"""The oracle: a cut model is the masked original, and a minimal edit of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune import runtime, surgery
from onnxprune.coupling import couple
from onnxprune.edits import is_added
from onnxprune.feeds import Feed, random_feeds
from onnxprune.folding import folded
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.inlining import inlined
from onnxprune.parity import Parity, compare
from onnxprune.parity import tolerance as tolerance_of
from onnxprune.plan import Plan, make_plan, read_plan, removed_units
from onnxprune.rules.base import Dim, Options
from onnxprune.testing.masking import arrays, mask

Evaluate: TypeAlias = Callable[[ModelProto, Sequence[Feed]], list[dict[str, Any]]]


class OracleError(AssertionError):
    """A cut model that is not the masked original, or not a minimal edit of it."""


class VacuousError(OracleError):
    """All outputs are zero, or not finite: nothing was compared."""


@dataclass(frozen=True, eq=False)
class OracleResult:
    """What was proved, and on what.

    Attributes:
        coupling: the analysis.
        removed: [units], True where a unit went.
        plan: what was kept.
        model: the cut model.
        params: number of parameters before and after.
        parity: the comparison with the masked original.
    """

    coupling: Coupling
    removed: NDArray[np.bool_]
    plan: Plan
    model: ModelProto
    params: tuple[int, int]
    parity: Parity

    def choices(self, constant: str, axis: int = 0) -> list[int]:
        """The sizes (more than one) of the groups that a constant's axis belongs to, by their first index."""
        sizes: dict[int, int] = {}
        for use in self.coupling.uses[constant]:
            units = self.coupling.unit_of(Dim(use, axis))
            for group in self.coupling.group_of[units[units >= 0]] if units is not None else ():
                sizes[int(group)] = self.coupling.groups[group].units.size
        return [size for size in sizes.values() if size > 1]

    def can_cut(self, constant: str, axis: int = 0) -> bool:
        """Whether indices of a constant's axis can go."""
        return bool(self.choices(constant, axis))

    def reason(self, constant: str, axis: int = 0) -> str:
        """Why a constant's axis (or its first locked index) cannot be cut; empty where nothing is locked."""
        return next((e.reason for e in self.coupling.locked if (e.value, e.axis) == (constant, axis)), "")

    def shape(self, constant: str) -> tuple[int, ...]:
        """Shape of a constant in the cut model."""
        return arrays(self.model)[constant].shape

    def sizes(self, op: str, slot: int) -> list[list[int]]:
        """The constant that nodes of a kind read at an input slot, after the cut."""
        known = arrays(self.model)
        nodes = [n for n in self.model.graph.node if n.op_type == op]
        return [known[n.input[slot]].tolist() for n in nodes]


def oracle(
    model: ModelProto | str | Path,
    removed: float | NDArray[np.bool_] | None = None,
    seed: int = 0,
    align: int = 1,
    options: Options | None = None,
    evaluate: Evaluate | None = None,
    feeds: Sequence[Feed] | None = None,
    tolerance: float | None = None,
    both: bool = False,
) -> OracleResult:
    """Cut a model and prove that the result is the masked original, and a minimal edit of it.

    Args:
        model: the model or its path.
        removed: the share of each group that goes, or the units themselves; None draws a share for each group.
        seed: for the units and the feeds. At least one unit of each group stays.
        align: widths that the analysis should keep to.
        options: all options of the analysis; then `align` is not read.
        evaluate: runs a model on feeds; ONNX Runtime without optimisations by default.
        feeds: two random ones by default, of different sizes where the model leaves sizes open.
        tolerance: relative to the largest output; by default what the model's number formats allow.
        both: compare with the engine's own `surgery.mask`, too: the one that users' runs are checked with.

    Raises:
        OracleError: the first claim that does not hold.
    """
    coupling = couple(load(model), options or Options(align=align))
    original, _ = inlined(model if isinstance(model, ModelProto) else onnx.load(model))
    original, _ = folded(original, None)
    if removed is None or isinstance(removed, float | int):
        removed = draw(coupling, removed, np.random.default_rng(seed))
    plan = make_plan(coupling, removed)
    pruned = surgery.cut(coupling, plan, removed)
    _check_valid(original, pruned)
    _check_minimal(original, pruned)
    _check_replay(model, coupling, plan, removed, pruned)
    feeds = feeds or _feeds(original, seed)
    run = evaluate or _evaluate
    limit = tolerance or tolerance_of(original)
    outputs = run(pruned, feeds)
    worst = _worst(run(mask(original, plan, pruned), feeds), outputs, limit, "the masked original")
    if both:
        _worst(run(surgery.mask(coupling, removed), feeds), outputs, limit, "what surgery.mask makes")
    if len(worst.vacuous) == len(worst.outputs):
        raise VacuousError(f"nothing is proved: outputs {', '.join(worst.vacuous)} are zero throughout")
    return OracleResult(coupling, removed, plan, pruned, (_params(original), _params(pruned)), worst)


def prove(model: ModelProto | str | Path, rounds: int = 2, **options: Any) -> OracleResult:
    """The oracle at half of every group, then at `rounds` random shares; the first result."""
    result = oracle(model, 0.5, both=True, **options)
    for seed in range(1, rounds + 1):
        oracle(model, None, seed, **options)
    return result


def _worst(reference: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], limit: float, what: str) -> Parity:
    """The feed on which two models differ most; they must not."""
    worst = max((compare(a, b, limit) for a, b in zip(reference, outputs, strict=True)), key=lambda p: p.relative)
    if not worst.exact:
        notes = "; ".join(f"{o.name}: {o.note or f'{o.relative:.1e}'}" for o in worst.outputs)
        raise OracleError(f"the cut model is not {what}: {notes}")
    return worst


def draw(coupling: Coupling, share: float | None, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Units to remove: `share` of each group (a random one where None), never all of a group."""
    removed = np.zeros(coupling.units, dtype=bool)
    for group in coupling.groups:
        count = group.units.size
        gone = int(rng.integers(count)) if share is None else min(int(count * share), count - 1)
        removed[rng.permutation(group.units)[:gone]] = True
    many = [group.units for group in coupling.groups if group.units.size > 1]
    if many and not removed.any():
        removed[rng.choice(many[rng.integers(len(many))])] = True
    return removed


def _check_valid(original: ModelProto, pruned: ModelProto) -> None:
    """What ONNX says of the original must hold for the cut model."""
    checks: dict[str, Callable[[ModelProto], object]] = {
        "is not valid": onnx.checker.check_model,
        "has contradicting shapes": partial(onnx.shape_inference.infer_shapes, strict_mode=True, data_prop=True),
    }
    for what, check in checks.items():
        try:
            check(original)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError):
            continue
        try:
            check(pruned)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
            raise OracleError(f"the cut model {what}: {error}") from error


def _check_minimal(original: ModelProto, pruned: ModelProto) -> None:
    def say(what: str, a: object, b: object) -> None:
        if a != b:
            raise OracleError(f"the cut changes {what}: {a!r} became {b!r}")

    a, b = original.graph, pruned.graph
    made = [n for n in b.node if not is_added(n)]
    say("the nodes", [(n.name, n.op_type, *n.output) for n in a.node], [(n.name, n.op_type, *n.output) for n in made])
    say("the outputs", list(a.output), list(b.output))
    inputs = [i.name for i in a.input]
    new = {t.name for t in b.initializer} - set(inputs) if pruned.ir_version < 4 else set()  # these are inputs there
    say("the names of inputs", inputs, [i.name for i in b.input if i.name not in new])
    known = [t.name for t in a.initializer]
    say("the order of the initializers", known, [t.name for t in b.initializer][: len(known)])
    say("the declared values", [i.name for i in a.value_info], [i.name for i in b.value_info])
    for field in ("ir_version", "producer_name", "doc_string", "model_version", "domain"):
        say(field, getattr(original, field), getattr(pruned, field))
    for field in ("opset_import", "functions", "metadata_props"):
        say(field, list(getattr(original, field)), list(getattr(pruned, field)))


def _check_replay(
    model: ModelProto | str | Path, coupling: Coupling, plan: Plan, removed: NDArray[np.bool_], pruned: ModelProto
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan.to_dict()), encoding="utf-8")
        again = read_plan(path)
    fresh = couple(load(model), again.options)
    units = removed_units(fresh, again)
    if not np.array_equal(units, removed):
        raise OracleError(f"the plan removes {np.flatnonzero(removed)}; read again, {np.flatnonzero(units)}")
    if surgery.cut(fresh, again, units) != pruned:
        raise OracleError("replaying the plan gives another model")
    if coupling.units != fresh.units:
        raise OracleError("two analyses of one model differ")


def _params(model: ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type != TensorProto.INT64)


def _feeds(model: ModelProto, seed: int) -> list[Feed]:
    """Two feeds; where sizes are open, the second is larger."""
    feeds = []
    for number in range(2):
        shapes = {}
        for info in model.graph.input:
            dims = info.type.tensor_type.shape.dim
            free = [1 + number] + [12 + 4 * number] * len(dims)
            shapes[info.name] = tuple(d.dim_value or free[axis] for axis, d in enumerate(dims))
        held = {t.name for t in model.graph.initializer}
        given = {name: shape for name, shape in shapes.items() if name not in held}
        feeds += random_feeds(model, seed + number, 1, given)
    return feeds


def _evaluate(model: ModelProto, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    session = runtime.session(model, threads=1, optimize=False, arena=False)
    return [runtime.run(session, feed) for feed in feeds]
