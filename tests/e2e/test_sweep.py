"""`sweep` as a user runs it: curves in every form, in one process and in several, and whatever is wrong in a line."""

from __future__ import annotations

import csv
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from onnxprune.commands import executors

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

FAST = ("--bench-seconds", "0", "--align", "1", "--threads", "1")
THREE = ("--targets", "0.9,0.6,0.3")


def test_a_sweep_prints_the_curve_and_leaves_nothing(run: Run, folder: Path) -> None:
    result = run("sweep", "net.onnx", "--data", "images.npz", *THREE, *FAST[2:], "--bench-seconds", 1)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == ""
    for word in ("net.onnx", "macs=0.9", "macs=0.6", "macs=0.3", "latency (95 %)", "cosine", "front", "1 thread"):
        assert word in result.stdout
    assert len(re.findall(r"\d %\s\(\d+\.\d to \d+\.\d\)", result.stdout)) == 3
    assert all(len(line) <= 80 and line == line.rstrip() for line in result.stdout.splitlines())
    assert sorted(p.name for p in folder.iterdir()) == ["images.npz", "net.onnx"]


def test_everything_for_the_archive(run: Run, folder: Path) -> None:
    files = ("--json", "c.json", "--csv", "c.csv", "--plot", "c.png", "--out-dir", "models")
    result = run("sweep", "net.onnx", "--data", "images.npz", *THREE, *FAST, *files)
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(Path("c.json").read_text())
    (curve,) = record["curves"]
    assert [p["target"] for p in curve["points"]] == ["macs=0.9", "macs=0.6", "macs=0.3"]
    assert {"front", "knee", "macs", "params", "file_bytes", "latency", "cosine", "seconds", "file"} <= set(
        curve["points"][0]
    )
    assert curve["original"]["file_bytes"] == Path("net.onnx").stat().st_size
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    assert [float(row["macs"]) for row in rows] == [p["macs"] for p in curve["points"]]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    for point in curve["points"]:
        onnx.checker.check_model(point["file"])
        assert Path(point["file"]).stat().st_size == round(point["file_bytes"] * curve["original"]["file_bytes"])
    names = ["c.csv", "c.json", "c.png", "images.npz", "models", "net.onnx"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert len(list((folder / "models").iterdir())) == 3


def test_several_models_and_another_cost(run: Run) -> None:
    onnx.save(onnx.load("net.onnx"), "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    words = ("--targets", "0.9:0.5:2", "--cost", "params", *FAST, "--out-dir", ".", "--plot", "c.svg", "--csv", "-")
    result = run("sweep", "net.onnx", "big.onnx", *words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [(row["model"], row["target"]) for row in rows] == [
        ("net.onnx", "params=0.9"),
        ("net.onnx", "params=0.5"),
        ("big.onnx", "params=0.9"),
        ("big.onnx", "params=0.5"),
    ]
    assert all(float(row["params"]) <= float(row["share"]) for row in rows)
    onnx.checker.check_model("big-params=0.5.onnx")
    assert Path("big-params=0.5.onnx.data").exists()
    assert ">big.onnx<" in Path("c.svg").read_text()


def test_targets_that_cannot_be_met_are_told(run: Run) -> None:
    result = run("sweep", "net.onnx", "--targets", "0.9,0.0001", *FAST, "--json", "-")
    assert result.exit_code == 0
    met, unmet = json.loads(result.stdout)["curves"][0]["points"]
    assert met["error"] is None and "cannot be met" in unmet["error"] and unmet["macs"] is None
    said = run("sweep", "net.onnx", "--targets", "0.9,0.0001", *FAST).stdout
    assert "cannot be met; the least that can remain is" in " ".join(said.split())


def test_a_metric_has_a_column(run: Run) -> None:
    Path("metric.py").write_text(
        "import numpy as np\n"
        "def mean(run):\n"
        "    print('measuring')\n"
        "    return float(run({'x': np.ones((1, 3, 8, 8), np.float32)})[run.outputs[0]].mean())\n"
    )
    given = ("--metric", "metric.py:mean", *THREE, *FAST)
    result = run("sweep", "net.onnx", *given)
    assert "mean" in result.stdout and "original" in result.stdout
    text = run("sweep", "net.onnx", *given, "--csv", "-", "--executor", "process", "--workers", 1).stdout
    rows = list(csv.DictReader(text.splitlines()))
    assert len({row["metric mean"] for row in rows} - {""}) == 3


def test_processes_make_the_same(run: Run) -> None:
    given = ("--data", "images.npz", "--targets", "0.9,0.5", *FAST)
    for where, options in (("here", ()), ("there", ("--executor", "process", "--workers", "2"))):
        result = run("sweep", "net.onnx", *given, "--out-dir", where, *options)
        assert result.exit_code == 0, (result.stderr, result.exception)
    for name in ("net-macs=0.9.onnx", "net-macs=0.5.onnx"):
        assert (Path("here") / name).read_bytes() == (Path("there") / name).read_bytes()


def test_an_error_in_a_process_is_the_same_line(fails: Fails) -> None:
    given = ("sweep", "net.onnx", *THREE, *FAST, "--criterion", "l22")
    assert fails(*given) == fails(*given, "--executor", "process", "--workers", 1)


def test_an_interrupt_ends_the_processes_too(folder: Path) -> None:
    Path("slow.py").write_text(
        "import time\ndef slow(run):\n    open('begun', 'w')\n    time.sleep(60)\n    return 1.0\n"
    )
    words = ("sweep", "net.onnx", *THREE, *FAST, "--metric", "slow.py:slow", "--executor", "process", "--workers", "1")
    run = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", *words, "--out-dir", "models"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not Path("begun").exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=20)
    assert run.returncode == 130 and said == "onnxprune: interrupted; nothing was written\n"
    assert sorted(p.name for p in folder.iterdir()) == ["begun", "images.npz", "net.onnx", "slow.py"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Dask cluster with one worker that runs two tasks at once."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def test_a_dask_cluster_makes_the_same(run: Run, address: str) -> None:
    given = ("--data", "images.npz", "--targets", "0.9,0.5", *FAST)
    for where, options in (("here", ()), ("there", ("--executor", "dask", "--address", address))):
        result = run("sweep", "net.onnx", *given, "--out-dir", where, *options)
        assert result.exit_code == 0, (result.stderr, result.exception)
    for name in ("net-macs=0.9.onnx", "net-macs=0.5.onnx"):
        assert (Path("here") / name).read_bytes() == (Path("there") / name).read_bytes()


def test_a_cluster_without_workers(fails: Fails) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=":0") as cluster:
        where = ("--executor", "dask", "--address", cluster.scheduler_address)
        assert "the cluster has no workers" in fails("sweep", "net.onnx", *where)


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "foo://x:1", "tcp://127.0.0.1"])
def test_addresses_that_are_none(fails: Fails, address: str) -> None:
    pytest.importorskip("distributed")
    assert "no Dask scheduler answers" in fails("sweep", "net.onnx", "--executor", "dask", "--address", address)


def test_an_address_that_nobody_answers_at(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "PATIENCE", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert "no Dask scheduler answers" in fails("sweep", "net.onnx", "--executor", "dask", "--address", where)


def test_a_cluster_without_the_package(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    given = ("--executor", "dask", "--address", "tcp://127.0.0.1:8786")
    assert "pip install distributed" in fails("sweep", "net.onnx", *given)


# The page

PAGE = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")


def test_the_python_block_of_the_page(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(block, "sweep.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["macs=0.9", "macs=0.7", "macs=0.5"]


def test_the_output_on_the_page_is_what_is_printed(run: Run) -> None:
    command, *printed = re.findall(r"^```\n\$ (.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()
    said = run(*command.split()[1:], "--align", 1, "--bench-seconds", 0).stdout.splitlines()
    assert [line.split()[:1] for line in printed[:10]] == [line.split()[:1] for line in said[:10]]
    assert printed[2].split() == said[2].split()
    assert printed[-1].split()[:2] == ["latency", "on"]
    assert Path("curve.svg").exists() and len(list(Path("models").iterdir())) == 7


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--targets", "0.9:0.3:1"), "--targets 0.9:0.3:1: a range has 2 to 100 shares; write"),
        (("--targets", "1.5,0.5"), "--targets 1.5,0.5: 1.5 is no share"),
        (("--targets", "0.5,0.5"), "a share is there twice"),
        (("--targets", "few"), "'few' is no number"),
        (("--targets", ""), "--targets"),
        (("--criterion", "l22"), "unknown criterion 'l22'"),
        (("--align", "wide"), "--align wide"),
        (("--keep", "nothing"), "matches no tensor"),
        (("--provider", "gpu"), "unknown provider 'gpu'"),
        (("--data", "none.npz"), "none.npz: no such file"),
        (("--metric", "none.py:accuracy"), "none.py: no such file"),
        (("--shape", "x=1x4x8x8"), "x"),
        (("--plot", "curve.pdf"), "--plot curve.pdf: write a name that ends in .png or .svg"),
        (("--plot", "-"), "--plot -: write a name"),
        (("--json", "none/c.json"), "none/c.json: cannot be written"),
        (("--csv", "none/c.csv"), "none/c.csv: cannot be written"),
        (("--plot", "none/c.svg"), "none/c.svg: cannot be written"),
        (("--json", "net.onnx"), "is both MODEL and --json"),
        (("--csv", "c", "--json", "c"), "is both --json and --csv"),
        (("--data", "images.npz", "--csv", "images.npz"), "is both --data and --csv"),
        (("--out-dir", "none/models"), "cannot be written"),
        (("--out-dir", "net.onnx"), "net.onnx: is no folder"),
    ],
)
def test_options_that_make_no_sense(fails: Fails, options: tuple[str, ...], words: str) -> None:
    assert words in fails("sweep", "net.onnx", *FAST, *options)


def test_models_that_are_none(fails: Fails) -> None:
    Path("bad.onnx").write_bytes(b"hello")
    assert "none.onnx: no such file" in fails("sweep", "net.onnx", "none.onnx", *FAST)
    assert "bad.onnx: not an ONNX model" in fails("sweep", "net.onnx", "bad.onnx", *FAST, "--out-dir", "models")


def test_results_that_would_replace_a_model(fails: Fails) -> None:
    model = onnx.load("net.onnx")
    onnx.save(model, "net-macs=0.5.onnx")
    given = ("net.onnx", "net-macs=0.5.onnx", "--targets", "0.5", *FAST, "--out-dir", ".")
    assert "would replace 'net-macs=0.5.onnx'" in fails("sweep", *given)
    Path("sub").mkdir()
    onnx.save(model, "sub/net.onnx")
    assert "two models have this name" in fails("sweep", "net.onnx", "sub/net.onnx", *FAST, "--out-dir", ".")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("net.onnx", "--cost", "weight"),
        ("net.onnx", "--executor", "slurm"),
        ("net.onnx", "--executor", "dask"),
        ("net.onnx", "--workers", "2"),
        ("net.onnx", "--executor", "process", "--workers", "0"),
        ("net.onnx", "--executor", "process", "--address", "tcp://127.0.0.1:8786"),
        ("net.onnx", "--address", "tcp://127.0.0.1:8786"),
        ("net.onnx", "--preprocess", "imagenet"),
        ("net.onnx", "--bench-seconds", "nan"),
        ("net.onnx", "--target", "macs=0.5"),
    ],
)
def test_usage(run: Run, words: tuple[str, ...]) -> None:
    result = run("sweep", *words)
    assert result.exit_code == 2
    assert result.stdout == "" and "Usage: onnxprune sweep" in result.stderr and "Error: " in result.stderr
