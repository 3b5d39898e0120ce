"""Generated inputs."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data import Data, read
from onnxprune.data.synthetic import synthetic
from onnxprune.data.vocabulary import vocabularies
from onnxprune.errors import ShapeError
from onnxprune.feeds import rows

F32, U8, I64 = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int64)
IMAGE: Any = {"x": (F32, ("N", 3, 32, 32))}


def stack(inputs: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([feed["x"] for feed in synthetic(inputs, **options)])


def roughness(image: np.ndarray[Any, Any], axis: int) -> float:
    """Of neighbours, against the whole: 2 for white noise."""
    return float(np.square(np.diff(image.astype(np.float64), axis=axis)).mean() / image.var())


def test_images_are_smooth_with_zero_mean_and_unit_variance() -> None:
    x = stack(IMAGE)
    assert x.shape == (64, 3, 32, 32) and x.dtype == F32
    assert abs(x.mean()) < 0.1 and 0.9 < x.var() < 1.1
    assert roughness(x, 2) < 1 and roughness(x, 3) < 1
    assert abs(np.corrcoef(x[:, 0].ravel(), x[:, 1].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("shape", [(1, 40, 24, 3), ("N", "H", "W", 3)])
def test_channels_may_be_last(shape: Any) -> None:
    x = stack({"x": (F32, shape)}, count=4)
    assert roughness(x, 1) < 1 and roughness(x, 2) < 1
    assert x.shape[1:] == ((40, 24, 3) if shape[0] == 1 else (224, 224, 3))


def test_eight_bit_images_and_halves() -> None:
    x = stack({"x": (U8, (1, 32, 32, 3))})
    assert x.dtype == U8 and x.min() == 0 and x.max() == 255 and 115 < x.mean() < 140
    assert roughness(x, 1) < 1
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert stack({"x": (dtype, (1, 3, 8, 8))}, count=1).dtype == dtype


def test_the_smallest_images() -> None:
    for shape in ((1, 1, 1, 1), (2, 3, 1, 7), (1, 3, 5, 4)):
        x = stack({"x": (F32, shape)}, count=3)
        assert x.shape[1:] == shape[1:] and np.isfinite(x).all()


def test_what_is_no_image_is_as_random_feeds_has_it() -> None:
    inputs = {
        "features": (F32, (1, 64, 32, 32)),
        "past": (F32, (1, 4, 16, 16)),
        "ids": (I64, ("batch", "seq")),
        "attention_mask": (I64, ("batch", "seq")),
        "flag": (np.dtype(bool), (8,)),
        "name": (np.dtype(object), (1,)),
    }
    feed = next(synthetic(inputs, vocabulary={"attention_mask": 50}))
    assert list(feed) == list(inputs)
    assert roughness(feed["features"], 3) > 1.5 and roughness(feed["past"], 3) > 1.5
    assert set(feed["ids"].ravel()) == {0, 1}
    assert feed["attention_mask"].min() == feed["attention_mask"].max() == 1
    assert feed["flag"].dtype == bool and feed["name"].dtype == object


def test_seeds_counts_and_shapes() -> None:
    x, again, other = (stack(IMAGE, count=3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(x, again) and not np.array_equal(x, other)
    assert not np.array_equal(x[0], x[1])
    assert np.array_equal(stack(IMAGE, count=1, seed=1), x[:1])
    assert stack(IMAGE, count=2, shapes={"x": (4, 3, 32, 32)}).shape[0] == 8
    with pytest.raises(ShapeError):
        synthetic(IMAGE, shapes={"x": (1, 3, 9, 9)})


def test_read() -> None:
    feeds = read("synthetic", IMAGE)
    assert feeds.kind == "synthetic"
    once, twice = list(feeds), list(feeds)
    assert len(once) == 64
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(once, twice, strict=True))
    assert [rows(f) for f in read("synthetic", IMAGE, batch=4, limit=10)] == [4, 4, 2]
    assert [rows(f) for f in read("synthetic", IMAGE, batch=4, limit=10).samples()] == [1] * 10
    given = Data("synthetic", shapes={"x": (2, 3, 32, 32), "an inner value": (7,)}, seed=3)
    assert next(iter(read(given, IMAGE)))["x"].shape == (2, 3, 32, 32)


def test_a_folder_of_that_name_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    np.save(tmp_path / "synthetic" / "x.npy", np.zeros((2, 3, 32, 32), np.float32))
    assert read("./synthetic", IMAGE).kind == "data"
    assert read(Path("synthetic"), IMAGE).kind == "data"
    assert read("synthetic", IMAGE).kind == "synthetic"


# Vocabularies


def embedding() -> onnx.ModelProto:
    """Words through a cast, types in a quantised table, positions in a constant; an axis that is not the first."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["cast"], to=TensorProto.INT32),
        helper.make_node("Gather", ["words", "cast"], ["a"]),
        helper.make_node("Gather", ["more", "ids"], ["b"], axis=0),
        helper.make_node("DequantizeLinear", ["types", "scale"], ["table"]),
        helper.make_node("Gather", ["table", "kinds"], ["c"]),
        helper.make_node("Constant", [], ["places"], value=numpy_helper.from_array(np.zeros((12, 4), np.float32))),
        helper.make_node("Gather", ["places", "at"], ["d"]),
        helper.make_node("Gather", ["words", "column"], ["e"], axis=1),
        helper.make_node("Gather", ["computed", "free"], ["f"]),
    ]
    inputs = ["ids", "kinds", "at", "column", "free"]
    arrays = {
        "words": np.zeros((90, 4), np.float32),
        "more": np.zeros((80, 4), np.float32),
        "types": np.zeros((2, 4), np.int8),
        "scale": np.float32(1),
    }
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "abcd"]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph(nodes, "g", values, outputs, tensors))


def test_token_ids_are_uniform_where_the_vocabulary_is_known(tmp_path: Path) -> None:
    model = embedding()
    onnx.save(model, tmp_path / "m.onnx")
    assert vocabularies(model) == vocabularies(tmp_path / "m.onnx") == {"ids": 80, "kinds": 2, "at": 12}
    ids = np.concatenate([feed["ids"].ravel() for feed in read("synthetic", model)])
    assert ids.dtype == I64 and ids.min() == 0 and ids.max() == 79
    feed = next(iter(read("synthetic", model)))
    assert feed["at"].max() < 12 and feed["column"].max() == feed["free"].max() == 1


def test_the_vocabulary_of_a_fused_embedding() -> None:
    node = helper.make_node(
        "EmbedLayerNormalization", ["ids", "kinds", "w", "p", "s"], ["y", "m"], domain="com.microsoft"
    )
    values = [helper.make_tensor_value_info(name, TensorProto.INT32, [1, 4]) for name in ("ids", "kinds")]
    sizes = (("w", 30), ("p", 8), ("s", 2))
    tensors = [numpy_helper.from_array(np.zeros((n, 4), np.float32), name) for name, n in sizes]
    graph = helper.make_graph([node], "g", values, [], tensors)
    assert vocabularies(helper.make_model(graph)) == {"ids": 30, "kinds": 2}


def test_nothing_is_known_of_a_session() -> None:
    class Session:
        def get_inputs(self) -> list[Any]:
            return []

    assert vocabularies(Session()) == {}
