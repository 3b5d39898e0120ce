"""Models run part by part."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnxprune import parts
from onnxprune.errors import ModelError
from onnxprune.graph import Graph, load
from onnxprune.parts import Apart, Engine, Parts, Walk
from onnxprune.patch import Patch, patched
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close

Array = NDArray[Any]
ENGINE = Engine(threads=1)


def network() -> ModelProto:
    """A residual sum, so that two values cross some cuts, and an output in the middle."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 6, 6), 8, name="stem"), name="early")
    z = b.op("Relu", b.conv(y, 12, name="wide"), name="inner")
    y = b.op("Add", b.conv(z, 8, name="back", bias=False), y, name="sum")
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(close(b, y, 5, "head"), "inner")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return load(network())


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, 3, 6, 6)).astype(np.float32)} for n in (2, 3, 1)]


def whole(model: ModelProto, feeds: list[dict[str, Array]], *names: str) -> list[dict[str, Array]]:
    """What one session gives, for inner values too."""
    full = ModelProto()
    full.CopyFrom(model)
    for name in set(names) - {o.name for o in full.graph.output}:
        full.graph.output.add(name=name)
    ready = session(full, threads=1)
    return [run(ready, feed, names) for feed in feeds]


def same(made: list[dict[str, Array]], expected: list[dict[str, Array]]) -> None:
    for a, b in zip(made, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5)


def test_steps_give_what_one_session_gives(graph: Graph, feeds: list[dict[str, Array]]) -> None:
    walk = Walk(graph, feeds, ENGINE)
    assert len(walk) == len(feeds)
    found: list[dict[str, Array]] = [{} for _ in feeds]
    for node in graph.nodes:
        for made, step in zip(found, walk.advance(node.index + 1, node.outputs), strict=True):
            made.update(step)
    names = [name for node in graph.nodes for name in node.outputs]
    same(found, whole(graph.proto, feeds, *names))
    assert walk.at == len(graph.nodes)
    walk.close()


def test_a_wanted_value_that_is_there_already(graph: Graph, feeds: list[dict[str, Array]]) -> None:
    walk = Walk(graph, feeds, ENGINE)
    walk.go(graph.producer["inner"].index + 1)
    stop = graph.producer["sum"].index + 1
    same(list(walk.advance(stop, ["early", "sum"])), whole(graph.proto, feeds, "early", "sum"))


def test_what_crosses_a_cut(graph: Graph) -> None:
    found = Parts(graph)
    assert found.crossing(0) == ["x"]
    assert set(found.crossing(graph.producer["inner"].index + 1)) == {"early", "inner"}
    assert set(found.crossing(len(graph.nodes))) == set(graph.outputs)


def test_a_value_can_be_kept_that_nothing_reads_any_more(graph: Graph, feeds: list[dict[str, Array]]) -> None:
    """As the logits of a head whose Softmax stands early in the model."""
    walk = Walk(graph, feeds, ENGINE, ["inner"])
    walk.go(len(graph.nodes))
    same(list(walk.rest(Patch(), ["inner"], ENGINE)), whole(graph.proto, feeds, "inner"))


@pytest.mark.parametrize("inputs", [False, True])
def test_the_rest_with_a_patch(graph: Graph, feeds: list[dict[str, Array]], inputs: bool) -> None:
    rng = np.random.default_rng(1)
    weight = graph.array("back")
    last = graph.proto.graph.node[graph.producer["sum"].index - 1].output[0]
    own = {(last, 2): rng.standard_normal(8).astype(np.float32)} if inputs else {}
    patch = Patch({"back": rng.standard_normal(weight.shape)}, own)
    walk = Walk(graph, feeds, ENGINE)
    walk.go(graph.producer["inner"].index + 1)
    expected = whole(patched(graph, patch), feeds, *graph.outputs)
    same(list(walk.rest(patch, list(graph.outputs), ENGINE)), expected)
    same(list(walk.rest(Patch(), list(graph.outputs), ENGINE)), whole(graph.proto, feeds, *graph.outputs))
    walk.patch |= patch
    walk.go(len(graph.nodes))
    same(list(walk.rest(Patch(), list(graph.outputs), ENGINE)), expected)


def test_the_last_of_two_patches_wins() -> None:
    one, two, three = (np.full(2, n) for n in range(3))
    both = Patch({"a": one, "b": one}, {("y", 2): one}) | Patch({"b": two}, {("y", 2): three})
    assert both.weights["a"] is one and both.weights["b"] is two and both.inputs["y", 2] is three


