"""Models beyond two gigabytes go from file to file, tensor by tensor; here the limit is set to a few kilobytes."""

import gc
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune.bypass import view_of
from onnxprune.coupling import couple
from onnxprune.errors import GateError, ModelError, OutputError
from onnxprune.graph import Graph, is_big, load
from onnxprune.inspection import inspect
from onnxprune.passes import get
from onnxprune.pipeline import Pipeline
from onnxprune.plan import make_plan
from onnxprune.pruning import apply, prune
from onnxprune.runtime import run, session
from onnxprune.steps import Context, Outcome
from onnxprune.surgery import cut, mask
from onnxprune.tensors import PACKED, copied, tensors_of
from onnxprune.testing import Builder, arrays, close, draw
from onnxprune.validate import Checks
from onnxprune.writing import CACHE_LINE, LARGE, PAGE, DataFile, passing, save, stream
from tools.bench_memory import decoder, difference, in_flight, masked

QUICK = Checks(seconds=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 30 MB with external weights."""
    return decoder(tmp_path_factory.mktemp("decoder") / "big.onnx", 0.03)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", 10_000)


def external(path: Path) -> Iterator[TensorProto]:
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if uses_external_data(tensor):
            yield tensor


def same(a: ModelProto, b: ModelProto) -> None:
    """Equal but for how their weights are held."""
    left, right = arrays(a), arrays(b)
    assert list(left) == list(right)
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert [n.output for n in a.graph.node] == [n.output for n in b.graph.node]
    assert [t.name for t in a.graph.initializer] == [t.name for t in b.graph.initializer]
    assert not any(uses_external_data(t) for model in (a, b) for t in tensors_of(model))


# The whole way


def test_a_big_model_is_pruned_as_a_small_one_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_big(load(model))
    (tmp_path / "whole").mkdir()
    small = prune(model, "params=0.7", out=tmp_path / "whole" / "out.onnx", checks=QUICK)
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", 10_000)
    assert is_big(load(model))
    big = prune(model, "params=0.7", out=tmp_path / "out.onnx", checks=Checks(seconds=0.1))
    assert "latency_ms" not in big.record
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "whole" / "out.onnx").read_bytes()
    assert (tmp_path / "out.onnx.data").read_bytes() == (tmp_path / "whole" / "out.onnx.data").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data", "whole"]
    for part in ("params", "macs", "file_bytes", "groups", "locked"):
        assert big.record[part] == small.record[part]
    assert big.record["parity"]["exact"] and big.record["parity"]["relative"] > 0
    np.testing.assert_allclose(big.record["fidelity"]["sqnr_db"], small.record["fidelity"]["sqnr_db"], rtol=1e-3)
    assert any("latency is not measured" in line for line in big.record["warnings"])
    assert big.made == tmp_path / "out.onnx"
    same(big.model, small.model)


@pytest.mark.usefixtures("small_limit")
def test_the_result_is_the_masked_original(model: Path, tmp_path: Path) -> None:
    result = prune(model, "params=0.7", out=tmp_path / "out.onnx", checks=QUICK)
    assert result.plan is not None
    (tmp_path / "plan.json").write_text(json.dumps(result.plan.to_dict()))
    reference = masked(model, tmp_path / "plan.json", tmp_path / "masked.onnx")
    assert difference(reference, tmp_path / "out.onnx") < 1e-5
    apply(model, tmp_path / "plan.json", out=tmp_path / "again.onnx", checks=QUICK)
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "out.onnx.data").read_bytes()
    assert inspect(model)["params"] == result.record["params"]["before"]


@pytest.mark.usefixtures("small_limit")
def test_a_few_tensors_are_in_memory_at_a_time(model: Path, tmp_path: Path) -> None:
    prune(model, "params=0.7", out=tmp_path / "warm.onnx", validate=False)
    tracemalloc.start()
    try:
        prune(model, "params=0.7", out=tmp_path / "out.onnx", checks=QUICK)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < in_flight(model, tmp_path / "out.onnx") + 4e6 < 0.7 * Path(f"{model}.data").stat().st_size


@pytest.mark.usefixtures("small_limit")
def test_without_an_output_the_result_is_in_memory(model: Path) -> None:
    result = prune(model, "params=0.7", checks=QUICK)
    assert isinstance(result.made, ModelProto)
    assert sum(t.ByteSize() for t in result.model.graph.initializer) > 1e7


@pytest.mark.usefixtures("small_limit")
def test_a_gate_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="max-drop"):
        prune(model, "params=0.7", out=tmp_path / "out.onnx", checks=Checks(seconds=0, max_drop=1e-6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_limit")
def test_a_speed_gate_is_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="min-speedup"):
        prune(model, "params=0.7", out=tmp_path / "out.onnx", checks=Checks(seconds=0.1, min_speedup=1000))


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("chunk", [100, 1 << 22])
def test_lossless_from_file_to_file(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are too large to be kept are summed again when they are asked for."""
    monkeypatch.setattr("onnxprune.sums.CHUNK", chunk)
    monkeypatch.setattr("onnxprune.lossless.reading.CHUNK", chunk)
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 64, name="w1", bias=False)
    proto = b.model(close(b, b.op("Relu", b.conv(b.op("Relu", y), 64, name="w2", bias=False)), name="w3"))
    weights = np.array(numpy_helper.to_array(proto.graph.initializer[1]))
    weights[:16] = 0
    weights[16:32] = weights[32:48]
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "w2"))
    save(proto, tmp_path / "model.onnx", external=True)
    result = prune(tmp_path / "model.onnx", "lossless", out=tmp_path / "out.onnx", checks=QUICK)
    assert result.plan is not None and "add" in result.plan.folds
    assert arrays(result.model)["w2"].shape == (32, 64, 3, 3)
    assert result.record["fidelity"]["max_abs"] < 1e-5


