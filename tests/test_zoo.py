"""The recipes of the zoo are recipes, and its page has what was measured."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest

from onnxprune.recipe import parse_recipe
from tools.zoo import page, recipes, zipped


@pytest.mark.parametrize("title", recipes())
def test_every_row_is_a_recipe(title: str) -> None:
    assert parse_recipe(recipes()[title].recipe)


def test_the_page() -> None:
    first, second, third = list(recipes())[:3]
    dense: dict[str, Any] = {"value": 0.9, "zipped": 1000}
    about = {"model": "net", "measure": "top-1", "dense": dense}
    pair = {"before": 2000, "after": 1000}
    speedup = {"value": 2.0, "low": 1.6, "high": 2.5}
    made = {"params": pair, "macs": pair, "file_bytes": pair, "latency_ms": {"speedup": speedup}}
    rows: list[dict[str, Any]] = [
        {**about, "title": first, "value": 0.875, "zipped": 250, **made},
        {**about, "title": second, "error": "no block to leave out"},
        {**about, "title": third, "value": 0.5, "zipped": 500, "params": pair, "file_bytes": pair},
    ]
    text = page(rows, recipes())
    assert "| dense | | 0.9000 | 2.00 k | 2.00 k | 2.00 kB | 1.00 kB | 1 |" in text
    assert f"| {first} | no | 0.8750 | 50.0 % | 50.0 % | 50.0 % | 25.0 % | 0.50 (0.40 to 0.62) |" in text
    assert f"| {second} | yes | no block to leave out | | | | | |" in text
    assert f"| {third} | no | 0.5000 | 100 % | 50.0 % | 50.0 % | 50.0 % |  |" in text
    assert all(f"**{title}**" in text for title in recipes())


def test_zipped_is_deflate(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(3 << 20))
    assert zipped(tmp_path / "zeros") == len(zlib.compress(bytes(3 << 20), 6))
