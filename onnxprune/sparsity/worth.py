"""What zeros are worth: counted, and in bytes, as a compressed file and as sparse tensors."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxprune.sparse import sparse_bytes
from onnxprune.tensors import payload

LEVEL = 6
CHUNK = 1 << 20


@dataclass(frozen=True)
class Bytes:
    """Of weights: as they are, after DEFLATE (as in a ZIP file), and as sparse tensors."""

    dense: int = 0
    deflated: int = 0
    sparse: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.dense + other.dense, self.deflated + other.deflated, self.sparse + other.sparse)


def bytes_of(array: NDArray[Any], data_type: int) -> Bytes:
    """Of a constant."""
    return Bytes(array.nbytes, _deflated(array, data_type), sparse_bytes(array))


def _deflated(array: NDArray[Any], data_type: int) -> int:
    packer, data, size = zlib.compressobj(LEVEL), memoryview(payload(array, data_type)), 0
    for start in range(0, len(data), CHUNK):
        size += len(packer.compress(data[start : start + CHUNK]))
    return size + len(packer.flush())
