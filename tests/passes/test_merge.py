"""Channels that are merged: exact by the tied model, free where they are equal, and said where it cannot be."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import Pipeline, Result
from onnxprune.errors import ModelError, OptionError, TargetError
from onnxprune.graph import load
from onnxprune.passes import get
from onnxprune.passes.merge import Merge
from onnxprune.runtime import run, session
from onnxprune.steps import Context
from onnxprune.testing import Builder, close, sandwich
from onnxprune.validate import Checks
from tests.trained import pictures, trained


def merged(model: ModelProto | Path, *more: Any, data: Any = None, out: Path | None = None, **options: Any) -> Result:
    step = get("merge")(**{"target": "channels=0.6", "align": 1, "scope": "local", **options})
    checks = Checks(seconds=0)
    result = Pipeline([step, *more]).run(model, out=out, data=data, threads=1, checks=checks)
    assert result.record["parity"]["exact"]
    return result


def sizes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def off(a: ModelProto, b: ModelProto, feed: dict[str, Any]) -> float:
    """How far the answers of a model are from those of another, relative to these."""
    x, y = (next(iter(run(session(m, threads=1), feed).values())).astype(np.float64) for m in (a, b))
    return float(np.square(x - y).sum() / np.square(y).sum())


def residual(b: Builder) -> str:
    y = b.conv(b.input("x", "N", 3, 8, 8), 10, name="stem")
    for number in range(2):
        z = b.op("Relu", b.batch_norm(b.conv(y, 12, name=f"in{number}", bias=False), f"n{number}"))
        y = b.op("Relu", b.op("Add", y, b.conv(z, 10, name=f"out{number}")))
    return close(b, y)


def depthwise(b: Builder) -> str:
    y = b.op("Clip", b.batch_norm(b.conv(b.input("x", 2, 3, 8, 8), 12, name="wide")), np.float32(0), np.float32(6))
    y = b.op("HardSwish", b.conv(y, 12, name="deep", group=12))
    return close(b, y)


def gated(b: Builder) -> str:
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 12, name="w1"))
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 12, 1, name="gate"))
    return close(b, b.op("Mul", y, gate))


def slopes(b: Builder) -> str:
    y = b.conv(b.input("x", 2, 3, 8, 8), 12, name="w1", bias=False)
    return close(b, b.op("PRelu", y, b.near_one(12, 1, 1, name="slope")))


def gemms(b: Builder) -> str:
    y = b.op("Tanh", b.gemm(b.input("x", "N", 6), 12, name="w1"))
    return b.gemm(b.op("Sigmoid", b.gemm(y, 10, name="w2")), 3, name="w3")


def mlp(b: Builder) -> str:
    x = b.input("x", 2, 5, 8)
    y = b.op("Add", b.op("MatMul", x, b.weight(8, 16, name="up", fan=8)), b.weight(16, name="up.bias"))
    y = b.op("Mul", y, b.op("Add", b.op("Erf", b.op("Div", y, np.float32(2**0.5))), np.float32(1)))
    return b.op("Add", x, b.op("MatMul", y, b.weight(16, 8, name="down", fan=16)))


def attention(b: Builder) -> str:
    x = b.input("x", 2, 5, 16)

    def heads(name: str, *perm: int) -> str:
        y = b.op("MatMul", x, b.weight(16, 16, name=name, fan=16))
        return b.op("Transpose", b.op("Reshape", y, np.array([2, 5, 4, 4])), perm=perm)

    scores = b.op("Softmax", b.op("MatMul", heads("q", 0, 2, 1, 3), heads("k", 0, 2, 3, 1)), axis=-1)
    y = b.op("Transpose", b.op("MatMul", scores, heads("v", 0, 2, 1, 3)), perm=[0, 2, 1, 3])
    return b.op("MatMul", b.op("Reshape", y, np.array([2, 5, 16])), b.weight(16, 16, name="o", fan=16))


def grouped(b: Builder) -> str:
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 12, name="w1"))
    return close(b, b.op("Relu", b.conv(y, 12, name="grouped", group=3)))


def concat(b: Builder) -> str:
    x = b.input("x", 2, 3, 8, 8)
    y = b.op("Concat", b.conv(x, 8, name="left"), b.conv(x, 10, name="right"), axis=1)
    return close(b, b.op("Relu", b.batch_norm(y)))


def transposed(b: Builder) -> str:
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 8, name="w1"))
    return close(b, b.op("Relu", b.op("ConvTranspose", y, b.weight(8, 12, 2, 2, name="up"), strides=[2, 2])))


ALL = [residual, depthwise, gated, slopes, gemms, mlp, attention, grouped, concat, transposed]


@pytest.mark.parametrize("scope", ["global", "local", "budget"])
@pytest.mark.parametrize("network", ALL)
def test_the_merged_model_is_the_tied_one(network: Callable[[Builder], str], scope: str) -> None:
    b = Builder()
    model = b.model(network(b))
    target = "params=0.7" if scope == "budget" else "channels=0.7"
    result = merged(model, target=target, scope=scope)
    found = result.record["merge"]
    assert found["merged"] > 0 and found["short"] == 0 and found["left"] == {}
    assert result.record["params"]["after"] < result.record["params"]["before"]


@pytest.mark.parametrize(
    "options", [{"variance": True}, {"method": "kmeans"}, {"target": "macs=0.5", "scope": "global"}]
)
def test_a_network_with_statistics(options: dict[str, Any]) -> None:
    result = merged(trained(), **options)
    assert result.record["merge"]["short"] == 0


def test_nothing_is_changed_in_place() -> None:
    model = trained()
    before = model.SerializeToString(deterministic=True)
    merged(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("network", [residual, depthwise, mlp])
def test_it_is_nearer_than_dropping(network: Callable[[Builder], str]) -> None:
    def alike(b: Builder) -> str:
        weight = b.weight

        def near(*shape: int, **more: Any) -> str:
            name = weight(*shape, **more)
            tensor = next(t for t in b.graph.initializer if t.name == name)
            w = numpy_helper.to_array(tensor).copy()
            axis = 1 if name == "up" else 0
            half = shape[axis] // 2
            rows = np.moveaxis(w, axis, 0)
            rows[half : 2 * half] = rows[:half] + 0.1 * rows[half : 2 * half]
            tensor.CopyFrom(numpy_helper.from_array(w, name))
            return name

        b.weight = near  # type: ignore[method-assign]
        return network(b)

    b = Builder()
    model = b.model(alike(b))
    rng = np.random.default_rng(0)
    feed = {
        i.name: rng.standard_normal([d.dim_value or 2 for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
    }
    step = get("prune_channels")(target="channels=0.6", align=1, scope="local", criterion="l2")
    dropped = Pipeline([step]).run(model, threads=1)
    assert off(merged(model).model, model, feed) < 0.5 * off(dropped.model, model, feed)


def test_equal_channels_merge_for_free() -> None:
    model = sandwich(lambda b, y: b.op("Relu", y), channels=8)
    first = model.graph.initializer[0]
    w = numpy_helper.to_array(first).copy()
    w[4:] = w[:4]
    first.CopyFrom(numpy_helper.from_array(w, first.name))
    result = merged(model, target="channels=0.5")
    assert sizes(result.model)["w1"][0] == 4
    assert result.record["merge"]["error"]["w1"] == pytest.approx(0, abs=1e-6)
    assert result.record["fidelity"]["max_abs"] < 1e-5


def test_the_scale_may_be_in_the_filters_or_behind_them() -> None:
    """Channels that are equal after BatchNormalization are equal."""
    model = sandwich(lambda b, y: b.op("Relu", b.batch_norm(y, "n")), channels=8)
    values = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    factor = np.array([2, 0.5, -1, 3], np.float32)
    values["w1"][4:] = values["w1"][:4] * factor[:, None, None, None]
    values["n.mean"][4:] = values["n.mean"][:4] * factor
    values["n.var"][4:], values["n.bias"][4:] = values["n.var"][:4], values["n.bias"][:4]
    values["n.scale"][4:] = values["n.scale"][:4] / factor
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    result = merged(model, target="channels=0.5")
    assert sizes(result.model)["w1"][0] == 4 and result.record["fidelity"]["max_abs"] < 1e-4


def test_what_cannot_be_merged_is_said() -> None:
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", 2, 6), 12, name="w1"))
    z = b.gemm(b.op("Relu", b.gemm(y, 10, name="w2")), 4, name="w3")
    shared = b.weight(10, 12, name="w4")
    u = b.gemm(b.op("Relu", b.op("Gemm", y, shared, transB=1)), 4, name="w5")
    v = b.gemm(b.op("Relu", b.op("Gemm", b.op("Relu", b.gemm(z, 12, name="w6")), shared, transB=1)), 4, name="w7")
    result = merged(b.model(b.op("Add", u, v)), target="params=0.9", scope="global")
    assert set(result.record["merge"]["left"]) >= {"w1"}
    assert "weights cannot be summed" in result.record["merge"]["left"]["w1"]
    assert "cannot be merged" in result.record["passes"][0]["said"]


def test_integers_are_left_alone() -> None:
    b = Builder(opset=19)
    quantised = b.const(b.rng.integers(-100, 100, (8, 3, 3, 3)).astype(np.int8), "w1")
    w = b.op("DequantizeLinear", quantised, b.near_one(8, name="scale"), np.zeros(8, np.int8), axis=0)
    y = b.op("Relu", b.op("Conv", b.input("x", 1, 3, 6, 6), w))
    with pytest.raises(ModelError, match=r"merge: no channels can be merged \(some of its parameters are integers"):
        merged(b.model(close(b, y)))


def test_half_precision_constant_nodes_and_shared_vectors() -> None:
    b = Builder()
    y, bias = b.input("x", "N", 3, 8, 8), b.const(np.zeros(12, np.float32), "shared")
    for name in ("a", "c"):
        w = b.op(
            "Constant",
            value=numpy_helper.from_array(b.rng.standard_normal((12, b.shape(y)[1], 3, 3)).astype(np.float32) / 6),
        )
        y = b.op("Relu", b.op("Conv", y, w, bias, pads=[1, 1, 1, 1], name=f"y_{name}"))
    model = b.model(close(b, y))
    result = merged(model)
    assert result.record["merge"]["merged"] == 10 and len(result.plan.to_dict()["splits"] if result.plan else {}) <= 1


def test_half_precision() -> None:
    b = Builder()
    y = b.input("x", 2, 3, 8, 8, dtype=np.float16)
    for n, out in enumerate((12, 8)):
        y = b.op(
            "Conv",
            y,
            b.const((b.rng.standard_normal((out, 3 if n == 0 else 12, 3, 3)) / 9).astype(np.float16), f"w{n}"),
        )
        y = b.op("Relu", y)
    result = merged(b.model(b.op("Conv", y, b.const(b.rng.standard_normal((4, 8, 1, 1)).astype(np.float16), "w2"))))
    assert result.record["merge"]["merged"] > 0
    assert all(t.data_type == TensorProto.FLOAT16 for t in result.model.graph.initializer)


def test_external_data(tmp_path: Path) -> None:
    onnx.save(trained(), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    result = merged(tmp_path / "net.onnx", out=tmp_path / "small.onnx")
    np.testing.assert_array_less(off(onnx.load(tmp_path / "small.onnx"), merged(trained()).model, pictures(4)), 1e-9)
    assert result.record["merge"]["short"] == 0


def test_with_data_and_a_repair() -> None:
    data = [pictures(32, seed=s) for s in (5, 6, 7, 8)]
    bare = merged(trained(), data=data)
    assert bare.record["merge"]["data"]
    repaired = merged(trained(), get("reconstruct")(), data=data)
    feed = pictures(64, seed=9)
    assert off(repaired.model, trained(), feed) < 0.5 * off(bare.model, trained(), feed)


def test_a_repair_without_data_has_nothing_to_do() -> None:
    result = merged(trained(), get("reconstruct")())
    assert result.record["recover"] == "none" and result.model == merged(trained()).model


def test_widths_are_aligned_and_groups_kept() -> None:
    b = Builder()
    model = b.model(residual(b))
    result = merged(model, align=4, target="params=0.8", scope="global", keep=["in0"])
    shapes = sizes(result.model)
    assert (shapes["in0"][0] == 12 and shapes["stem"][0] % 4 == 0) or shapes["stem"][0] == 10
    assert shapes["in1"][0] in (4, 8, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "merge: method = 'median': choose one of agglomerative, kmeans"),
        ({"scope": "damage"}, "merge: scope = 'damage': choose one of global, local, budget"),
        ({"target": "latency=0.5"}, "merge: target = 'latency=0.5': write channels=X, params=X or macs=X"),
        ({"target": "macs=2"}, "merge: target = 'macs=2': write"),
        ({"seed": -1}, "merge: seed = -1: write a whole number from 0"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        get("merge")(**options)


def test_targets_that_cannot_be_met() -> None:
    with pytest.raises(TargetError, match="cannot be met"):
        merged(trained(), target="params=0.001")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", 1, [2, 3])],
            [helper.make_tensor_value_info("y", 1, [2, 3])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(ModelError, match=r"merge: no channels can be merged \(nothing can be cut\)"):
        merged(model)


def test_the_largest_weight_is_not_copied_as_a_whole_more_than_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.sums.CHUNK", 1 << 16)
    b = Builder()
    y = b.op("Relu", b.gemm(b.input("x", 1, 1 << 14), 128))
    graph = load(b.model(b.gemm(y, 8)))
    tracemalloc.start()
    Merge(target="channels=0.75", align=1)(graph, Context())
    peak = tracemalloc.get_traced_memory()[1] / (4 * sum(map(graph.size, graph.constants)))
    tracemalloc.stop()
    assert peak < 4
