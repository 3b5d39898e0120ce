"""Arrays in files: `.npz`, `.npy`, directories of them, and ONNX's test data sets."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.data.arrays import Record, named
from onnxprune.errors import DataError, one_line
from onnxprune.feeds import Array, InputSpec


def natural(name: str) -> list[str]:
    """A key that sorts `img2` before `img10`."""
    return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def has_arrays(path: Path) -> bool:
    """Whether a directory has something for `records`."""
    return any(
        entry.suffix in (".npz", ".npy") or entry.name == "input_0.pb" or entry.name.startswith("test_data_set_")
        for entry in path.iterdir()
    )


def records(path: Path, inputs: Mapping[str, InputSpec]) -> Iterator[Record]:
    """What a file or a directory holds, file by file."""
    yield from _directory(path, inputs) if path.is_dir() else [_file(path, inputs)]


def _directory(path: Path, inputs: Mapping[str, InputSpec]) -> Iterator[Record]:
    entries = sorted(path.iterdir(), key=lambda e: natural(e.name))
    sets = [e for e in entries if e.is_dir() and e.name.startswith("test_data_set_")]
    files = [e for e in entries if e.suffix in (".npz", ".npy")]
    stems = {file.stem: file for file in files if file.suffix == ".npy"}
    if (path / "input_0.pb").exists():
        yield _test_set(path, inputs)
    elif sets:
        yield from (_test_set(entry, inputs) for entry in sets)
    elif len(inputs) > 1 and set(inputs) <= set(stems):
        yield str(path), {name: _load(stems[name]) for name in inputs}, True
    elif files:
        yield from (_file(file, inputs) for file in files)
    else:
        raise DataError(f"{path}: no .npz, .npy, test_data_set_* or image in it; save the inputs with numpy.savez")


def _file(path: Path, inputs: Mapping[str, InputSpec]) -> Record:
    if path.suffix not in (".npz", ".npy"):
        raise DataError(f"{path}: '{path.suffix}' files are not read; give an .npz, an .npy or a directory of them")
    loaded = _load(path)
    if path.suffix == ".npz" and len(loaded) == len(inputs) == 1:  # whatever its one key is
        loaded = next(iter(loaded.values()))
    return str(path), named(loaded, inputs, str(path)), True


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if archive[name].dtype.kind != "O"}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(f"{path}: cannot be read ({one_line(error, 120)}); save it again with numpy") from error


def _test_set(path: Path, inputs: Mapping[str, InputSpec]) -> Record:
    arrays: dict[str, Array] = {}
    for index, name in enumerate(inputs):
        file, tensor = path / f"input_{index}.pb", onnx.TensorProto()
        try:
            if file.exists():
                tensor.ParseFromString(file.read_bytes())
                arrays[tensor.name if tensor.name in inputs else name] = onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # protobuf and numpy each have their own
            raise DataError(f"{file}: not a tensor ({one_line(error, 120)}); write it again") from error
    return str(path), arrays, False
