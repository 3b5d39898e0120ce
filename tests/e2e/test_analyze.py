"""`analyze`, `--iterations` and `--target macs=auto` as a user runs them."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onnxprune.cli import cli

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

DATA = ("--data", "images.npz", "--threads", 1)
FAST = (*DATA, "--bench-seconds", 0, "--align", 1)
METRIC = """
import numpy as np
from onnxprune import runtime

def answers(run):
    with np.load("images.npz") as data:
        return next(iter(run({"x": data["x"]}).values()))

def near(run):
    "Minus the distance from the original's answers."
    session = runtime.session("net.onnx")
    return -float(np.abs(answers(run) - answers(lambda feed: runtime.run(session, feed))).mean())

def raises(run):
    raise ValueError("no labels")
"""


@pytest.fixture(autouse=True)
def metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "metric.py").write_text(METRIC)
    monkeypatch.delitem(sys.modules, "metric", raising=False)


def test_the_table(run: Run, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = run("analyze", "net.onnx", *DATA)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == "" and sorted(folder.iterdir()) == before
    for word in ("net.onnx", "distance of", "repaired (channel)", "units", "MACs", "10.0 %", "75.0 %", "stem", "wide"):
        assert word in " ".join(result.stdout.split())
    assert all(len(line) <= 80 and line == line.rstrip() for line in result.stdout.splitlines())


def test_everything_for_the_archive(run: Run) -> None:
    files = ("--json", "a.json", "--csv", "a.csv", "--plot", "a.svg")
    result = run("analyze", "net.onnx", *DATA, "--by", "layer", "--ratios", "0.25,0.5", "--recover", "none", *files)
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(Path("a.json").read_text())
    assert record["by"] == "layer" and record["cuts"] == [0.25, 0.5] and record["ratios"] == []
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == [row["name"] for row in record["rows"]]
    assert [float(row["cut 0.5"]) for row in rows] == [row["values"][1] for row in record["rows"]]
    assert Path("a.svg").read_text().startswith("<?xml")


def test_the_ratios_are_options_of_prune(run: Run) -> None:
    result = run("analyze", "net.onnx", *DATA, "--target", "macs=0.6", "--align", 1, "--json", "a.json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    options = shlex.split(joined(result.stdout[result.stdout.index("--target macs=0.6") :]))
    pruned = run("prune", "net.onnx", "-o", "small.onnx", *DATA, "--bench-seconds", 0, *options, "--json", "p.json")
    assert pruned.exit_code == 0, (pruned.stderr, pruned.exception)
    macs = json.loads(Path("p.json").read_text())["macs"]
    assert macs["after"] / macs["before"] == pytest.approx(json.loads(Path("a.json").read_text())["remains"])


def test_by_the_users_metric(run: Run) -> None:
    result = run("analyze", "net.onnx", *DATA, "--metric", "metric.py:near", "--ratios", 0.5, "--csv", "-")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stdout.splitlines()[0] == "group,node,units,macs,cut 0.5"


def test_what_is_wrong_is_one_line(run: Run, fails: Fails) -> None:
    assert "this needs inputs" in fails("analyze", "net.onnx")
    assert "the function raised ValueError" in fails("analyze", "net.onnx", *DATA, "--metric", "metric.py:raises")
    assert "drop --by layer" in fails("analyze", "net.onnx", *DATA, "--by", "layer", "--target", "macs=0.5")
    assert "ends in .png or .svg" in fails("analyze", "net.onnx", *DATA, "--plot", "a.pdf")
    assert "net.onnx" in fails("analyze", "net.onnx", *DATA, "--json", "net.onnx")
    assert run("analyze", "net.onnx", *DATA, "--by", "node").exit_code == 2


def test_iterations(run: Run, fails: Fails) -> None:
    given = ("--criterion", "l2", "--iterations", 3, "--target", "macs=0.6")
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, *given, "--json", "r.json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(Path("r.json").read_text())
    assert len(record["iterations"]) == 3 and record["options"]["iterations"] == 3 and record["parity"]["exact"]
    assert run("prune", "net.onnx", "-o", "s.onnx", "--iterations", 0).exit_code == 2
    lossless = run("prune", "net.onnx", "-o", "s.onnx", "--target", "lossless", "--iterations", 2)
    assert lossless.exit_code == 2 and "--iterations" in lossless.stderr


def test_the_smallest_that_is_good_enough(run: Run) -> None:
    given = ("--criterion", "l2", "--recover", "none", "--target", "macs=auto", "--metric", "metric.py:near")
    files = ("--json", "r.json", "--report", "r.html")
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, *given, "--max-drop", 0.25, *files)
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(Path("r.json").read_text())
    assert record["metric"]["before"]["near"] - record["metric"]["after"]["near"] <= 0.25
    assert "search" in result.stdout and "taken" in result.stdout and "the fall of near, at most 0.25" in result.stdout
    assert "the fall of near" in Path("r.html").read_text() and Path("small.onnx").exists()


def test_nothing_is_good_enough(run: Run, fails: Fails) -> None:
    given = ("--criterion", "random", "--recover", "none", "--target", "macs=auto", "--metric", "metric.py:near")
    result = run("prune", "net.onnx", "-o", "s.onnx", *FAST, *given, "--max-drop", 0, "--json", "r.json")
    assert result.exit_code == 3 and "not even macs=0.984" in result.stderr and result.stderr.count("\n") == 1
    assert len(json.loads(Path("r.json").read_text())["search"]["trials"]) == 6 and not Path("s.onnx").exists()
    assert "needs --max-drop" in fails("prune", "net.onnx", "-o", "s.onnx", *FAST, "--target", "macs=auto")
    above = run("prune", "net.onnx", "-o", "s.onnx", *FAST, "--max-drop", 1.5)
    assert above.exit_code == 2 and "without --metric it is a share" in above.stderr


def test_the_commands_of_the_page_are_commands() -> None:
    """They take too long to be run here."""
    page = (Path(__file__).parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in joined(block).splitlines()]
    assert len(lines) >= 4
    for line in lines:
        name, verb, *words = shlex.split(line)
        assert name == "onnxprune"
        cli.commands[verb].make_context(verb, words)


def joined(text: str) -> str:
    return text.replace("\\\n", " ")
