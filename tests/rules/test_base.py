"""What holds for every rule: the closed world, weights wherever they hide, opsets, number formats."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxprune.feeds import Feed
from onnxprune.testing import Builder, close, prove, sandwich

Stored = Callable[[Builder, str, tuple[int, ...]], str]


# Weights wherever they hide


def initializer(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    return b.weight(*shape, name=name)


def constant(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    values = (b.rng.standard_normal(shape) / 4).astype(np.float32)
    return b.op("Constant", name=name, value=numpy_helper.from_array(values))


def identity(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    return b.op("Identity", b.weight(*shape, name=name))


def transpose(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    return b.op("Transpose", b.weight(*shape[::-1], name=name, fan=8))


def half(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    values = (b.rng.standard_normal(shape) / 4).astype(np.float16)
    return b.op("Cast", b.const(values, name), to=1)


def brain_half(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    values = (b.rng.standard_normal(shape) / 4).astype(ml_dtypes.bfloat16)
    return b.op("Cast", b.const(values, name), to=1)


def flat(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    return b.op("Reshape", b.weight(shape[0], int(np.prod(shape[1:])), name=name), shape)


def unsqueezed(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    axes = list(range(2, len(shape)))
    return b.op("Unsqueeze", b.weight(*shape[:2], name=name), axes) if axes else b.weight(*shape, name=name)


STORED: list[Stored] = [initializer, constant, identity, transpose, half, brain_half, flat, unsqueezed]


@pytest.mark.parametrize("stored", STORED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_weight_is_found_where_it_is(kind: str, stored: Stored) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Relu", y)
        if kind == "Conv":
            return b.op("Conv", y, stored(b, "w", (6, 8, 1, 1)))
        y = b.op("Flatten", b.op("GlobalAveragePool", y))
        if kind == "Gemm":
            return b.op("Gemm", y, stored(b, "w", (6, 8)), transB=1)
        return b.op("MatMul", y, stored(b, "w", (8, 6)))

    result = prove(sandwich(middle), tolerance=1e-4)
    axes = [0, 1]
    if (stored is transpose) != (kind == "MatMul"):
        axes.reverse()
    rank = len(result.coupling.graph.constants["w"].dims)
    out, contracted = (rank - 1 - a if stored is transpose and rank == 4 and kind == "Conv" else a for a in (0, 1))
    if rank == 2:
        out, contracted = axes
    assert result.choices("w1") == result.choices("w", contracted) == [8]
    assert result.choices("w", out) == result.choices("w2", 1) == [6]


@pytest.mark.parametrize("attribute", ["value", "value_floats"])
def test_a_bias_in_a_constant_node(attribute: str) -> None:
    def middle(b: Builder, y: str) -> str:
        values = b.rng.standard_normal(8).astype(np.float32)
        value = numpy_helper.from_array(values, "inner") if attribute == "value" else values.tolist()
        bias = b.op("Constant", name="bias", **{attribute: value})
        return b.op("Relu", b.op("Conv", y, b.weight(8, 8, 1, 1, name="w"), bias))

    result = prove(sandwich(middle))
    assert result.choices("w") == result.choices("bias") == [8]
    assert result.shape("bias") == (4,)


def test_a_scalar_in_a_constant_node() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Mul", y, b.op("Constant", name="half", value_float=0.5))

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_a_bias_behind_a_reshape() -> None:
    def middle(b: Builder, y: str) -> str:
        bias = b.op("Reshape", b.weight(2, 4, name="bias"), [8])
        return b.op("Relu", b.op("Conv", y, b.weight(8, 8, 1, 1, name="w"), bias))

    result = prove(sandwich(middle))
    assert result.can_cut("w")


def test_a_weight_that_is_normalised_in_the_graph() -> None:
    """Weight normalisation, w = g v / |v|: filters go, with their gains; what they read must stay."""

    def middle(b: Builder, y: str) -> str:
        v = b.weight(6, 8, 1, 1, name="v")
        norm = b.op("Sqrt", b.op("Add", b.op("ReduceSum", b.op("Mul", v, v), [1, 2, 3]), 1e-3))
        w = b.op("Mul", b.op("Div", v, norm), b.near_one(6, 1, 1, 1, name="g"))
        return b.op("Conv", b.op("Relu", y), w)

    result = prove(sandwich(middle))
    assert result.choices("v") == result.choices("g") == [6]


# Number formats of whole models


@pytest.mark.parametrize("dtype", [np.float16, np.float64], ids=["float16", "float64"])
def test_number_formats(dtype: type) -> None:
    b = Builder()

    def weight(name: str, *shape: int) -> str:
        return b.const((b.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype), name)

    y = b.op("Gemm", b.input("x", 5, 3, dtype=dtype), weight("w1", 8, 3), weight("b1", 8), transB=1)
    y = b.op("Gemm", b.op("Relu", y), weight("w2", 4, 8), transB=1)
    result = prove(b.model(y))
    assert result.choices("w1") == result.choices("b1") == [8]


def test_bfloat16() -> None:
    """No kernel of ONNX Runtime: the reference evaluator runs it."""
    b = Builder(opset=22)
    kind = ml_dtypes.bfloat16
    y = b.op("MatMul", b.input("x", 2, 3, dtype=kind), b.const(b.rng.standard_normal((3, 8)).astype(kind), "w1"))
    y = b.op("MatMul", b.op("Relu", y), b.const(b.rng.standard_normal((8, 4)).astype(kind), "w2"))
    result = prove(b.model(y), evaluate=reference)
    assert result.choices("w1", 1) == [8]
    assert result.model.graph.initializer[0].data_type == onnx.TensorProto.BFLOAT16


def reference(model: ModelProto, feeds: Sequence[Feed], new_ops: Sequence[type[OpRun]] = ()) -> list[dict[str, Any]]:
    session = ReferenceEvaluator(model, new_ops=list(new_ops) or None)
    return [dict(zip(session.output_names, session.run(None, feed), strict=True)) for feed in feeds]


# The closed world


class Blur(OpRun):
    """acme::Blur: each channel takes something from its neighbours."""

    op_domain = "acme"

    def _run(self, x: Any) -> tuple[Any]:
        return (x + np.roll(x, 1, axis=1) / 2,)


def test_an_unknown_op_locks_what_it_touches_and_nothing_else() -> None:
    b = Builder(acme=1)
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="before")
    y = b.conv(b.op("Relu", y), 6, name="touching")
    y = b.declare(b.op("acme::Blur", y), 2, 6, 6, 6)
    y = b.conv(b.op("Relu", b.conv(y, 8, name="after")), 4, name="last")
    result = prove(b.model(y), evaluate=lambda model, feeds: reference(model, feeds, [Blur]))
    assert result.choices("before") == result.choices("after") == [8]
    assert not result.can_cut("touching") and not result.can_cut("after", 1)
    locked = {(entry.value, entry.axis): entry for entry in result.coupling.locked}
    assert locked["touching", 0].reason == locked["after", 1].reason == "there is no rule for acme::Blur"
    assert locked["touching", 0].op == "Blur"


def test_an_unknown_op_without_a_shape() -> None:
    b = Builder(acme=1)
    y = b.conv(b.input("x", 2, 3, 6, 6), 6, name="touching")
    y = b.op("acme::Blur", b.op("Relu", y))
    y = b.op("Conv", b.op("Relu", y), b.weight(8, 6, 1, 1, name="after"))
    y = b.declare(b.op("Conv", y, b.weight(4, 8, 1, 1, name="last")), 2, 4, 6, 6)
    result = prove(b.model(y), evaluate=lambda model, feeds: reference(model, feeds, [Blur]))
    assert not result.can_cut("touching") and not result.can_cut("after", 1)


def test_a_standard_op_without_a_rule_locks() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Relu", b.op("EyeLike", b.op("Flatten", y)))

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")
    assert result.reason("w1")


def test_a_model_local_function() -> None:
    """A function is written out, and cut like any other nodes."""
    b = Builder(acme=1)
    body = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    b.functions.append(helper.make_function("acme", "Silu", ["x"], ["y"], body, b.imports[:1]))
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    y = b.conv(b.op("acme::Silu", b.conv(y, 6, name="inside")), 4, name="w2")
    result = prove(b.model(y))
    assert result.choices("w1") == [8]
    assert result.choices("inside") == [6]
    assert not result.model.functions


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_a_subgraph_that_reads_an_outer_weight(kind: str) -> None:
    """The captured weight stays whole, also where another layer reads it."""
    b = Builder()
    x = b.input("x", 2, 3, 6, 6)
    y = b.conv(x, 8, name="free")
    y = b.op("Conv", b.op("Relu", y), b.weight(8, 8, 1, 1, name="captured"))
    z = b.op("Relu", y)
    inner = helper.make_node("Conv", [z, "captured"], ["then"])
    shape = helper.make_tensor_value_info("then", 1, [2, 8, 6, 6])
    if kind == "If":
        then = helper.make_graph([inner], "then", [], [shape])
        other = helper.make_node("Identity", [z], ["else"])
        orelse = helper.make_graph([other], "else", [], [helper.make_tensor_value_info("else", 1, [2, 8, 6, 6])])
        flag = b.op("Greater", b.op("ReduceSum", x, keepdims=0), 0.0)
        y = b.op("If", flag, then_branch=then, else_branch=orelse)
    else:
        nodes = [inner, helper.make_node("Identity", ["go"], ["goes"])]
        inputs = [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("go", 9, [])]
        outputs = [helper.make_tensor_value_info("goes", 9, []), shape]
        body = helper.make_graph(nodes, "body", inputs, outputs)
        y = b.op("Squeeze", b.op("Slice", b.op("Loop", np.array(2), None, body=body), [0], [1]), [0])
    y = b.op("Conv", b.declare(y, 2, 8, 6, 6), b.weight(8, 8, 1, 1, name="after"))
    result = prove(b.model(close(b, b.op("Relu", y), name="last")))
    assert not result.can_cut("captured") and not result.can_cut("captured", 1)
    assert result.reason("captured") == f"a subgraph of {kind} reads it"
    assert not result.can_cut("free")
    assert result.choices("after") == [8]


# Models as exporters write them


def test_initializers_that_are_inputs() -> None:
    """IR version 3; ONNX Runtime takes the initializers as defaults of the inputs."""
    b = Builder(opset=9, ir_version=3)
    y = b.op("Relu", b.batch_norm(b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"), "bn"))
    result = prove(b.model(b.conv(y, 4, name="w2")))
    assert result.choices("w1") == result.choices("bn.scale") == [8]
    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.model.graph.input}
    assert sizes["w1"] == [4, 3, 3, 3] and sizes["bn.var"] == [4]


def test_several_inputs_and_outputs() -> None:
    b = Builder()
    left = b.conv(b.input("left", 2, 3, 6, 6), 8, name="a")
    right = b.conv(b.input("right", 2, 5, 6, 6), 8, name="b")
    y = b.op("Relu", b.op("Add", left, right))
    score = b.gemm(b.op("Flatten", b.op("GlobalMaxPool", y)), 3, name="score")
    result = prove(b.model(score, b.conv(y, 2, name="map"), b.op("Sigmoid", b.conv(y, 6, name="shown"))))
    assert result.choices("a") == result.choices("b") == result.choices("score", 1) == [8]
    assert result.reason("shown") == "a graph output"


def test_an_inner_value_that_is_also_an_output() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    z = b.conv(b.op("Relu", y), 6, name="w")
    result = prove(b.model(y, close(b, z)))
    assert result.reason("w1") == "a graph output"
    assert result.choices("w") == [6]


@pytest.mark.parametrize(
    "shape", [("N", 3, 6, 6), ("N", 3, "H", "W"), (2, 3, "H", "H")], ids=["batch", "all", "square"]
)
def test_open_sizes(shape: tuple[int | str, ...]) -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", *shape), 8, name="w1"))
    y = b.op("MaxPool", b.op("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Add", y, b.conv(y, 8, name="w", group=2))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    result = prove(b.model(b.gemm(y, 4, name="w2")))
    assert result.choices("w1") == [4]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset(opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Relu", b.batch_norm(y, "bn"))
        y = b.op("Add", y, b.conv(y, 8, name="dw", group=8))
        return b.op("GlobalAveragePool", y)

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == result.choices("dw") == result.choices("bn.scale") == [8]


def test_nothing_to_cut() -> None:
    b = Builder()
    model = b.model(b.conv(b.input("x", 2, 3, 6, 6), 4, name="only"))
    result = prove(model)
    assert result.coupling.units == 0
    assert result.model == model
