"""Write a model whole or not at all: under a temporary name, checked, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnxprune import graph as graphs
from onnxprune.errors import OutputError, one_line
from onnxprune.graph import Graph, data_files
from onnxprune.opening import read_model
from onnxprune.tensors import Bytes, Store, copied, in_proto


def check_output(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Refuse an output that would replace the model's own files.

    Raises:
        OutputError: `path`, or the data file that may come with it, is one of them.
    """
    if graph.path is None:
        return
    target = Path(path).resolve()
    written = {target, _beside(target)}
    read = {graph.path.resolve(), *(p.resolve() for p in data_files(graph))}
    if both := written & read:
        raise OutputError(f"{path}: would replace {min(both).name!r} of the model that is pruned; choose another name")


class DataFile:
    """A store that appends tensors to a file: what a `<name>.onnx.data` is made by.

    Small tensors stay in the proto. Large ones begin where every system can map them into memory.
    """

    def __init__(self, path: Path) -> None:
        """`path`: a file that does not exist yet; it appears with the first tensor."""
        self.path = path

    def __call__(self, tensor: TensorProto, data: Bytes) -> None:
        """Write the bytes of a tensor, and say in the tensor where they are."""
        size, sizes = len(data), tensor.data_type in SIZES and len(tensor.dims) < 2
        if size < (PAGE if sizes else INLINE):
            in_proto(tensor, data)
            return
        align = PAGE if size >= LARGE else CACHE_LINE
        with self.path.open("ab") as file:
            offset = -(-file.tell() // align) * align
            file.truncate(offset)
            file.write(data)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))


# Tensors of fewer bytes stay in the proto, as in `onnx.save_model`; larger ones start where Windows, too, can map
# them, as ONNX Runtime's own files do, and the others so that vector instructions find them aligned.
INLINE, LARGE, PAGE, CACHE_LINE = 1024, 1 << 20, 1 << 16, 64
# Types of what may be sizes, by which ONNX Runtime infers shapes before it has read the data file.
SIZES = frozenset({TensorProto.INT32, TensorProto.INT64})


def stream(path: Path, make: Callable[[Store], ModelProto]) -> Path:
    """Write a model while it is made, with its weights in `<name>.data` beside it.

    Args:
        path: where the model goes.
        make: puts the weights into the store that it is given, and returns the model.

    Raises:
        OutputError: the disk is full, or it cannot be written.
    """
    try:
        proto = make(DataFile(_beside(path)))
        path.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise OutputError(
            f"{path.name}: cannot be written ({one_line(error)}); free some space, or choose another output path"
        ) from error
    return path


def passing(make: Callable[[Store], ModelProto], in_file: bool) -> Graph:
    """A model that is only on the way to another one.

    Args:
        make: puts the weights into the store that it is given, and returns the model.
        in_file: keep the weights in a temporary file; it goes when the graph and all views of it do.
    """
    if not in_file:
        return graphs.load(make(in_proto))
    folder = _Folder()
    return replace(graphs.load(stream(folder.path / "model.onnx", make)), owned=folder)


class _Folder:
    """A temporary folder that goes when nobody holds this any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextmanager
def workspace(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A temporary folder beside an output (or anywhere, where there is none), so that a file can be moved into place.

    Raises:
        OutputError: the output's folder does not exist or cannot be written, or the output is no file.
    """
    target = None if path is None else Path(path)
    try:
        if target is not None and target.is_dir():
            raise OutputError(f"{target}: is a folder; give the name of a file")
        if target is not None and target.exists() and not target.is_file():
            raise OutputError(f"{target}: is a device, and a model would replace it; give the name of a file")
        folder = Path(tempfile.mkdtemp(prefix=".onnxprune-", dir=None if target is None else target.parent))
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"{target}: cannot be written ({reason}); choose another output path") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def draft(model: ModelProto | Path, path: str | os.PathLike[str], external: bool = False) -> Iterator[Path]:
    """Write a model under a temporary name, hand it out to be checked, and move it into place if nothing is raised.

    Args:
        model: the model with its weights in memory, or one that `stream` wrote into a `workspace` of `path`, where
            its data stay beside it if that is wanted.
        path: where the model goes; an existing file is replaced only when the new one is complete.
        external: put the weights beside the model in `<name>.data` (always done beyond 2 GB).

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    if isinstance(model, Path) and (external or _bytes(model) > graphs.PROTOBUF_LIMIT):
        yield model
        move(model, target)
        return
    with workspace(target) as folder:
        try:
            proto = whole(model) if isinstance(model, Path) else model
            write(proto, folder / target.name, external or proto.ByteSize() > graphs.PROTOBUF_LIMIT)
            del proto
        except (OSError, ValueError) as error:
            raise OutputError(f"{target}: cannot be written ({one_line(error)}); choose another output path") from error
        yield folder / target.name
        move(folder / target.name, target)


def save(proto: ModelProto, path: str | os.PathLike[str], external: bool = False) -> None:
    """Write a model in one step; see `draft`."""
    with draft(proto, path, external):
        pass


def write(proto: ModelProto, path: Path, external: bool) -> None:
    """Write a model that is in memory, without a second copy of its weights where they are external."""
    if not external:
        path.write_bytes(proto.SerializeToString())
        return
    stream(path, lambda store: copied(proto, None, store))


def whole(path: Path) -> ModelProto:
    """A model in a file, with all its weights in memory."""
    return copied(read_model(path), path.parent, in_proto)


def _beside(path: Path) -> Path:
    """Where the weights of a model are that is written with external data."""
    return path.with_name(path.name + ".data")


def _bytes(path: Path) -> int:
    """Size of a model that `stream` wrote."""
    return sum(p.stat().st_size for p in (path, _beside(path)) if p.exists())


def move(source: Path, target: Path) -> None:
    """Put a model that `write` or `stream` made in its place, with the data beside it."""
    if _beside(source).exists():
        os.replace(_beside(source), _beside(target))
    os.replace(source, target)
