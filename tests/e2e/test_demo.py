"""The demo: offline, without torch, quick, and with true accuracies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxprune.default import model_path, sample

if TYPE_CHECKING:
    from tests.e2e.conftest import Run


def test_the_demo_prints_the_table_and_true_accuracies(run: Run, folder: Path) -> None:
    before = sorted(folder.iterdir())
    start = time.monotonic()
    result = run("demo")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert time.monotonic() - start < 60
    for word in ("parameters", "MACs", "latency", "accuracy", "labelled images", "exact", "fidelity"):
        assert word in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert sorted(folder.iterdir()) == before


def test_the_demo_takes_options_and_keeps_what_is_asked_for(run: Run) -> None:
    words = ("--target", "macs=0.3", "--criterion", "l1", "--recover", "none", "--align", 1, "--bench-seconds", 0)
    result = run("demo", "-o", "small.onnx", *words, "--json", "-", "--plan", "plan.json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(result.stdout)
    assert record["macs"]["after"] <= 0.3 * record["macs"]["before"]
    assert record["accuracy"]["images"] == len(sample()[1])
    assert record["accuracy"]["before"] > 0.85
    assert record["parity"]["exact"]
    onnx.checker.check_model("small.onnx")
    assert run("apply", model_path(), "plan.json", "-o", "again.onnx", "--bench-seconds", 0).exit_code == 0
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()
