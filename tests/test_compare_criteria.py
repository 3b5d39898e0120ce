"""The table of criteria, from rows."""

from pathlib import Path
from typing import Any

from tools.bench_accuracy import Model
from tools.compare_criteria import BEGIN, END, Choice, placed, table

MODEL = Model("net", "net.onnx", "true", Path(), data="x.npz", options=["--threads", "1"])


def row(criterion: str, repair: str, **found: Any) -> dict[str, Any]:
    return Choice(MODEL, "uniform", 0, 0.75, criterion, repair).about | {"dense": 0.9} | found


def test_a_run() -> None:
    found = row("l1", "full")
    assert found["variant"] == "l1 full"
    assert " ".join(found["options"]).startswith("--scope local --align 1 --criterion l1 --recover full --threads 1")


def test_the_table() -> None:
    rows = [row("l1", "none", value=0.5), row("l1", "full", value=0.81), row("bn", "none", error="no norm")]
    assert table(rows, ["net", "other"], ["l1", "bn"]) == [
        "| criterion | net, none | net, full | other, none | other, full |",
        "|---|--:|--:|--:|--:|",
        "| `l1` | 0.500 | 0.810 |  |  |",
        "| `bn` | - |  |  |  |",
        "| *not pruned* | 0.900 | 0.900 |  |  |",
    ]


def test_the_page_gets_it_once() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = placed(page, ["| new |"])
    assert once == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    assert placed(once, ["| new |"]) == once
