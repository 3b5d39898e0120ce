"""What is kept on disk: whatever happens to a file, it is as if nothing had been kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxprune.cache import folder
from onnxprune.latency import block, shelf
from onnxprune.latency.table import Table, parsed

HERE = {"what": "table", "model": "net", "provider": "cpu", "threads": 1, "inputs": {"x": ["float32", 1]}}
TABLE: dict[str, Any] = {
    "block": 16,
    "parts": {"y": [0.5, 0.25]},
    "before": 2.0,
    "checked": [[0.5, 0.6], [0.7, 0.7]],
    "networks": 24,
    "by_node": True,
    "seconds": 3.0,
    "model": "net.onnx",
}


def _kept(conditions: dict[str, Any]) -> Table | None:
    return parsed(shelf.fetch(conditions))


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    shelf.clear()
    yield
    shelf.clear()


def only() -> Path:
    home = folder()
    assert home is not None
    (path,) = home.glob(f"*{shelf.KIND}")
    return path


def test_what_is_kept_is_found_under_its_conditions_alone() -> None:
    shelf.keep(HERE, TABLE)
    found = _kept(HERE)
    assert found is not None
    assert (found.block, found.parts, found.errors) == (16, {"y": [0.5, 0.25]}, [0.0, pytest.approx(1 / 6)])
    assert _kept({**HERE, "model": "other"}) is None
    assert [entry["model"] for entry in shelf.entries()] == ["net.onnx"]
    assert shelf.clear() == 1
    assert _kept(HERE) is None


def text(change: Callable[[dict[str, Any]], object]) -> Callable[[str], bytes]:
    def changed(whole: str) -> bytes:
        entry = json.loads(whole)
        change(entry)
        return json.dumps(entry).encode()

    return changed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2].encode(),
        lambda whole: b"\x80\xff" + whole.encode(),
        lambda whole: b"[" * 100_000,
        lambda whole: b"[1, 2]",
        text(lambda entry: entry.update(version=shelf.VERSION + 1)),
        text(lambda entry: entry.pop("version")),
        text(lambda entry: entry.pop("parts")),
        text(lambda entry: entry.update(parts=[1, 2])),
        text(lambda entry: entry.update(parts={"y": 3})),
        text(lambda entry: entry.update(parts={})),
        text(lambda entry: entry.update(parts={"y": [-1.0]})),
        text(lambda entry: entry.update(parts={"y": [float("nan")]})),
        text(lambda entry: entry.update(before=0)),
        text(lambda entry: entry.update(before=None)),
        text(lambda entry: entry.update(checked=[[1, 0]])),
        text(lambda entry: entry.update(seconds=None)),
        text(lambda entry: entry.update(conditions={})),
        text(lambda entry: entry.pop("conditions")),
        text(lambda entry: entry.update(parts={"y": ["fast"]})),
        text(lambda entry: entry.update(parts={"y": [None]})),
        text(lambda entry: entry.update(block="wide")),
        text(lambda entry: entry.update(before={})),
        text(lambda entry: entry.update(checked=[])),
        text(lambda entry: entry.update(checked=[[0.5]])),
    ],
)
def test_a_table_that_is_spoiled_is_none(spoil: Callable[[str], bytes]) -> None:
    shelf.keep(HERE, TABLE)
    only().write_bytes(spoil(only().read_text(encoding="utf-8")))
    assert _kept(HERE) is None
    shelf.keep(HERE, TABLE)
    assert _kept(HERE) is not None


@pytest.mark.parametrize("wrong", ["16", None, 5, [16], {}, 0, -4])
def test_a_block_that_is_none_is_measured_anew(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "_measured", lambda *_: (8, [1.0] * len(block.WIDTHS)))
    assert block.block("cpu") == 8
    only().write_bytes(text(lambda entry: entry.update(block=wrong))(only().read_text(encoding="utf-8")))
    monkeypatch.setattr(block, "_measured", lambda *_: (32, [1.0] * len(block.WIDTHS)))
    assert block.block("cpu") == 32
    assert json.loads(only().read_text(encoding="utf-8"))["block"] == 32


def test_a_folder_in_the_place_of_a_file() -> None:
    shelf.keep(HERE, TABLE)
    path = only()
    path.unlink()
    path.mkdir()
    assert _kept(HERE) is None
    shelf.keep(HERE, TABLE)
    path.rmdir()


def test_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", "off")
    shelf.keep(HERE, TABLE)
    assert _kept(HERE) is None
    assert (list(shelf.entries()), shelf.clear()) == ([], 0)
