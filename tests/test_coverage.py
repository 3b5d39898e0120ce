"""The sweep over models, and the page that is made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import load
from onnxprune.testing import Builder, sandwich
from tools.coverage import exporter, family
from tools.coverage_page import histogram, page, state

TOOL = Path(__file__).parents[1] / "tools" / "coverage.py"


def row(model: str, **more: Any) -> dict[str, Any]:
    """A row as the sweep writes it."""
    figures = {"params_kept": 0.3, "macs_kept": 0.4, "cuttable": 0.9, "seconds": 0.5, "nodes": 9}
    checks = {"exact": True, "parity": 1e-7, "noise": 0.0, "alive": 0.5, "vacuous": []}
    options = {"target": "channels=0.5", "scope": "local", "align": 1}
    about = {"exporter": "pytorch 2.13 (dynamo)", "family": "Convolutions", "locks": [["", "a graph output", 0.02]]}
    return {"model": model, **options, **figures, **checks, **about, **more}


def failed(model: str) -> dict[str, Any]:
    """A row of a model that did not get through."""
    return {"model": model, "target": "channels=0.5", "scope": "local", "align": 1, "error": f"{model}: broken | pipe"}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({}, "exact"),
        ({"exact": False, "parity": 0.1}, "WRONG"),
        ({"exact": False, "parity": None}, "WRONG"),
        ({"exact": False, "parity": 0.1, "noise": 0.05}, "noisy"),
        ({"vacuous": ["y"]}, "hollow"),
        ({"alive": 1e-6}, "hollow"),
        ({"error": "no"}, "failed"),
        ({"unproved": "no"}, "unproved"),
    ],
)
def test_a_row_in_a_word(more: dict[str, Any], word: str) -> None:
    assert state(row("a.onnx", **more)) == word


def test_locks_are_averaged_over_models() -> None:
    softmax = ["Softmax", "mixes", 0.5]
    rows = [row("a", locks=[["", "a graph output", 0.1], softmax]), row("b", locks=[softmax]), failed("c")]
    assert histogram(rows) == [(0.5, 2, "Softmax", "mixes"), (0.05, 1, "model", "a graph output")]


def test_the_page_names_files_and_no_folders() -> None:
    rows = [
        row("/home/me/nets/b.onnx"),
        row("/home/me/nets/a.onnx", family="Attention", macs_kept=0.25),
        row("/home/me/more/b.onnx", exact=False, parity=0.5),
        failed("/home/me/nets/c.onnx"),
    ]
    text = page(rows)
    assert "/home" not in text
    assert "4 models: 2 exact, 1 WRONG, 1 failed" in text
    assert "--target channels=0.5 --scope local --align 1" in text
    assert re.search(r"## Convolutions\n.*\| more/b .*WRONG.*\| nets/b .*exact.*## Attention\n.*\| a ", text, re.DOTALL)
    assert "| 2.00 % | 3 | model | a graph output |" in text
    assert "| c | c: broken \\| pipe |" in text.replace("c.onnx", "c")
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_families_and_exporters_are_told_from_the_graph() -> None:
    plain = sandwich(lambda b, y: b.op("Relu", y))
    assert family(load(plain)) == "Convolutions"
    b = Builder()
    dense = b.model(b.gemm(b.op("Relu", b.gemm(b.input("x", 2, 8), 8)), 4))
    assert family(load(dense)) == "Dense layers"
    b = Builder()
    x = b.op("MatMul", b.input("x", 2, 4, 4), b.weight(4, 4))
    for _ in range(2):
        x = b.op("MatMul", b.op("Softmax", b.op("MatMul", x, b.op("Transpose", x, perm=[0, 2, 1]))), x)
    assert family(load(b.model(x))) == "Attention"
    b = Builder()
    assert family(load(b.model(b.op("Relu", b.input("x", 2))))) == "Other"
    plain.producer_name, plain.producer_version = "pytorch", "2.13.0+cpu"
    assert exporter(plain) == "pytorch 2.13 (torchscript)"
    plain.graph.node[0].metadata_props.add(key="namespace", value="")
    assert exporter(plain) == "pytorch 2.13 (dynamo)"


def test_a_sweep_is_resumed_and_makes_a_page(tmp_path: Path) -> None:
    onnx.save(sandwich(lambda b, y: b.op("Relu", y)), tmp_path / "net.onnx")
    (tmp_path / "broken.onnx").write_bytes(np.random.default_rng(0).bytes(50))
    results, written = tmp_path / "results.jsonl", tmp_path / "docs" / "coverage.md"

    def sweep(*words: object) -> str:
        command = [sys.executable, TOOL, "--resume", results, *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True).stdout

    first = sweep(tmp_path, "--jobs", 2)
    assert {"1 exact", "1 failed"} == set(first.partition("2 models: ")[2].splitlines()[0].split(", "))
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {Path(r["model"]).name for r in rows} == {"net.onnx", "broken.onnx"}
    again = sweep("--page", written)
    assert sorted(again.split()) == sorted(first[first.index("2 models") :].split())
    assert "| net | " in written.read_text() and str(tmp_path) not in written.read_text()
    assert len(results.read_text().splitlines()) == 2
