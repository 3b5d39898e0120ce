"""Readers of arrays: what fits is read, what does not says so in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.data import read
from onnxprune.errors import DataError
from onnxprune.feeds import InputSpec, rows

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = {"x": InputSpec(F32, ("N", 3, 4, 4))}
FIXED = {"x": InputSpec(F32, (2, 3))}
TWO = {"a": InputSpec(F32, ("N", 3)), "b": InputSpec(I64, ("N",))}


def images(count: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((count, *(shape or (3, 4, 4)))).astype(np.float32)


def feeds_of(*args: Any, **options: Any) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Read twice, and check that both times the same comes out."""
    feeds = read(*args, **options)
    once, twice = list(feeds), list(feeds)
    assert [f.keys() for f in once] == [f.keys() for f in twice]
    assert all(np.array_equal(f[n], g[n]) for f, g in zip(once, twice, strict=True) for n in f)
    return once


def test_npz_with_two_inputs_in_batches(tmp_path: Path) -> None:
    a, b = images(5, 3), np.arange(5)
    np.savez(tmp_path / "d.npz", a=a, b=b, labels=np.zeros(9))
    feeds = feeds_of(tmp_path / "d.npz", TWO, batch=2)
    assert [rows(f) for f in feeds] == [2, 2, 1]
    assert np.array_equal(np.concatenate([f["a"] for f in feeds]), a)
    assert np.array_equal(np.concatenate([f["b"] for f in feeds]), b)
    assert len(feeds_of(str(tmp_path / "d.npz"), TWO)) == 5
    assert [rows(f) for f in feeds_of(tmp_path / "d.npz", TWO, batch=4, limit=3)] == [3]
    assert len(feeds_of(tmp_path / "d.npz", TWO, limit=3)) == 3


def test_npy_and_npz_with_one_input(tmp_path: Path) -> None:
    x = images(3)
    np.save(tmp_path / "d.npy", x)
    np.savez_compressed(tmp_path / "d.npz", x)
    for name in ("d.npy", "d.npz"):
        assert np.array_equal(np.concatenate([f["x"] for f in feeds_of(tmp_path / name, IMAGE)]), x)


def test_a_directory_of_samples_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        np.save(tmp_path / f"img{index}.npy", np.full((3, 4, 4), index, np.float32))
    feeds = feeds_of(tmp_path, IMAGE)
    assert [f["x"].shape for f in feeds] == [(1, 3, 4, 4)] * 3
    assert [f["x"][0, 0, 0, 0] for f in feeds] == [1, 2, 10]


def test_names_are_sorted_as_text_and_numbers_as_numbers(tmp_path: Path) -> None:
    for index, name in enumerate(("aaa2", "aaa10", "b3c", "b20c", "c")):
        np.save(tmp_path / f"{name}.npy", np.full((3, 4, 4), index, np.float32))
    assert [f["x"][0, 0, 0, 0] for f in feeds_of(tmp_path, IMAGE)] == [0, 1, 2, 3, 4]


def test_a_directory_with_a_file_for_each_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images(4, 3))
    np.save(tmp_path / "b.npy", np.arange(4))
    assert [int(f["b"][0]) for f in feeds_of(tmp_path, TWO)] == [0, 1, 2, 3]


