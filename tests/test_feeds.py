"""What models declare as inputs, and random feeds for them."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import DataError, ModelError, ShapeError
from onnxprune.feeds import InputSpec, choose_shapes, input_specs, random_feeds

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = {"x": InputSpec(F32, ("N", 3, 4, 4))}


def model(*inputs: tuple[str, int, Any]) -> onnx.ModelProto:
    """A model with these inputs (name, element type, shape) and an output for each."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    values = [helper.make_tensor_value_info(*i) for i in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, kind, shape in inputs]
    graph = helper.make_graph(nodes, "g", values, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Inputs


def test_input_specs_of_a_model_its_bytes_its_path_and_a_session(tmp_path: Path) -> None:
    import onnxruntime

    proto = model(("x", TensorProto.FLOAT, ["N", 3]), ("s", TensorProto.INT64, []))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = {"x": InputSpec(F32, ("N", 3)), "s": InputSpec(I64, ())}
    for source in (proto, proto.SerializeToString(), path, str(path), session):
        assert input_specs(source) == expected
    assert str(expected["x"]) == "float32 [N, 3]"


def test_inputs_with_an_initializer_are_no_inputs() -> None:
    proto = model(("x", TensorProto.FLOAT, [1]), ("w", TensorProto.FLOAT, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    assert list(input_specs(proto)) == ["x"]


def test_a_sequence_input_is_refused() -> None:
    proto = model(("x", TensorProto.FLOAT, [1]))
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(DataError, match="'x' is a sequence_type"):
        input_specs(proto)


def test_an_unreadable_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match=r"broken\.onnx: not an ONNX model"):
        input_specs(broken)
    with pytest.raises(ModelError, match=r"none\.onnx: cannot be read \(No such file"):
        input_specs(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="the model in memory: not an ONNX model"):
        input_specs(b"\xff" * 64)


# Random feeds


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (F32, ("N", 3, "H", "W"), (1, 3, 224, 224)),
        (F32, (None, None, None, None), (1, 3, 224, 224)),
        (F32, (1, 3, 48, "W"), (1, 3, 48, 224)),
        (F32, ("N", "H", "W", 3), (1, 224, 224, 3)),
        (F32, ("N", 8, "past_len", 64), (1, 8, 16, 64)),
        (F32, (-1, 10), (1, 10)),
        (I64, ("batch", "seq"), (1, 16)),
        (I64, ("sequence_length",), (16,)),
        (F32, ("T", "batch_size", 5), (1, 1, 5)),
        (F32, (), ()),
        (F32, None, ()),
    ],
)
def test_free_axes(dtype: Any, shape: Any, expected: tuple[int, ...]) -> None:
    chosen = choose_shapes({"x": (dtype, shape)})
    assert chosen.shapes == {"x": expected}
    assert len(chosen.assumed) == (0 if shape == () else 1)


def test_axis_names_agree_across_inputs_and_sums_add_up() -> None:
    inputs = {"ids": (I64, ("B", "S")), "past": (F32, ("B", 2, "P", 4)), "mask": (I64, ("B", "P + S"))}
    chosen = choose_shapes(inputs, {"past": (3, 2, 7, 4)})
    assert chosen.shapes == {"past": (3, 2, 7, 4), "ids": (3, 16), "mask": (3, 23)}
    assert chosen.assumed == (
        "input 'ids' int64 [B, S] was fed as [3, 16]",
        "input 'mask' int64 [B, P + S] was fed as [3, 23]",
    )


@pytest.mark.parametrize("given", [{"y": (1,)}, {"x": (1, 4, 8, 8)}, {"x": (1, 3)}, {"x": (-1, 3, 4, 4)}])
def test_shapes_that_do_not_fit(given: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError):
        choose_shapes(IMAGE, given)


def test_random_feeds_are_reproducible_and_safe() -> None:
    proto = model(
        ("x", TensorProto.FLOAT16, ["N", 3]),
        ("y", TensorProto.BFLOAT16, ["N", 3]),
        ("ids", TensorProto.INT32, ["N", 50]),
        ("mask", TensorProto.INT64, ["N", 50]),
        ("flag", TensorProto.BOOL, [40]),
        ("image", TensorProto.UINT8, [1, 8, 8, 3]),
        ("text", TensorProto.STRING, [2]),
        ("t", TensorProto.DOUBLE, []),
    )
    first, second = random_feeds(proto, seed=3, count=2)
    again = random_feeds(proto, seed=3, count=1)[0]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x"], second["x"])
    assert first["x"].dtype == np.float16 and first["y"].dtype == ml_dtypes.bfloat16
    assert set(first["ids"].ravel()) == {0, 1} and first["ids"].dtype == np.int32
    assert first["mask"].min() == 1
    assert set(first["flag"]) == {False, True}
    assert first["image"].max() > 1
    assert list(first["text"]) == ["a", "a"]
    assert first["t"].shape == () and first["t"].dtype == np.float64
