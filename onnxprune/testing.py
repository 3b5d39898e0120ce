"""Tiny graph builders and the oracle: for our tests, and for people who add rules.

    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 8, name="w1")
    y = b.op("Relu", y)
    result = oracle(b.model(b.conv(y, 4, name="w2")))
    assert result.can_cut("w1", axis=0)

The oracle removes units at random, writes zeros into the original wherever the plan drops a slice (from the plan
alone: it shares no code with the surgery), and compares the two models in ONNX Runtime.
"""

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
from numpy.typing import ArrayLike, NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune import runtime, surgery
from onnxprune.coupling import couple
from onnxprune.feeds import Feed, random_feeds
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.parity import Parity, compare
from onnxprune.parity import tolerance as tolerance_of
from onnxprune.plan import Plan, make_plan, read_plan, removed_units
from onnxprune.rules.base import Dim, Options
from onnxprune.shapes import shell_of

Operand: TypeAlias = ArrayLike | None  # a value's name; an array or number (an initializer is made); None: left out
Evaluate: TypeAlias = Callable[[ModelProto, Sequence[Feed]], list[dict[str, Any]]]


class OracleError(AssertionError):
    """A cut model that is not the masked original, or not a minimal edit of it."""


class VacuousError(OracleError):
    """All outputs are zero, or not finite: nothing was compared."""


# Graphs


