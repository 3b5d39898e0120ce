"""`--metric`: the user's own measure, before and after."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxprune.runtime import run as infer
from onnxprune.runtime import session

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
PRUNE = ("prune", "net.onnx", "-o", "small.onnx", "--bench-seconds", 0, "--align", 1)
METRIC = """
import numpy as np

LABELS = [1, 2]

print("loading")

def accuracy(run):
    with np.load("images.npz") as data:
        answers = run({"x": data["x"]})[run.outputs[0]].argmax(1)
    print("running")
    return (answers == 2).mean()

def both(run):
    return {"top-1": accuracy(run), "mean [b]": np.float32(0.25)}

def raises(run):
    raise ValueError("no labels\\nhere")

def text(run):
    return "good"

def nan(run):
    return float("nan")

def wrong_input(run):
    return run({"image": np.zeros((1, 3, 8, 8), np.float32)})
"""


@pytest.fixture(autouse=True)
def metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "metric.py").write_text(METRIC)
    monkeypatch.delitem(sys.modules, "metric", raising=False)


def accuracy(path: str) -> float:
    with np.load("images.npz") as data:
        (answers,) = infer(session(path), {"x": data["x"]}).values()
    return float((answers.argmax(1) == 2).mean())


def lines(table: str) -> dict[str, str]:
    """The table's lines by their first word."""
    return {line.split()[0]: line for line in table.splitlines() if line.strip()}


@pytest.mark.parametrize("text", ["metric.py:accuracy", "metric:accuracy"])
def test_a_number_has_a_line_and_is_in_the_record(run: Run, text: str) -> None:
    result = run(*PRUNE, "--metric", text, "--json", "record.json", "--report", "page.html")
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(Path("record.json").read_text())
    before, after = accuracy("net.onnx"), accuracy("small.onnx")
    assert record["metric"] == {"name": text, "before": {"accuracy": before}, "after": {"accuracy": after}}
    line = lines(result.stdout)["accuracy"].split()
    assert line[1:3] == [f"{before:.5g}", f"{after:.5g}"]
    assert "<td>accuracy</td>" in Path("page.html").read_text()
    assert result.stderr == "loading\nrunning\nrunning\n"


def test_a_dict_has_a_line_for_each_value(run: Run) -> None:
    result = run(*PRUNE, "--metric", "metric.py:both", "--data", "images.npz")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "top-1" in lines(result.stdout)
    assert re.search(r"^mean \[b\] +0.25 +0.25 +unchanged$", result.stdout, re.MULTILINE)


def test_what_the_metric_prints_is_not_in_a_record_on_standard_output(run: Run) -> None:
    result = run(*PRUNE, "--metric", "metric.py:accuracy", "--json", "-")
    assert json.loads(result.stdout)["metric"]["name"] == "metric.py:accuracy"


def test_apply_and_demo_take_it_too(run: Run) -> None:
    assert run(*PRUNE, "--plan", "plan.json").exit_code == 0
    words = ("--bench-seconds", 0, "--metric", "metric.py:accuracy", "--json", "-")
    result = run("apply", "net.onnx", "plan.json", "-o", "again.onnx", *words)
    assert json.loads(result.stdout)["metric"]["after"] == {"accuracy": accuracy("small.onnx")}
    Path("size.py").write_text("def outputs(run): return len(run.outputs)\n")
    cheap = ("--criterion", "l2", "--recover", "none", "--bench-seconds", 0)
    result = run("demo", *cheap, "--metric", "size.py:outputs")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert lines(result.stdout)["outputs"].split()[1:] == ["1", "1", "unchanged"]


def test_a_gate_that_fails_leaves_the_metric_in_the_record(run: Run) -> None:
    result = run(*PRUNE, "--metric", "metric.py:accuracy", "--min-speedup", 1000, "--json", "record.json")
    assert result.exit_code == 3
    assert set(json.loads(Path("record.json").read_text())["metric"]) == {"name", "before", "after"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy", "write MODULE:FUNCTION, as in metric.py:accuracy"),
        ("none:accuracy", "no module none"),
        ("none.py:accuracy", "none.py: no such file"),
        ("quiet.py:acuracy", "quiet.py has no 'acuracy'; did you mean 'accuracy'?"),
        ("quiet:LABELS", "LABELS is a list, not a function"),
        ("quiet.py:raises", "the function raised ValueError: no labels here on the original model"),
        ("quiet.py:text", "returned a str; return a number, or a dict from names to numbers"),
        ("quiet.py:nan", "returned NaN on the original model"),
        ("quiet.py:wrong_input", "the function raised ModelError: "),
    ],
)
def test_errors(fails: Fails, text: str, says: str) -> None:
    Path("quiet.py").write_text(re.sub(r"^ *print\(.*\n", "", METRIC, flags=re.MULTILINE))
    message = fails(*PRUNE, "--metric", text)
    assert message.startswith(f"--metric {text}: ") and says in message


def test_it_is_not_written_over(fails: Fails) -> None:
    message = fails(*PRUNE, "--metric", "metric.py:accuracy", "--json", "metric.py")
    assert message == "metric.py: is both --metric and --json; choose another file for --json"


def test_without_validation_it_is_refused(run: Run, folder: Path) -> None:
    result = run(*PRUNE, "--metric", "metric.py:accuracy", "--no-validate")
    assert result.exit_code == 2
    assert "--no-validate leaves --metric without a measurement" in result.stderr
    assert not Path("small.onnx").exists()


def test_the_example_of_the_page_runs(run: Run, folder: Path) -> None:
    """With its file under the name that it says, beside the repository's models."""
    section = (
        PAGE.read_text(encoding="utf-8").partition("## Your own measure\n")[2].partition("\n## ")[0].replace("\\\n", "")
    )
    (block,) = (text for text in re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    (folder / "models").symlink_to(PAGE.parents[1] / "models")
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("    onnxprune ")]
    assert commands
    for words in commands:
        result = run(*words[1:], "--bench-seconds", 0, "--criterion", "l2", "--recover", "none")
        assert result.exit_code == 0, (result.stderr, result.exception)
        assert lines(result.stdout)["top1"].split()[1] in section