def test_onnx_test_data_sets(tmp_path: Path) -> None:
    for index in range(2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        for slot, array in enumerate((images(2, 3) + index, np.array([7, index]))):
            (folder / f"input_{slot}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
        (folder / "output_0.pb").write_bytes(b"")
    feeds = feeds_of(tmp_path, TWO)
    assert [f["b"].tolist() for f in feeds] == [[7, 0], [7, 1]]
    assert len(feeds_of(tmp_path / "test_data_set_1", TWO)) == 1
    (tmp_path / "test_data_set_0" / "input_1.pb").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"input_1\.pb: not a tensor"):
        read(tmp_path, TWO)


def test_python_sources() -> None:
    x = images(4)
    feeds = [{"x": x[:3]}, {"x": x[3:]}]

    def generate() -> Iterator[Any]:
        yield from feeds

    for source in (feeds, generate(), [x[:3], x[3:]]):
        assert [rows(f) for f in feeds_of(source, IMAGE)] == [3, 1]
    for stacked in ({"x": x}, x):
        assert [rows(f) for f in feeds_of(stacked, IMAGE)] == [1] * 4
    assert [rows(f) for f in feeds_of(feeds, IMAGE, batch=2)] == [2, 1, 1]
    assert [rows(f) for f in feeds_of(feeds, IMAGE, limit=2)] == [3]


def test_samples_are_single_whatever_the_batch() -> None:
    feeds = read(images(5), IMAGE, batch=3, limit=4)
    assert [rows(f) for f in feeds] == [3, 2]
    assert [rows(f) for f in feeds.samples()] == [1] * 4
    assert [rows(f) for f in read([images(3), images(2)], IMAGE, batch=2).samples()] == [3, 2]
    assert [rows(f) for f in read(images(5, 3), FIXED).samples()] == [2, 2]
    assert feeds.kind == "data"


def test_a_fixed_batch_is_fed_in_its_own_size() -> None:
    assert [f["x"].shape for f in feeds_of(images(5, 3), FIXED)] == [(2, 3), (2, 3)]
    assert [f["x"].shape for f in feeds_of([images(4, 3)], FIXED)] == [(2, 3), (2, 3)]
    assert [f["x"].shape for f in feeds_of(images(3, 2, 3), FIXED)] == [(2, 3)] * 3  # stacked on a new axis
    with pytest.raises(DataError, match="wants 2 samples at a time and the data hold 1"):
        read(images(1, 3), FIXED)


def test_constants_serve_every_feed() -> None:
    inputs = {"x": InputSpec(F32, ("N", 3)), "scale": InputSpec(F32, (1,)), "t": InputSpec(F32, ())}
    arrays = {"x": images(3, 3), "scale": np.ones(1, np.float32), "t": np.float32(0.5)}
    feeds = feeds_of(arrays, inputs)
    assert len(feeds) == 3
    assert all(f["scale"].shape == (1,) and f["t"].shape == () for f in feeds)


def test_any_rank_is_taken_where_the_model_declares_none() -> None:
    assert feeds_of([images(2, 5)], {"x": (np.float32, None)})[0]["x"].shape == (2, 5)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("float64", "float32"),
        ("float32", "float64"),
        ("float32", "float16"),
        ("float32", "bfloat16"),
        ("float16", "float32"),
        ("int64", "int32"),
        ("int32", "int64"),
        ("uint8", "int64"),
        ("int64", "bool"),
        ("bool", "int64"),
        ("U1", "O"),
    ],
)
def test_casts_that_keep_values(source: str, target: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16) if target == "bfloat16" else np.dtype(target)
    data = np.array([[0, 1, 1]]).astype(source)
    result = feeds_of(data, {"x": (dtype, ("N", 3))})[0]["x"]
    assert result.dtype == dtype
    assert np.array_equal(result.astype(source), data)


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (np.array([[1e300]]), "float32", "float64 data are out of its range; rescale"),
        (np.array([[1e6]], np.float32), "float16", "out of its range"),
        (np.array([[2**40]]), "int32", "out of its range"),
        (np.array([[-1]]), "uint8", "out of its range"),
        (np.array([[2]]), "bool", "out of its range"),
        (np.array([[3]], np.uint8), "float32", "wants float32 and the data are uint8; scale it"),
        (np.array([[0.5]], np.float32), "int64", "wants int64 and the data are float32; save it as int64"),
        (np.array([[np.nan]], np.float32), "float32", "holds NaN"),
        (np.array([[-np.inf]], np.float32), "float32", "holds infinite values"),
        (np.array([[np.inf]]), "float16", "holds infinite values"),
        (np.array([[np.inf]]).astype(ml_dtypes.bfloat16), "float32", "holds infinite values"),
    ],
)
def test_casts_that_lose_values(data: Any, target: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(data, {"x": (np.dtype(target), ("N", 1))})
    assert str(caught.value).startswith("the data: input 'x'")


@pytest.mark.parametrize(
    ("source", "inputs", "message"),
    [
        (images(2, 4, 4, 3), IMAGE, r"float32 \[N, 3, 4, 4\] and .* float32 \[2, 4, 4, 3\].*channels-last"),
        (images(2, 3, 5, 4), IMAGE, "stack samples on axis 0"),
        (images(2, 3), IMAGE, r"data are float32 \[2, 3\]"),
        (np.float32(1), IMAGE, "the data are a float32"),
        (np.array(1.0), IMAGE, "the data are a ndarray"),
        (7, IMAGE, "the data are a int"),
        ({"y": images(1)}, IMAGE, r"no array for input x \(found: y\)"),
        ({"a": images(3, 3), "b": np.arange(2)}, TWO, "2 feeds' worth of samples, another input 3"),
        (images(3, 3), TWO, "one array, and the model has the inputs a, b"),
        ([[[1.0], [1.0, 2.0]]], IMAGE, "feed 0 of the data: input 'x': no array"),
        ([{"x": "text"}], IMAGE, "feed 0 of the data: input 'x' wants"),
        ([images(3, 3)], TWO, "feed 0 of the data: one array"),
        (images(0), IMAGE, "the data hold 0"),
        ([], IMAGE, "no samples"),
        ({}, {}, "the model has no inputs"),
    ],
)
def test_data_that_do_not_fit(source: Any, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(source, inputs)


def test_numbers_out_of_range() -> None:
    for batch, limit in ((0, None), (None, 0)):
        with pytest.raises(DataError, match="must be at least 1"):
            read(images(1), IMAGE, batch, limit)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "bad.npy").write_bytes(b"text")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "table.csv").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "bad.npz": "cannot be read",
        "bad.npy": "cannot be read",
        "objects.npy": "cannot be read",
        "table.csv": "'.csv' files are not read",
        "empty": "no .npz, .npy, test_data_set_",
        "none.npz": "no such file or directory",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / name, IMAGE)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_later_sample_that_does_not_fit_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", images(1))
    np.save(tmp_path / "1.npy", images(1, 3, 4, 5))
    feeds = read(tmp_path, IMAGE)
    with pytest.raises(DataError, match=r"1\.npy: input 'x' wants"):
        list(feeds)
