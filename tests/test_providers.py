"""What each provider is told, what falls back from it, and what it says where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxprune import calls, prune, timing
from onnxprune.calls import bound, runner
from onnxprune.coupling import couple
from onnxprune.errors import ModelError, ProviderError
from onnxprune.feeds import random_feeds
from onnxprune.graph import load
from onnxprune.latency.block import BLOCKS, block
from onnxprune.latency.networks import table_of
from onnxprune.placed import fallback
from onnxprune.runtime import PROVIDERS, refused, run, session
from onnxprune.testing import Builder, close
from onnxprune.timing import bench
from onnxprune.validate import Checks
from onnxprune.words import conditions

CPU, CUDA, TENSORRT, OPENVINO = (PROVIDERS[name] for name in ("cpu", "cuda", "tensorrt", "openvino"))
there = pytest.mark.skipif(OPENVINO not in onnxruntime.get_available_providers(), reason="needs onnxruntime-openvino")

Chain = list[tuple[str, dict[str, str]]]


def network() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.op("Relu", b.conv(b.input("x", "N", 3, 16, 16), 32)), 64))
    return b.model(close(b, y, 10, "head"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Chain]]:
    """The providers and options of every session that is made; none runs."""
    chains: list[Chain] = []

    class Silent:
        def __init__(self, source: object, options: object, providers: Chain, **others: object) -> None:
            chains.append(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in chains[-1]]

        def disable_fallback(self) -> None:
            pass

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Silent)
    yield chains


# What they are told


def test_openvino_gets_the_threads(told: list[Chain]) -> None:
    session(network(), "openvino", threads=3)
    session(network(), "openvino")
    assert told == [[(OPENVINO, {"num_of_threads": "3"}), (CPU, {})], [(OPENVINO, {}), (CPU, {})]]


def test_tensorrt_builds_its_engines_and_leaves_the_rest_to_cuda(told: list[Chain]) -> None:
    session(network(), "tensorrt")
    assert told == [[(TENSORRT, {"trt_engine_cache_enable": "False"}), (CUDA, {}), (CPU, {})]]


def test_tensorrt_computes_in_half_precision_where_the_model_does(told: list[Chain]) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "half", [x], [y])
    session(helper.make_model(graph), "tensorrt")
    assert told[0][0][1]["trt_fp16_enable"] == "True"


def test_what_must_be_exact_is_left_to_cuda_without_tf32(told: list[Chain]) -> None:
    for provider in ("tensorrt", "cuda"):
        session(network(), provider, optimize=False)
    assert told[0] == told[1] == [(CUDA, {"use_tf32": "0"}), (CPU, {})]


# What falls back


def side(fallback: int | None, **nodes: int) -> dict[str, Any]:
    return {"nodes": nodes, "fallback": fallback}


def test_nodes_that_fell_back_are_counted_for_both_models() -> None:
    whole, part, none = side(0, openvino=5), side(2, openvino=3, cpu=2), side(4, cpu=4)
    bench = {"provider": "openvino", "b": None}
    assert fallback({**bench, "a": whole}) == []
    assert fallback({**bench, "a": none}) == ["nodes that fell back: 4 of 4 (cpu 4)"]
    both = "nodes that fell back: 2 of 5 (openvino 3, cpu 2)"
    assert fallback({**bench, "a": part, "b": part}) == [both]
    assert fallback({**bench, "a": part, "b": whole}) == [f"{both}, then 0 of 5 (openvino 5)"]


def test_where_it_is_not_known_it_is_said() -> None:
    blind = side(None)
    assert fallback({"provider": "cpu", "a": blind, "b": blind}) == []
    assert "not known" in fallback({"provider": "cuda", "a": blind, "b": None})[0]


def test_a_measurement_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "placement", lambda _: {CPU: 3, "Other": 2})
    found = bench(network(), threads=1, runs=1, min_seconds=0, max_seconds=0.05, batch=2).to_dict()
    assert found["a"]["fallback"] == 2
    assert conditions(found)[-1] == f"nodes that fell back: 2 of 5 ({CPU} 3, Other 2)"
    assert "batches of 2" in conditions(found)[0] and found["inputs"] == {"x": [2, 3, 16, 16]}


# When it is measured


def test_every_size_of_input_is_run_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []
    measured = calls.timed

    def note(ready: Any, feed: Any) -> Any:
        order.append(len(feed["x"]))
        return run(ready, feed)

    def clock(call: Any) -> float:
        order.append("clock")
        return measured(call)

    monkeypatch.setattr(timing, "run", note)
    monkeypatch.setattr(timing, "timed", clock)
    feeds = [random_feeds(network(), shapes={"x": (n, 3, 16, 16)})[0] for n in range(1, 10)]
    bench(network(), feeds=feeds, threads=1, runs=1, min_seconds=0, max_seconds=0.05)
    assert order[:10] == [*range(1, 10), "clock"]


# Memory


def greedy() -> onnx.ModelProto:
    """x [N, 1] -> y [N, 2 ** 40]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in "xy")
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [1, 1 << 40])
    graph = helper.make_graph([helper.make_node("Expand", ["x", "sizes"], ["y"])], "greedy", [x], [y], [sizes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_batch_that_does_not_fit_in_memory() -> None:
    ready, feed = session(greedy()), {"x": np.ones((4, 1), np.float32)}
    said = r"^the model in memory: out of memory on the inputs x \[4, 1\]; give a smaller batch$"
    with pytest.raises(ModelError, match=said):
        bench(greedy(), feeds=[feed])
    with pytest.raises(ModelError, match=said):
        bound(ready, feed, "cpu")


@pytest.mark.parametrize(
    "text",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 137438953472",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)",
        "[TensorRT EP] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
        "std::bad_alloc",
    ],
)
def test_how_providers_say_it(text: str) -> None:
    said = str(refused(session(network()), {"x": np.ones((4, 3), np.float32)}, RuntimeError(text)))
    assert said.endswith("out of memory on the inputs x [4, 3]; give a smaller batch")


# Absent


def test_an_absent_provider_is_said_wherever_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    coupling, feed = couple(load(network())), random_feeds(network())[0]
    for name in ("cuda", "tensorrt", "openvino"):
        said = f"provider '{name}': not in this ONNX Runtime, which has cpu; to get it, pip install onnxruntime-"
        with pytest.raises(ProviderError, match=said):
            bench(network(), provider=name)
        with pytest.raises(ProviderError, match=said):
            table_of(coupling, feed, name, 1)
        for target in ("latency=0.5", "macs=0.5"):
            with pytest.raises(ProviderError, match=said):
                prune(network(), target=target, provider=name)
        assert block(name) > 1  # assumed


# Present


@there
def test_openvino_prunes_to_a_latency_and_proves_it() -> None:
    result = prune(network(), "latency=0.7", provider="openvino", threads=1, checks=Checks(seconds=1, batch=2))
    record = result.record
    assert record["parity"]["exact"]
    assert record["align"] in (1, *BLOCKS)
    assert record["latency_model"]["by"] == "kind"
    assert record["latency_ms"]["inputs"] == {"x": [2, 3, 16, 16]}
    assert record["latency_ms"]["a"]["fallback"] == 0


@there
def test_openvino_leaves_what_it_cannot_do_to_the_cpu() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    nodes = [helper.make_node("Sigmoid", ["x"], ["p"]), helper.make_node("Bernoulli", ["p"], ["y"], seed=1.0)]
    graph = helper.make_graph(nodes, "chance", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ready = session(model, "openvino", 1, config=calls.quiet(1))
    assert calls.placement(ready)[CPU] >= 1
    assert runner(ready, random_feeds(model)[0], "openvino")()[0].shape == (1, 8)