@pytest.mark.parametrize("limit", [10_000, 2**31])
def test_a_pass_may_copy_the_graph_and_leave_the_weights(
    limit: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", limit)

    def rename(graph: Graph, context: Context) -> Outcome:
        proto = ModelProto()
        proto.CopyFrom(graph.proto)
        proto.graph.name = "renamed"
        return Outcome(proto)

    prune_half = get("prune_channels")(target="params=0.7")
    for passes in ([rename], [rename, prune_half], [prune_half, rename]):
        result = Pipeline(passes).run(model, out=tmp_path / "out.onnx", checks=QUICK)
        assert onnx.load(tmp_path / "out.onnx").graph.name == result.model.graph.name == "renamed"
        assert result.record["fidelity"]["cosine"] > (0.999 if passes == [rename] else 0.1)


# Files


def test_weights_lie_where_they_can_be_mapped(model: Path, tmp_path: Path) -> None:
    prune(model, "params=0.7", out=tmp_path / "out.onnx", validate=False)
    infos = [ExternalDataInfo(t) for t in external(tmp_path / "out.onnx")]
    assert {info.location for info in infos} == {"out.onnx.data"}
    found = [(info.offset or 0, info.length or 0) for info in infos]
    assert all(offset % (PAGE if length >= LARGE else CACHE_LINE) == 0 for offset, length in found)
    assert any(length >= LARGE for _, length in found)
    ends = [0, *(offset + length for offset, length in found)]
    assert all(0 <= offset - end < PAGE for (offset, _), end in zip(found, ends, strict=False))


def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DataFile, tensor: TensorProto, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataFile, "__call__", full)
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", 10_000)
    path = network(tmp_path)
    with pytest.raises(OutputError, match=r"out.onnx: cannot be written .*No space left.*free some space"):
        prune(path, "channels=0.5", out=tmp_path / "out.onnx", checks=QUICK)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".onnxprune*"))


