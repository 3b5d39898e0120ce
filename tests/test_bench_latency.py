"""The comparison of realised speeds, with models in memory and shapes of results in place of pruners."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from rich.table import Table

from onnxprune import Limits, couple, load, score
from onnxprune.cost import macs
from onnxprune.problem import problem_of
from onnxprune.testing import sandwich
from onnxprune.timing import MIN_TURNS
from tools.bench_accuracy import Bench, Done, Failed
from tools.bench_latency import Source, Sweep, bench_model, due, key, main, read, summary, table
from tools.latency_ways import ALLOCATIONS, PEERS, closest, importance, known
from tools.turns import ratios, rounds

TOOL = Path(__file__).parents[1] / "tools" / "bench_latency.py"
KEPT = {"onnxprune": 0.52, "uniform": 0.48, "by-macs": 0.5, "torch-pruning": 0.52, "torch-pruning-16": 0.51}
SWEEP = Sweep([0.5], [*ALLOCATIONS, *PEERS], threads=1, seconds=0.0)


def row(**more: Any) -> dict[str, Any]:
    """A row as the tool writes it."""
    about = {"model": "net", "who": "onnxprune", "target": 0.5, "threads": 1, "kept": 0.52, "seconds": 3.0}
    figures = {"ms": 1.0, "rounds": 20, "latency": 0.5, "ci95": [0.49, 0.51], "gain": 1.04, "importance": 0.9}
    return {**about, **figures, **more}


def text(made: Table) -> str:
    printed = StringIO()
    Console(width=200, file=printed).print(made)
    return printed.getvalue()


@dataclass(frozen=True)
class Fake(Bench):
    """In place of processes: the results are copies of the original."""

    model: Path = Path()
    failing: Sequence[str] = ()
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def call(self, step: str, command: Sequence[str], folder: Path = Path()) -> Done:
        job = json.loads(command[-1])
        self.asked.append((step, job))
        if step in self.failing:
            raise Failed(f"{step}: it broke")
        if step == "export":
            shutil.copy(self.model, job["path"])
            return Done("{}", 0.1, 1.0)
        shutil.copy(job["path"], job["out"])
        if step == "torch-pruning-16":
            Path(job["out"]).write_bytes(b"no model")
        more = {"predicted": 0.9, "measured": 0.47} if step == "onnxprune" else {}
        return Done(json.dumps({"kept": KEPT[step], "seconds": 1.0, **more}), 1.0, 1.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(sandwich(lambda b, y: b.op("Relu", y), channels=16), path)
    return path


def test_turns_go_back_and_forth() -> None:
    order: list[int] = []

    def waits(model: int, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(model)
            time.sleep(seconds)

        return call

    times = rounds([waits(0, 0.1), waits(1, 0.05)], 0.0)
    assert len(times[0]) == len(times[1]) == MIN_TURNS  # an interval wants so many
    assert order[-2 * MIN_TURNS :] == [0, 1, 1, 0] * (MIN_TURNS // 2)
    first, second = ratios(times)
    assert first.value == first.low == first.high == 1
    assert 0.3 < second.value < 0.9


def test_a_slow_minute_does_not_matter() -> None:
    times = [[1.0, 1.0, 9.0, 1.0, 1.0, 4.0], [0.5, 0.5, 4.5, 0.5, 0.5, 2.0]]
    assert ratios(times)[1].value == ratios(times)[1].high == 0.5


def test_the_ratio_that_keeps_the_macs() -> None:
    tried: list[float] = []

    def smooth(ratio: float) -> float:
        tried.append(ratio)
        return (1 - ratio) ** 2

    for share in (0.9, 0.5, 0.3):
        tried.clear()
        assert smooth(closest(smooth, share)) == pytest.approx(share, abs=0.004)
        assert len(tried) <= 3

    def steps(ratio: float) -> float:
        return (math.ceil((1 - ratio) * 4) / 4) ** 2

    assert steps(closest(steps, 0.5)) == 0.5625
    assert steps(closest(steps, 0.3)) == 0.25


def test_importance_is_the_share_of_energy_kept(model: Path) -> None:
    coupling = couple(load(model))
    problem = problem_of(coupling, score(coupling, "l2"), Limits(1))
    removed = np.zeros(coupling.units, dtype=bool)
    assert importance(problem, removed) == {"lost": 0.0, "importance": 1.0}
    removed[problem.order[0][:8]] = True
    energy = np.square(problem.scores[problem.order[0]])
    found = importance(problem, removed)
    work, share = macs(coupling).per_group(), energy[8:].sum() / energy.sum()
    assert found["lost"] == pytest.approx(-work[0] * math.log(share))
    assert found["importance"] == pytest.approx(share ** (work[0] / work.sum()))


def test_all_ways_are_matched_and_timed_beside_the_original(tmp_path: Path, model: Path) -> None:
    bench = Fake(tmp_path, 10, model=model, failing=["by-macs"])
    rows = {r["who"]: r for r in bench_model(bench, Source("net"), SWEEP)}
    asked = {step: job["share"] for step, job in bench.asked}
    assert asked["onnxprune"] == 0.5
    assert asked["uniform"] == asked["by-macs"] == 0.47  # the latency of that result
    assert asked["torch-pruning"] == asked["torch-pruning-16"] == 0.52  # its MACs
    assert list(rows) == ["original", "onnxprune", "uniform", "by-macs", "torch-pruning", "torch-pruning-16"]
    assert rows["original"]["latency"] == 1
    assert rows["by-macs"]["error"] == "by-macs: it broke"
    assert rows["torch-pruning-16"]["error"].startswith("the result: ")
    mine = rows["onnxprune"]
    assert mine["ci95"][0] <= mine["latency"] <= mine["ci95"][1]
    assert mine["gain"] == 0.52 / mine["latency"] and mine["off"] == 0.9 / mine["latency"] - 1
    assert mine["rounds"] >= MIN_TURNS and not any("file" in r for r in rows.values())
    assert not list(tmp_path.glob("tmp*"))


def test_a_file_has_no_peers_and_without_a_result_there_is_nothing_to_match(tmp_path: Path, model: Path) -> None:
    bench = Fake(tmp_path, 10, failing=["onnxprune"])
    rows = bench_model(bench, Source(str(model)), SWEEP)
    assert [(r["model"], r["who"]) for r in rows] == [
        ("net", who) for who in ("original", "onnxprune", "uniform", "by-macs")
    ]
    assert rows[2]["error"] == rows[3]["error"] == "there is no result of onnxprune to match"
    assert [step for step, _ in bench.asked] == ["onnxprune"]


def test_targets_are_done_whole_and_once(tmp_path: Path) -> None:
    sweep = Sweep([0.75, 0.5], ["torch-pruning"], 1, 1.0)
    rows = [row(target=0.75), row(target=0.75, who="torch-pruning", error="broke"), row()]
    out = tmp_path / "rows.jsonl"
    out.write_text("".join(json.dumps(r) + "\n" for r in [row(kept=0.1), *rows]))
    there = read(out)
    assert there[key(row())]["kept"] == 0.52  # the last of those that are the same
    assert due(sweep, Source("net"), there).targets == [0.5]
    assert due(sweep, Source("net"), there, retry=True).targets == [0.75, 0.5]
    assert due(sweep, Source("nets/net.onnx"), there).targets == []


def test_tables_have_the_figures() -> None:
    rows = [
        row(who="original", target=1.0, latency=1.0, kept=1.0, ms=7.5),
        row(predicted=0.52, off=0.04, table_seconds=4.0),
        row(target=0.75, latency=0.78, gain=1.1, predicted=0.77, off=-0.02),
        row(who="uniform", importance=0.81),
        row(who="by-macs", latency=0.6, importance=0.99),
        row(who="torch-pruning", latency=1.2, ci95=[1.1, 1.3], gain=0.43),
        row(who="torch-pruning-16", error="over the time"),
    ]
    del rows[5]["importance"]
    assert "7.50 ms" in text(table(rows)) and "0.500 (0.490-0.510)" in text(table(rows))
    assert "failed" in text(table(rows))
    lines = [[cell.strip() for cell in line.split("│")] for line in text(summary(rows)).splitlines() if "│" in line]
    found = {cells[1]: cells[2:-1] for cells in lines}
    assert found["onnxprune"] == ["2", "0", "1.07", "1.04", "0", "4.0%", "3.0%", "1.000 (2)"]
    assert found["uniform"] == ["1", "0", "1.04", "1.04", "0", "", "", "0.900 (1)"]
    assert found["by-macs"][-1] == ""  # it takes longer: no wonder that it keeps more
    assert found["torch-pruning"] == ["1", "0", "0.43", "0.43", "1", "", "", ""]
    assert found["torch-pruning-16"] == ["0", "1", "", "", "0", "", "", ""]


def test_a_run_that_is_there_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(row()) + "\n")
    assert main(["net", "--out", str(out), "--targets", "0.5", "--peers", "none"]) == 0
    assert "0.520" in capsys.readouterr().out


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(TOOL), "nowhere.onnx", "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "nowhere.onnx: no such file\n")
    with pytest.raises(SystemExit, match="a-peer: unknown; there are torch-pruning"):
        main(["net", "--out", str(tmp_path / "rows.jsonl"), "--peers", "a-peer"])
    monkeypatch.delitem(sys.modules, "models.torchvision_ops", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"^torch is not installed: give \.onnx files"):
        known(["resnet50"], PEERS)
