"""Targets by the clock, from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from onnxprune.latency import networks, shelf
from onnxprune.testing import Builder, close

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run


@pytest.fixture
def wide(folder: Path) -> Path:
    """A model that takes a while, in the folder."""
    b = Builder()
    y = b.input("x", "N", 3, 24, 24)
    for name, width in (("one", 64), ("two", 128), ("three", 64)):
        y = b.op("Relu", b.conv(y, width, name=name))
    onnx.save(b.model(close(b, y, 10, "head")), folder / "wide.onnx")
    return folder / "wide.onnx"


def test_prune_to_a_share_of_the_latency(run: Run, wide: Path) -> None:
    result = run("prune", wide, "-o", "small.onnx", "--target", "latency=0.5", "--threads", 1, "--json", "r.json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(Path("r.json").read_text())
    model = record["latency_model"]
    assert 0 < model["predicted"] < 1
    assert model["steps"][-1]["measured"] < 1
    assert {"median", "most", "networks"} == set(model["error"])
    assert record["latency_ms"]["ratio"]["value"] < 0.8
    assert "predicted" in result.stdout
    assert "of the original's latency, measured" in result.stdout


def test_prune_to_milliseconds(run: Run, wide: Path) -> None:
    assert run("prune", wide, "-o", "s.onnx", "--target", "latency=1s", "--threads", 1).exit_code == 0
    assert wide.read_bytes() != b""


def test_a_latency_that_cannot_be_reached(fails: Fails, wide: Path) -> None:
    said = fails("prune", wide, "-o", "small.onnx", "--target", "latency=0.001", "--threads", 1)
    assert "--target latency=0.001 cannot be met; the least that can remain is latency=0." in said
    assert "held by" in said


@pytest.mark.parametrize("off", [("--no-validate",), ("--bench-seconds", 0)])
def test_a_latency_needs_the_clock(fails: Fails, wide: Path, off: tuple[object, ...]) -> None:
    said = fails("prune", wide, "-o", "small.onnx", "--target", "latency=0.5", *off)
    assert "--target latency=0.5 runs the models" in said


@pytest.mark.parametrize("target", ["latency=0", "latency=2", "latency=-1ms", "latency=ms", "macs=5ms", "latency=inf"])
def test_targets_that_are_none(fails: Fails, target: str) -> None:
    assert "latency=5ms" in fails("prune", "net.onnx", "-o", "small.onnx", "--target", target)


def test_a_table_is_shown_kept_and_forgotten(run: Run, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SECONDS", 0.0)
    monkeypatch.setattr(networks, "DOUBTFUL", float("inf"))  # however busy the machine is
    run("latency", "--clear")
    assert "no latency is kept" in run("latency", "--show").stdout
    result = run("latency", wide, "--threads", 1, "--json", "t.json")
    assert result.exit_code == 0, result.stderr
    assert "half as wide" in result.stdout
    operators = json.loads(Path("t.json").read_text())["operators"]
    assert sum(o["half_ms"] for o in operators) < sum(o["ms"] for o in operators)
    assert "wide.onnx" in run("latency", "--show").stdout
    assert "removed" in run("latency", "--clear").stdout
    assert not list(shelf.entries())


@pytest.mark.parametrize("words", [(), ("net.onnx", "--show"), ("--show", "--clear")])
def test_one_thing_at_a_time(run: Run, words: tuple[str, ...]) -> None:
    result = run("latency", *words)
    assert result.exit_code == 2
    assert "give one of MODEL, --show and --clear" in result.stderr