def network(folder: Path) -> Path:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 64, name="w1")
    path = folder / "model.onnx"
    onnx.save_model(b.model(close(b, b.conv(b.op("Relu", y), 64), name="w2")), path, save_as_external_data=True)
    return path


def test_external_tensors_anywhere_come_along(tmp_path: Path) -> None:
    """In a Constant node, in a subgraph, and in a function that nobody calls."""
    b = Builder(acme=1)
    rng = np.random.default_rng(0)

    def constant(output: str, *shape: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(rng.random(shape), output))

    b.functions.append(
        helper.make_function("acme", "Idle", [], ["c"], [constant("c", 50)], [helper.make_opsetid("", 17)])
    )
    kept = b.op("Constant", name="table", value=numpy_helper.from_array(rng.random((40,)).astype(np.float32), "inner"))
    wide = rng.standard_normal((8, 8, 1, 1)).astype(np.float32)
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    y = b.op("Conv", b.op("Relu", y), b.op("Constant", name="middle", value=numpy_helper.from_array(wide, "w")))
    branch = helper.make_graph([constant("d", 30)], "branch", [], [helper.make_tensor_value_info("d", 11, [30])])
    flag = b.input("flag", dtype=bool)
    other = b.declare(b.op("If", flag, then_branch=branch, else_branch=branch), 30, dtype=np.float64)
    whole = b.model(close(b, y), b.op("Identity", kept), other)
    path, out = tmp_path / "model.onnx", tmp_path / "new" / "out.onnx"
    out.parent.mkdir()
    copy = ModelProto()
    copy.CopyFrom(whole)
    onnx.save_model(
        copy, path, save_as_external_data=True, convert_attribute=True, size_threshold=0, location="model.data"
    )
    coupling = couple(load(path))
    removed = draw(coupling, 0.5, np.random.default_rng(0))
    plan = make_plan(coupling, removed)
    here = cut(couple(load(whole)), plan, removed)
    assert removed.any()
    same(cut(coupling, plan, removed), here)
    stream(out, lambda store: cut(coupling, plan, removed, store))
    same(onnx.load(out), here)
    stream(out, lambda store: mask(coupling, removed, store))
    assert {n: a.shape for n, a in arrays(onnx.load(out)).items()} == {n: a.shape for n, a in arrays(whole).items()}


# Number formats

