"""`inspect`: shares, groups, locks, and `--explain` for one tensor."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from rich.console import Console

from onnxprune.testing import Builder

if TYPE_CHECKING:
    from tests.e2e.conftest import Run


def widths(path: str) -> dict[str, int]:
    """Tensor -> size of its first axis."""
    return {t.name: t.dims[0] for t in onnx.load(path).graph.initializer}


def test_inspect_shows_groups_and_locks(run: Run) -> None:
    result = run("inspect", "net.onnx")
    assert result.exit_code == 0
    for word in ("can be cut", "groups", "stem", "wide", "locked", "a graph output", "a graph input"):
        assert word in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_inspect_shortens_long_lists_unless_all_is_asked(run: Run) -> None:
    b = Builder()
    y = b.input("x", 1, 3, 8, 8)
    for layer in range(20):
        y = b.op("Relu", b.conv(y, 8, name=f"a_rather_long_name_of_a_layer_that_would_not_fit_{layer}_weight"))
    onnx.save(b.model(b.conv(y, 4, name="last")), "deep.onnx")
    short, full = run("inspect", "deep.onnx").stdout, run("inspect", "deep.onnx", "--all").stdout
    assert "... and 8 more (--all)" in short
    assert "  ..." in short and "_layer_that_would_not_fit_" in short
    assert "more" not in full and full.replace("\n", "").count("_weight") >= 20


def test_inspect_json_holds_every_group(run: Run) -> None:
    record = json.loads(run("inspect", "net.onnx", "--json", "-").stdout)
    assert {g["name"] for g in record["groups"]} == {"stem", "wide"}
    assert 0 < record["cuttable"]["macs"] <= 1
    run("inspect", "net.onnx", "--json", "record.json")
    assert json.loads(Path("record.json").read_text()) == record


def test_inspect_says_what_an_open_size_does_to_the_figures(run: Run) -> None:
    b = Builder()
    y = b.conv(b.input("x", "N", 3, "height", "width"), 8, name="w1")
    onnx.save(b.model(b.conv(y, 4, name="w2")), "open.onnx")
    assert "MACs count open sizes as 1: x [N, 3, height, width]; give --shape" in run("inspect", "open.onnx").stdout
    shaped = run("inspect", "open.onnx", "--shape", "x=1x3x16x16")
    assert "MACs count" not in shaped.stdout


def test_an_option_that_opens_next_to_nothing_has_no_line_of_its_own() -> None:
    from onnxprune import report

    shares = {"params": 0.5, "macs": 0.25}
    record = {"model": "m", "params": 1, "macs": {"before": 1}, "cuttable": shares, "groups": [], "locked": []}
    for more, said in ((0.500001, False), (0.6, True)):
        console = Console(file=io.StringIO(), width=120)
        for part in report.inspection(record | {"opened": {"--allow-inexact": shares | {"params": more}}}):
            console.print(part)
        assert isinstance(console.file, io.StringIO)
        assert ("--allow-inexact" in console.file.getvalue()) is said


def test_inspect_names_the_option_that_opens_a_lock(run: Run) -> None:
    b = Builder()
    y = b.op("Transpose", b.conv(b.input("x", 1, 3, 8, 8), 16, name="w1"), perm=[0, 2, 3, 1])
    y = b.op("LayerNormalization", y, b.near_one(16), b.weight(16))
    y = b.conv(b.op("Transpose", y, perm=[0, 3, 1, 2]), 4, name="w2")
    onnx.save(b.model(y), "norm.onnx")
    assert "--allow-inexact opens it" in " ".join(run("inspect", "norm.onnx").stdout.split())
    inexact = run(
        "prune",
        "norm.onnx",
        "-o",
        "small.onnx",
        "--bench-seconds",
        0,
        "--align",
        1,
        "--allow-inexact",
        "--plan",
        "plan.json",
    )
    assert inexact.exit_code == 0, inexact.stderr
    assert widths("small.onnx")["w1"] < 16
    again = run("apply", "norm.onnx", "plan.json", "-o", "again.onnx", "--bench-seconds", 0)
    assert again.exit_code == 0, again.stderr


def test_inspect_with_an_option_shows_what_it_opens(run: Run) -> None:
    b = Builder()
    y = b.op("Transpose", b.conv(b.input("x", 1, 3, 8, 8), 16, name="w1"), perm=[0, 2, 3, 1])
    y = b.op("LayerNormalization", y, b.near_one(16), b.weight(16))
    onnx.save(b.model(b.conv(b.op("Transpose", y, perm=[0, 3, 1, 2]), 4, name="w2")), "norm.onnx")
    assert "100.0 % of the MACs with --allow-inexact" in run("inspect", "norm.onnx").stdout
    opened = run("inspect", "norm.onnx", "--allow-inexact").stdout
    assert "16" in opened and "LayerNormalization" not in opened


def test_explain_walks_to_what_locks(run: Run) -> None:
    result = run("inspect", "net.onnx", "--explain", "head")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "head  parameter [5, 16], read by Gemm Gemm_9",
        "",
        "axis 0       5 output channels: locked",
        "  path       head axis 0",
        "             Gemm Gemm_9 -> Gemm_9_0 axis 1",
        "  locked by  a graph output",
        "axis 1       16 input channels: in a group",
        "  group      stem: 16 units",
        "  made by    stem axis 0",
        "             back axis 0",
        "  read by    wide axis 1",
        "             head axis 1",
        "  with       stem.bias axis 0 (bias)",
        "             back.bias axis 0 (bias)",
    ]
    record = json.loads(run("inspect", "net.onnx", "--explain", "head", "--json", "-").stdout)
    assert [axis["role"] for axis in record["explain"][0]["axes"]] == ["out", "in"]
    assert record["explain"][0]["axes"][0]["locks"][0]["path"] == [
        {"value": "head", "axis": 0},
        {"value": "Gemm_9_0", "axis": 1, "node": "Gemm_9", "op": "Gemm"},
    ]


def test_the_explanation_in_the_readme_is_what_it_prints(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    page = (root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^\$ onnxprune (inspect .*--explain .*)\n((?:.*\n)*?)```", page, re.MULTILINE)
    monkeypatch.chdir(root)
    assert run(*block[0].split()).stdout == block[1]


def test_explain_takes_a_node_and_a_beginning(run: Run) -> None:
    by_node = run("inspect", "net.onnx", "--explain", "Gemm_9").stdout
    assert by_node.startswith("head  parameter") and "Gemm_9_0  graph output" in by_node
    assert run("inspect", "net.onnx", "--explain", "hea").stdout.startswith("head  parameter")


def test_explain_shortens_a_long_way_unless_all_is_asked(run: Run) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 3), b.weight(3, 8, name="w"))
    for _ in range(12):
        y = b.op("Relu", y)
    onnx.save(b.model(y), "deep.onnx")
    short, full = (run("inspect", "deep.onnx", "--explain", "w", *more).stdout for more in ((), ("--all",)))
    assert "... 7 more steps (--all) ..." in short and short.count("Relu_") < 16
    assert "more" not in full and all(f"Relu Relu_{n} ->" in full for n in range(1, 13))
