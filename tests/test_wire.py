"""Large weights stay in the model's file: the same model, whichever way it is read."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune import opening, wire
from onnxprune.errors import ModelError
from onnxprune.graph import data_files, file_bytes, is_external, load
from onnxprune.passes import get
from onnxprune.pipeline import Pipeline
from onnxprune.tensors import copied, in_proto, tensors_of
from onnxprune.testing import Builder, sandwich
from onnxprune.validate import Checks


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAPPED", 0)
    monkeypatch.setattr(wire, "LARGE", 64)


def everywhere() -> ModelProto:
    """Weights in an initializer, in a Constant node and in a subgraph; one in `float_data`, one that is small."""
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.standard_normal((8, 8)).astype(np.float32) for _ in range(4))
    inside = helper.make_graph(
        [helper.make_node("MatMul", ["y", "c"], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(c, "c")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(b)),
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("MatMul", ["xa", "b"], ["xab"]),
        helper.make_node("MatMul", ["xab", "d"], ["y"]),
        helper.make_node("If", ["condition"], ["z"], then_branch=inside, else_branch=other),
    ]
    typed = helper.make_tensor("d", TensorProto.FLOAT, d.shape, d.reshape(-1).tolist())
    yes = numpy_helper.from_array(np.array(True), "condition")
    graph = helper.make_graph(
        nodes,
        "everywhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, "a"), typed, yes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def held(model: ModelProto) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Names, dims and data of all tensors."""
    return [(t.name, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in tensors_of(model)]


def test_the_same_model(tmp_path: Path) -> None:
    model = everywhere()
    read = wire.without_large(written(model, tmp_path))
    where = [ExternalDataInfo(t) for t in tensors_of(read) if uses_external_data(t)]
    assert len(where) == 3 and {info.location for info in where} == {"model.onnx"}
    assert held(copied(read, tmp_path, in_proto)) == held(model)


def test_small_weights_and_small_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(everywhere(), tmp_path)
    monkeypatch.setattr(wire, "LARGE", 1024)
    assert wire.without_large(path) == everywhere()
    monkeypatch.setattr(opening, "MAPPED", path.stat().st_size + 1)
    monkeypatch.setattr(wire, "LARGE", 64)
    assert opening.read_model(path) == everywhere()


def test_fields_that_come_twice_and_fields_that_nobody_knows(tmp_path: Path) -> None:
    """Protobuf lets a message come in pieces, and its readers skip what they do not know."""
    model = everywhere()
    first, second = ModelProto(), ModelProto()
    first.CopyFrom(model)
    second.graph.initializer.extend(model.graph.initializer[1:])
    del first.graph.initializer[1:]
    path = tmp_path / "model.onnx"
    path.write_bytes(first.SerializeToString() + second.SerializeToString() + b"\xca\x3e\x02hi")
    assert held(copied(wire.without_large(path), tmp_path, in_proto)) == held(model)


def test_a_file_behind_a_link(tmp_path: Path) -> None:
    """Caches of downloads are laid out so: the name here, the file in another folder."""
    (tmp_path / "names").mkdir()
    link = tmp_path / "names" / "net.onnx"
    link.symlink_to(written(everywhere(), tmp_path))
    assert np.array_equal(load(link).array("a"), load(tmp_path / "model.onnx").array("a"))


def test_a_tensor_with_numbers_one_by_one_is_read(tmp_path: Path) -> None:
    tensor = helper.make_tensor("words", TensorProto.STRING, [300], np.full(300, b"word"))
    model = everywhere()
    model.graph.initializer.append(tensor)
    assert wire.without_large(written(model, tmp_path)).graph.initializer[-1] == tensor


def test_a_file_of_zeros_is_said_at_once(tmp_path: Path) -> None:
    """What an aborted download leaves."""
    path = tmp_path / "model.onnx"
    path.write_bytes(everywhere().SerializeToString()[:200] + bytes(1 << 24))
    start = time.perf_counter()
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(path)
    path.write_bytes(bytes(1 << 24))
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(path)
    assert time.perf_counter() - start < 5


def test_a_file_that_is_cut_off_or_noise_is_said(tmp_path: Path) -> None:
    whole = everywhere().SerializeToString()
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    for stop in [1, *rng.integers(2, len(whole) - 1, 60)]:
        path.write_bytes(whole[:stop])
        with pytest.raises(ModelError, match=r"model\.onnx"):
            load(path)
    for _ in range(60):
        path.write_bytes(rng.integers(0, 256, 400, dtype=np.uint8).tobytes())
        with pytest.raises((DecodeError, ValueError)):
            wire.without_large(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(path)


def test_a_model_is_cut_as_it_is_in_memory(tmp_path: Path) -> None:
    """And it is one file again, though its weights were never in memory together."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Relu", b.conv(y, 16, name="w"))

    model = sandwich(middle, channels=16)
    path, out = written(model, tmp_path), tmp_path / "out.onnx"
    graph = load(path)
    assert is_external(graph) and not data_files(graph) and file_bytes(graph) == path.stat().st_size
    passes = [get("prune_channels")(target="macs=0.5", criterion="l2", align=1), get("reconstruct")(method="bias")]
    made = Pipeline(passes).run(path, out=out, checks=Checks(seconds=0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]
    assert made.record["file_bytes"] == {"before": path.stat().st_size, "after": out.stat().st_size}
    want = Pipeline(passes).run(model, checks=Checks(seconds=0)).model
    again = Pipeline(passes).run(path, checks=Checks(seconds=0)).model
    assert held(onnx.load(out)) == held(want) == held(made.model) == held(again)