NARROW = [
    *("FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
    *("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "INT8", "UINT8", "DOUBLE"),
]
TYPES = [getattr(TensorProto, name) for name in NARROW if hasattr(TensorProto, name)]


def held(kind: int, how: str) -> tuple[ModelProto, np.ndarray[Any, Any]]:
    """A Gemm whose 6 x 5 weights are of a type, in raw bytes or in a typed field."""
    values = np.arange(30).reshape(6, 5) % 4
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    array = values.astype(np.float32).astype(dtype)
    tensor = helper.make_tensor("w", kind, [6, 5], array.ravel().astype(np.float32).tolist())
    if how != "typed":
        tensor = numpy_helper.from_array(array, "w")
        assert tensor.raw_data and tensor.data_type == kind
    b = Builder(opset=25, ir_version=13)
    b.graph.initializer.append(tensor)
    y = b.op("Gemm", b.input("x", 3, 5), b.op("Cast", "w", to=1), transB=1)
    return b.model(b.gemm(b.op("Relu", y), 4, name="w2")), array


@pytest.mark.parametrize("kind", TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("how", ["raw", "typed", "external"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
def test_types_and_packing_stay(kind: int, how: str, whole: bool, tmp_path: Path) -> None:
    proto, array = held(kind, how)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    if how == "external":
        onnx.save_model(proto, path, save_as_external_data=True, size_threshold=0, location="model.data")
        assert any(t.name == "w" for t in external(path))
    else:
        path.write_bytes(proto.SerializeToString())
    coupling = couple(load(path))
    removed = np.zeros(coupling.units, dtype=bool)
    removed[:3] = not whole  # an odd number of nibbles stays
    plan = make_plan(coupling, removed)
    wanted = array if whole else array[[3, 4, 5]]
    bits = PACKED.get(kind, 8 * array.dtype.itemsize)
    for made in (
        cut(coupling, plan, removed),
        onnx.load(stream(out, lambda store: cut(coupling, plan, removed, store))),
    ):
        (tensor,) = (t for t in made.graph.initializer if t.name == "w")
        assert tensor.data_type == kind and list(tensor.dims) == list(wanted.shape)
        if tensor.raw_data:
            assert len(tensor.raw_data) == -(-wanted.size * bits // 8)
        else:
            assert how == "typed" and whole
        assert numpy_helper.to_array(tensor).tobytes() == wanted.tobytes()


def test_an_empty_external_tensor(tmp_path: Path) -> None:
    tensor = TensorProto(name="none", data_type=1, dims=[0, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="model.data")
    (tmp_path / "model.data").write_bytes(b"")
    proto = network(tmp_path)
    header = onnx.load(proto, load_external_data=False)
    header.graph.initializer.append(tensor)
    proto.write_bytes(header.SerializeToString())
    assert load(proto).array("none").shape == (0, 3)


def test_external_data_of_fewer_bytes_than_the_tensor(tmp_path: Path) -> None:
    path = network(tmp_path)
    header = onnx.load(path, load_external_data=False)
    for tensor in header.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "8" if entry.key == "length" else entry.value
    path.write_bytes(header.SerializeToString())
    with pytest.raises(ModelError, match=r"'w1'.*cannot be read"):
        load(path).array("w1")


def test_sizes_stay_in_the_model(tmp_path: Path) -> None:
    """ONNX Runtime infers shapes by them before it has read the data file."""
    b = Builder()
    sizes = b.const(np.ones(200, np.int64), "sizes")
    pieces = b.ops("Split", b.input("x", 1, 200), sizes, outputs=200, axis=1)
    b.op("Concat", *pieces, axis=1, name="y")
    made = b.model(b.declare("y", 1, 200))
    path = stream(tmp_path / "m.onnx", lambda store: copied(made, None, store))
    (tensor,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == "sizes")
    assert tensor.data_location != TensorProto.EXTERNAL
    x = np.arange(200, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(session(path), {"x": x})["y"], x)


def test_a_model_on_the_way_goes_with_its_last_view(model: Path) -> None:
    graph = passing(lambda store: copied(load(model).proto, model.parent, store), in_file=True)
    where, view = graph.path, view_of(graph, list(graph.nodes), graph.constants)
    name = max(graph.constants, key=graph.size)
    expected = load(model).array(name)
    del graph
    gc.collect()
    assert np.array_equal(view.array(name), expected)
    del view
    gc.collect()
    assert where is not None and not where.parent.exists()


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("way", ["rewritten", "cut off", "removed"])
def test_weights_that_are_changed_meanwhile_are_no_result(tmp_path: Path, way: str, beside: bool) -> None:
    """What was read before and what was read after would be of two models."""
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    b = Builder()
    y = b.op("MatMul", b.op("Relu", b.op("MatMul", b.input("x", 4, 64), b.weight(64, 64))), b.weight(64, 8))
    save(b.model(y), path, external=beside)
    data = tmp_path / ("model.onnx.data" if beside else "model.onnx")

    def change(stage: str) -> None:
        if stage != "validation":
            return
        if way == "removed":
            data.rename(tmp_path / "elsewhere")
        else:  # as others do it: a new file under the old name
            content = data.read_bytes()
            data.with_suffix(".new").write_bytes(content if way == "rewritten" else content[:-64])
            data.with_suffix(".new").replace(data)

    with pytest.raises(ModelError, match=rf"{re.escape(str(data))}: was changed"):
        prune(path, out=out, target="params=0.7", checks=QUICK, on_stage=change)
    assert not out.exists()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith("out")]
