"""A record as table, JSON and HTML."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from onnxprune import report

NAME = "/a/[bold]very/<script>/long/Ünïcode/name/of/a/node/that/does/not/fit/in/the/column/Conv"


@pytest.fixture
def record() -> dict[str, Any]:
    """All that a record may hold."""
    group = {"name": NAME, "node": "n", "units": {"before": 64, "after": 16}, "macs": 2e6, "tensors": ["a", "b"]}
    lock = {
        "value": "w",
        "axis": 0,
        "node": NAME,
        "op": "Conv",
        "reason": "because " * 12,
        "params": 123,
        "option": "--x",
    }
    measured = {"provider": "cpu", "threads": 2, "cpus": 8, "onnxruntime": "1.2.3", "turns": 40, "busy": True}
    latency = measured | {"converged": False, "a": {"nodes": {}, "fallback": None}}
    latency["b"] = {"nodes": {"cuda": 3, "cpu": 1}, "fallback": 1}
    return {
        "groups": [group, group | {"name": "whole", "units": {"before": 8, "after": 8}}],
        "locked": [lock] * 3,
        "model": "model.onnx",
        "out": "small.onnx",
        "onnxprune": "0.0",
        "options": {"target": "macs=0.5", "criterion": "l2", "scope": "global", "keep": ()},
        "recover": "none",
        "align": 16,
        "params": {"before": 1000, "after": 400},
        "macs": {"before": 4e6, "after": 2e6},
        "file_bytes": {"before": 4000, "after": 1700},
        "cuttable": {"params": 0.9, "macs": 0.8},
        "opened": {"--x": {"params": 1.0, "macs": 0.9}},
        "latency_ms": latency
        | {"before": {"median": 2.0}, "after": {"median": 1.0}, "speedup": {"value": 2.0, "low": 1.9, "high": 2.1}},
        "accuracy": {"before": 0.9, "after": 0.85, "images": 100},
        "parity": {"oracle": "the masked original", "relative": 1e-7, "exact": True, "feeds": 2},
        "fidelity": {"max_abs": 0.1, "cosine": 0.99, "sqnr_db": float("inf"), "top1_agreement": None, "samples": 4},
        "inputs": {"source": "data", "feeds": 4, "assumed": ["input 'x' was fed as [1, 3]"]},
        "warnings": ["mind the gap " * 10],
        "open_inputs": {"x": ["N", 3, "H"]},
        "seconds": {"load": 0.01, "cut": 1.0},
    }


def shown(parts: list[Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 40])
def test_the_table_fits_and_keeps_what_matters(record: dict[str, Any], width: int) -> None:
    text = shown(report.table(record), width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for words in ("2.00x faster", "exact", "mind the gap", "64 -> 16", "--x may open it", "-5.0 points on 100"):
        assert words in flat
    assert "whole" not in flat and "keep" not in flat


def test_an_almost_empty_record_has_a_table_too() -> None:
    assert "none: the models were not run" in shown(report.table({"model": "model.onnx"}))
    nothing = {"model": "m", "params": {"before": 0, "after": 0}, "groups": [], "locked": [], "seconds": {}}
    assert "cut          nothing" in shown(report.table(nothing))
    assert report.to_html(nothing)


def test_markup_in_names_is_text(record: dict[str, Any]) -> None:
    assert "[bold]" in shown(report.inspection(record | {"params": 1000}, everything=True), 200)
    page = report.to_html(record)
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_page_is_closed_and_needs_nothing_else(record: dict[str, Any]) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not {"src", "href"} & {name for name, _ in attrs}
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    tags = Tags()
    tags.feed(report.to_html(record))
    assert not tags.open


def test_json_starts_with_figures_and_holds_no_infinity(record: dict[str, Any]) -> None:
    text = report.to_json(record)
    assert json.loads(text)["fidelity"]["sqnr_db"] is None
    keys = list(json.loads(text))
    assert keys[:2] == ["onnxprune", "model"] and keys[-2:] == ["groups", "locked"]
    assert set(keys) == set(record)
    text.encode("ascii")