def test_big_values_spill(graph: Graph, feeds: list[dict[str, Array]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "IN_MEMORY", 1000)
    walk = Walk(graph, feeds, ENGINE)
    walk.go(graph.producer["inner"].index + 1)
    folder = walk._shelf._folder
    assert folder is not None
    kept = list(Path(folder.name).iterdir())
    assert kept
    same(list(walk.rest(Patch(), list(graph.outputs), ENGINE)), whole(graph.proto, feeds, *graph.outputs))
    for made in walk.advance(len(graph.nodes), graph.outputs):
        assert set(made) == set(graph.outputs)
    assert not any(path.exists() for path in kept if path.stem == "1")
    walk.close()
    assert not Path(folder.name).exists()


def test_a_model_of_too_many_bytes(
    graph: Graph, feeds: list[dict[str, Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PROTOBUF_LIMIT", 10)
    with pytest.raises(ModelError, match="too big to be run in parts"):
        Walk(graph, feeds, ENGINE).go(len(graph.nodes))


def test_larger_weights_stay_beside_the_model(graph: Graph) -> None:
    apart = Apart()
    model = Parts(graph).part(0, len(graph.nodes), {"x": np.dtype(np.float32)}, graph.outputs, store=apart)
    sizes = {name: 4 * graph.size(name) for name in graph.constants}
    assert set(apart.weights) == {name for name, size in sizes.items() if size >= 1024}
    assert model.ByteSize() < 4096
    for name, value in apart.weights.items():
        np.testing.assert_array_equal(value, graph.array(name), strict=True)


def test_a_session_has_its_own_copy_of_weights(graph: Graph) -> None:
    """What they were read from may go."""
    apart = Apart()
    model = Parts(graph).part(0, len(graph.nodes), {"x": np.dtype(np.float32)}, graph.outputs, store=apart)
    mine = {name: value.copy() for name, value in apart.weights.items()}
    ready, feed = ENGINE.session(model, mine), {"x": np.ones((2, 3, 6, 6), np.float32)}
    before = run(ready, feed)
    for value in mine.values():
        value[...] = np.nan
    for name, value in run(ready, feed).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_session_keeps_nothing_that_was_beside_the_model() -> None:
    b = Builder()
    graph = load(b.model(b.op("MatMul", b.input("x", 1, 512), b.weight(512, 2048))))
    tracemalloc.start()
    walk = Walk(graph, [{"x": np.ones((1, 512), np.float32)}], ENGINE)
    place = walk.here().rest(Patch(), graph.outputs, ENGINE)
    next(place)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now < 0.1 * 4 * 512 * 2048
    assert peak < 1.5 * 4 * 512 * 2048  # the bytes of the weight as protobuf hands them out


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, "bfloat16"])
def test_weights_of_all_types(dtype: Any) -> None:
    b = Builder()
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16) if dtype == "bfloat16" else np.dtype(dtype)
    model = b.model(b.op("Cast", b.op("Identity", b.const(np.arange(900).astype(kind), "w")), to=TensorProto.FLOAT))
    (found,) = Walk(load(model), [{}], ENGINE).rest(Patch(), load(model).outputs, ENGINE)
    np.testing.assert_array_equal(next(iter(found.values())), np.arange(900).astype(kind).astype(np.float32))


def test_sizes_of_many_pieces_stay_in_the_model() -> None:
    """ONNX Runtime infers shapes by them before it has what is beside the model."""
    b = Builder()
    wide = b.op("Gemm", b.input("x", 1, 600), b.const(np.eye(600, dtype=np.float32)))
    pieces = b.ops("Split", wide, b.const(np.full(200, 3), "sizes"), outputs=200, axis=1)
    b.op("Concat", *pieces[::-1], axis=1, name="y")
    graph = load(b.model(b.declare("y", 1, 600)))
    feed = {"x": np.arange(600, dtype=np.float32)[None]}
    (found,) = Walk(graph, [feed], ENGINE).rest(Patch(), ["y"], ENGINE)
    np.testing.assert_array_equal(found["y"], feed["x"].reshape(200, 3)[::-1].reshape(1, 600))


def test_a_large_bias_that_a_patch_takes_the_place_of() -> None:
    b = Builder()
    graph = load(b.model(b.gemm(b.input("x", 1, 4), 512, name="head")))
    feed = {"x": np.ones((1, 4), np.float32)}
    bias = np.arange(512, dtype=np.float32)
    patch = Patch(inputs={(graph.nodes[0].outputs[0], 2): bias})
    (found,) = Walk(graph, [feed], ENGINE).rest(patch, graph.outputs, ENGINE)
    (known,) = Walk(graph, [feed], ENGINE).rest(Patch(), graph.outputs, ENGINE)
    old = graph.array(graph.nodes[0].inputs[2])
    name = graph.outputs[0]
    np.testing.assert_allclose(found[name] - bias, known[name] - old, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_weights_apart_the_model_are_what_runs(half: bool) -> None:
    dtype = np.float16 if half else np.float32
    b = Builder()
    x = b.input("x", "N", 32)
    x = b.op("Cast", x, to=10 if half else 1)
    b.op("Relu", b.op("MatMul", x, b.const(np.eye(32, dtype=dtype), "wide")), name="y")
    made = load(b.model("y"))
    apart = Apart()
    model = Parts(made).part(0, len(made.nodes), {"x": np.dtype(np.float32)}, ["y"], store=apart)
    assert list(apart.weights) == ["wide"]
    assert apart.weights["wide"].dtype == dtype
    assert model.ByteSize() < apart.weights["wide"].nbytes
    feed = {"x": np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)}
    walk = Walk(made, [feed], ENGINE)
    patch = Patch({"wide": np.eye(32) * 2})
    plain, doubled = (next(iter(walk.rest(p, ["y"], ENGINE)))["y"] for p in (Patch(), patch))
    np.testing.assert_allclose(plain, np.maximum(feed["x"], 0), rtol=1e-3)
    np.testing.assert_array_equal(doubled, 2 * plain)