class Builder:
    """Collects nodes and initializers with seeded random weights."""

    def __init__(self, opset: int = 17, seed: int = 0, ir_version: int | None = None, **domains: int) -> None:
        """`domains`: versions of further operator sets. Before IR version 4 initializers are inputs, too."""
        self.rng = np.random.default_rng(seed)
        self.imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
        self.ir_version = ir_version or max(8, helper.find_min_ir_version_for(self.imports[:1]))
        self.graph = GraphProto(name="tiny")
        self.functions: list[onnx.FunctionProto] = []
        self._types: dict[str, onnx.TypeProto] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def input(self, name: str, *shape: int | str, dtype: Any = np.float32) -> str:
        """A graph input; strings are open sizes."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, value: ArrayLike, name: str | None = None) -> str:
        """An initializer; Python numbers become float32 or int64."""
        array = np.asarray(value)
        if array.dtype == np.float64 and not isinstance(value, np.ndarray):
            array = array.astype(np.float32)
        name = name or f"c{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, name: str | None = None, fan: int | None = None) -> str:
        """A random initializer that keeps the scale of what it is multiplied with; `fan`: how many are summed up."""
        fan = fan or max(1, int(np.prod(shape[1:])))
        return self.const((self.rng.standard_normal(shape) / fan**0.5).astype(np.float32), name)

    def near_one(self, *shape: int, name: str | None = None) -> str:
        """A random initializer between 0.5 and 1.5: a scale, a variance, a divisor."""
        return self.const(self.rng.uniform(0.5, 1.5, shape).astype(np.float32), name)

    def ops(self, kind: str, *inputs: Operand, outputs: int | Sequence[str] = 1, **attrs: Any) -> list[str]:
        """A node with several outputs; its operator may be written `domain::Kind`."""
        domain, _, op = kind.rpartition("::")
        index = len(self.graph.node)
        names = [f"{op}_{index}_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        read = ["" if x is None else x if isinstance(x, str) else self.const(x) for x in inputs]
        node = helper.make_node(op, read, names, name=f"{op}_{index}", domain=domain, **attrs)
        self.graph.node.append(node)
        self._shapes.clear()
        return names

    def op(self, kind: str, *inputs: Operand, name: str | None = None, **attrs: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, outputs=1 if name is None else [name], **attrs)[0]

    def declare(self, value: str, *shape: int | str, dtype: Any = np.float32) -> str:
        """Say the shape of a value that inference cannot find."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.graph.value_info.append(helper.make_tensor_value_info(value, kind, shape))
        return value

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value, by inference; an open size is 0."""
        if value not in self._shapes:
            shell = shell_of(self._proto(self._whole()), {}, "tiny").graph
            infos = [*shell.value_info, *shell.input]
            self._shapes = {t.name: tuple(t.dims) for t in shell.initializer}
            self._shapes |= {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in infos}
            self._types = {i.name: i.type for i in infos}
        return self._shapes[value]

    def conv(self, x: str, out: int, kernel: int = 3, name: str | None = None, bias: bool = True, **attrs: Any) -> str:
        """A convolution over all axes from 2 on; padded to keep the size unless told otherwise."""
        rank, cin = len(self.shape(x)) - 2, self.shape(x)[1]
        if "auto_pad" not in attrs:
            attrs.setdefault("pads", [kernel // 2] * (2 * rank))
        w = self.weight(out, cin // attrs.get("group", 1), *[kernel] * rank, name=name)
        return self.op("Conv", x, w, *([self.weight(out, name=name and f"{name}.bias")] if bias else []), **attrs)

    def gemm(self, x: str, out: int, name: str | None = None, bias: bool = True) -> str:
        """A Gemm with the weight [out, in], as torch exports linear layers."""
        w = self.weight(out, self.shape(x)[1], name=name)
        b = [self.weight(out, name=name and f"{name}.bias")] if bias else []
        return self.op("Gemm", x, w, *b, transB=1)

    def batch_norm(self, x: str, name: str | None = None) -> str:
        """A BatchNormalization with random statistics, named `name.scale`, `.bias`, `.mean` and `.var`."""
        c = self.shape(x)[1]
        scale, bias, mean, var = (name and f"{name}.{part}" for part in ("scale", "bias", "mean", "var"))
        shifts = self.weight(c, name=bias), self.weight(c, name=mean)
        return self.op("BatchNormalization", x, self.near_one(c, name=scale), *shifts, self.near_one(c, name=var))

    def model(self, *outputs: str) -> ModelProto:
        """The model with these outputs."""
        graph = self._whole()
        for name in outputs:
            self.shape(name)
            graph.output.add(name=name, type=self._types[name])
        return self._proto(graph)

    def _whole(self) -> GraphProto:
        graph = GraphProto()
        graph.CopyFrom(self.graph)
        if self.ir_version < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer)
        return graph

    def _proto(self, graph: GraphProto) -> ModelProto:
        return helper.make_model(
            graph, opset_imports=self.imports, functions=self.functions, ir_version=self.ir_version
        )


def sandwich(
    middle: Callable[[Builder, str], str], channels: int = 8, opset: int = 17, spatial: Sequence[int | str] = (6, 6)
) -> ModelProto:
    """x -> conv `w1` -> `middle` -> conv `w2` (a Gemm where `middle` leaves a matrix) -> y; no biases."""
    b = Builder(opset)
    y = middle(b, b.conv(b.input("x", 2, 3, *spatial), channels, name="w1", bias=False))
    return b.model(close(b, y))


def close(b: Builder, y: str, out: int = 4, name: str = "w2") -> str:
    """A last layer that contracts axis 1."""
    return b.gemm(y, out, name, bias=False) if len(b.shape(y)) == 2 else b.conv(y, out, 1, name, bias=False)


# The oracle


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
    original = model if isinstance(model, ModelProto) else onnx.load(model)
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


# Where integer ops read a weight, and its zero points with the axis along which those run (None: an attribute).
_ZERO_POINTS: dict[tuple[str, int], tuple[int, int | None]] = {
    ("DequantizeLinear", 0): (2, None),
    ("QLinearConv", 3): (5, 0),
    ("ConvInteger", 1): (3, 0),
    ("QLinearMatMul", 3): (5, -1),
    ("MatMulInteger", 1): (3, -1),
    ("DynamicQuantizeMatMul", 1): (3, -1),
    ("MatMulIntegerToFloat", 1): (5, -1),
}
# Constants that are divided by, or that say how others are to be read: zero would not mean "gone".
_NO_ZERO = frozenset(
    {("Div", 1), ("Mod", 1), ("Pow", 0), ("Reciprocal", 0), ("Log", 0), ("BatchNormalization", 4)}
    | {(f"{kind}Linear", slot) for kind in ("Quantize", "Dequantize") for slot in (1, 2)}
    | {(f"QLinear{kind}", slot) for kind in ("Conv", "MatMul") for slot in (1, 2, 4, 5, 6, 7)}
    | {(op, slot) for (op, _), (slot, _) in _ZERO_POINTS.items()}
    | {("DynamicQuantizeMatMul", 2), ("MatMulIntegerToFloat", 3)}
)
_PASS = frozenset(["Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Sqrt", "Abs"])
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_WHOLE = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32})


def mask(original: ModelProto, plan: Plan, pruned: ModelProto) -> ModelProto:
    """The original with zeros in every slice that the plan drops; nodes read split copies where the cut model does."""
    model = ModelProto()
    model.CopyFrom(original)
    held = tensors(model)
    for copy, source in plan.splits.items():
        model.graph.initializer.add().CopyFrom(held[source])
        model.graph.initializer[-1].name = copy
    for node, cut_node in zip(model.graph.node, pruned.graph.node, strict=True):
        for slot, name in enumerate(cut_node.input[: len(node.input)]):
            if name in plan.splits:
                node.input[slot] = name
    for tensor in tensors(model).values():
        axes = plan.kept.get(tensor.name, {})
        fill = _fill(model, tensor)
        if axes and fill is not None:
            array = np.array(numpy_helper.to_array(tensor))
            for axis, kept in axes.items():
                gone = np.setdiff1d(np.arange(array.shape[axis]), kept)
                rows = np.moveaxis(array, axis, 0)
                rows[gone] = np.moveaxis(np.broadcast_to(fill, array.shape), axis, 0)[gone]
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    """Every constant by name: initializers, and the tensors of Constant nodes (which take the output's name)."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            if node.attribute[0].name != "value":
                array = np.asarray(helper.get_attribute_value(node.attribute[0]))
                array = array.astype(np.float32) if array.dtype.kind == "f" else array
                node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
            node.attribute[0].t.name = node.output[0]
            found[node.output[0]] = node.attribute[0].t
    return found


def arrays(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Every constant of a model."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors(copy).items()}


def _fill(model: ModelProto, tensor: TensorProto) -> NDArray[Any] | None:
    """What zero is in a constant: 0, or its zero points, laid out to broadcast; None where nothing is."""
    names, dims = {tensor.name}, len(tensor.dims)
    fill = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type))
    for node in model.graph.node:
        slots = [slot for slot, name in enumerate(node.input) if name in names]
        if any((node.op_type, slot) in _NO_ZERO for slot in slots):
            return None
        if slots and node.op_type in _PASS:
            names.add(node.output[0])
        for slot in slots:
            place, axis = _ZERO_POINTS.get((node.op_type, slot), (len(node.input), None))
            if place < len(node.input) and node.input[place]:
                points = numpy_helper.to_array(tensors(model)[node.input[place]])
                along = next((a.i for a in node.attribute if a.name == "axis"), 1) if axis is None else axis
                shape = [-1 if a == along % dims else 1 for a in range(dims)]
                fill = points.reshape(shape) if points.ndim else points
    return fill if tensor.data_type in _FLOATS | _WHOLE else None


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
    say("the nodes", [(n.name, n.op_type, *n.output) for n in a.node], [(n.name, n.op_type, *n.output) for n in b.node])
    say("the outputs", list(a.output), list(b.output))
    say("the names of inputs", [i.name for i in a.input], [i.name for i in b.input])
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
