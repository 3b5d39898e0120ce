"""A model's file as protobuf lays it out: large weights stay where they are in it, and are not read.

A message is a row of fields: a key (the field's number and its kind), and a value. Kind 2 is a length and so many
bytes: text, data, or another message. See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

LARGE = 1 << 20  # bytes of a weight that stays in the file
MANY = 256  # fields of a tensor that has its numbers one by one: it is read

_RAW = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
# Message -> the fields of it in which a weight may be, however deep.
_INSIDE: dict[type[Message], dict[str, type[Message]]] = {
    ModelProto: {"graph": GraphProto},
    GraphProto: {"initializer": TensorProto, "node": NodeProto},
    NodeProto: {"attribute": AttributeProto},
    AttributeProto: {"t": TensorProto, "g": GraphProto},
}


def without_large(path: Path) -> ModelProto:
    """The model in a file; large tensors point to their data in this same file, as external data do.

    Raises:
        DecodeError: this is no such message.
        OSError, ValueError: the file cannot be read, or is empty.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = ModelProto()
        model.ParseFromString(_message(data, 0, len(data), ModelProto, path.name))
        return model


class _Field(NamedTuple):
    """A field of a message: where its key begins, where its value begins and ends."""

    number: int
    kind: int
    key: int
    start: int
    stop: int


def _message(data: mmap.mmap, start: int, stop: int, kind: type[Message], name: str) -> bytes:
    """The message between two places without its large weights."""
    if stop - start < LARGE:
        return data[start:stop]
    if kind is TensorProto:
        return _tensor(data, start, stop, name)
    known, found = kind.DESCRIPTOR.fields_by_number, list[bytes]()
    for field in _fields(data, start, stop):
        inner = _INSIDE[kind].get(known[field.number].name) if field.number in known else None
        if inner is None or field.kind != _BYTES:
            found.append(data[field.key : field.stop])
        else:
            value = _message(data, field.start, field.stop, inner, name)
            found += [_coded(field.number << 3 | _BYTES), _coded(len(value)), value]
    return b"".join(found)


def _tensor(data: mmap.mmap, start: int, stop: int, name: str) -> bytes:
    """The tensor, its raw data left out and pointed at; the whole where it has none, or several."""
    fields = list(islice(_fields(data, start, stop), MANY))
    raw = [field for field in fields if field.number == _RAW and field.kind == _BYTES]
    if len(fields) == MANY or len(raw) != 1 or raw[0].stop - raw[0].start < LARGE:
        return data[start:stop]
    rest = b"".join(data[field.key : field.stop] for field in fields if field is not raw[0])
    where = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", raw[0].start), ("length", raw[0].stop - raw[0].start)):
        where.external_data.add(key=key, value=str(value))
    return rest + bytes(where.SerializeToString())  # messages one after the other are one message


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[_Field]:
    """The fields between two places."""
    while at < stop:
        key, begin = at, at
        tag, at = _varint(data, at, stop)
        kind, end = tag & 7, at
        if kind == _VARINT:
            _, end = _varint(data, at, stop)
        elif kind == _BYTES:
            length, at = _varint(data, at, stop)
            end = at + length
        elif kind in (_EIGHT, _FOUR):
            end = at + (8 if kind == _EIGHT else 4)
        else:
            raise DecodeError(f"no field at byte {begin}")
        if tag < 8:
            raise DecodeError(f"a field without a number at byte {begin}")
        if end > stop:
            raise DecodeError(f"a field at byte {begin} ends beyond its message")
        yield _Field(tag >> 3, kind, key, at, end)
        at = end


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A whole number, and where it ends: seven bits in each byte, the lowest first."""
    value = 0
    for place, byte in enumerate(data[at : min(at + 10, stop)]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise DecodeError(f"no number at byte {at}")


def _coded(value: int) -> bytes:
    """A whole number as `_varint` reads it."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
