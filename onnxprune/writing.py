"""Write a model whole or not at all: under a temporary name, checked, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto

from onnxprune.errors import OutputError, one_line
from onnxprune.graph import PROTOBUF_LIMIT, Graph, data_files


def check_output(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Refuse an output that would replace the model's own files.

    Raises:
        OutputError: `path`, or the data file that may come with it, is one of them.
    """
    if graph.path is None:
        return
    target = Path(path).resolve()
    written = {target, target.with_name(target.name + ".data")}
    read = {graph.path.resolve(), *(p.resolve() for p in data_files(graph))}
    if both := written & read:
        raise OutputError(f"{path}: would replace {min(both).name!r} of the model that is pruned; choose another name")


@contextmanager
def draft(proto: ModelProto, path: str | os.PathLike[str], external: bool = False) -> Iterator[Path]:
    """Write a model under a temporary name, hand it out to be checked, and move it into place if nothing is raised.

    Args:
        proto: the model, with its weights in memory.
        path: where the model goes; an existing file is replaced only when the new one is complete.
        external: put the weights beside the model in `<name>.data` (always done beyond 2 GB).

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    data = target.name + ".data"
    try:
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{target}: is a device, and a model would replace it; give the name of a file")
        folder = Path(tempfile.mkdtemp(prefix=".onnxprune-", dir=target.parent))
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"{target}: cannot be written ({reason}); choose another output path") from error
    try:
        try:
            _write(proto, folder / target.name, data if external or proto.ByteSize() > PROTOBUF_LIMIT else None)
        except (OSError, ValueError) as error:
            raise OutputError(f"{target}: cannot be written ({one_line(error)}); choose another output path") from error
        yield folder / target.name
        if (folder / data).exists():
            os.replace(folder / data, target.parent / data)
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(proto: ModelProto, path: str | os.PathLike[str], external: bool = False) -> None:
    """Write a model in one step; see `draft`."""
    with draft(proto, path, external):
        pass


def _write(proto: ModelProto, path: Path, data: str | None) -> None:
    if data is None:
        path.write_bytes(proto.SerializeToString())
        return
    copy = ModelProto()
    copy.CopyFrom(proto)  # onnx moves the weights out of the model that it saves
    onnx.save_model(copy, path, format="protobuf", save_as_external_data=True, location=data, size_threshold=1024)
