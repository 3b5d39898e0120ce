"""The command as a process: exit codes, quick help, interruption, pipes, no torch, no trace of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import onnxprune
from onnxprune import cli
from onnxprune.cli import main

if TYPE_CHECKING:
    from tests.e2e.conftest import Run

ROOT = Path(onnxprune.__file__).parent.parent
VERBS = ("demo", "inspect", "prune", "apply", "bench", "list")
HEAVY = {"numpy", "scipy", "onnx", "onnxruntime", "rich", "jinja2", "torch"}


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
ENVIRONMENT.pop("NO_COLOR", None)


def start(*words: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT)


def patched(setting: str, *words: object) -> tuple[object, ...]:
    """Words for `start` that run the command line with another constant in some module."""
    module = setting.partition("=")[0].rpartition(".")[0]
    return "-c", f"import sys, {module}; {setting}; from onnxprune.cli import main; sys.exit(main())", *words


def command(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start("-m", "onnxprune", *words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_exit_codes_reach_the_shell(folder: Path) -> None:
    assert command("prune", "net.onnx", "-o", "small.onnx", "--bench-seconds", 0, "--align", 1, "--quiet") == (
        0,
        "",
        "",
    )
    code, out, err = command("inspect", "none.onnx")
    assert (code, out) == (1, "") and err.startswith("onnxprune: error: none.onnx: no such file")
    assert command("inspect")[0] == 2
    gate = ("--bench-seconds", 0, "--align", 1, "--min-speedup", 1000)
    code, out, err = command("prune", "net.onnx", "-o", "other.onnx", *gate)
    assert (code, err.count("\n")) == (3, 1) and "latency" in out
    assert sorted(p.name for p in folder.iterdir()) == ["images.npz", "net.onnx", "small.onnx"]


def test_the_version() -> None:
    assert command("--version") == (0, f"onnxprune {onnxprune.__version__}\n", "")


@pytest.mark.parametrize("words", [("--help",), *((verb, "--help") for verb in VERBS)])
def test_help_has_examples_and_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    process = start("-X", "importtime", "-m", "onnxprune", *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Examples:" in out and "  onnxprune " in out
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "click" in modules
    assert not modules & HEAVY


def test_pruning_does_not_import_torch(folder: Path) -> None:
    words = ("prune", "net.onnx", "-o", "small.onnx", "--bench-seconds", 0, "--align", 1)
    process = start("-X", "importtime", "-m", "onnxprune", *words)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "onnxruntime" in modules and "torch" not in modules


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(folder: Path, number: int, code: int) -> None:
    before = sorted(folder.iterdir())
    files = ("--plan", "plan.json", "--json", "record.json")
    words = ("prune", "net.onnx", "-o", "small.onnx", "--align", 1, "--bench-seconds", 300, *files)
    process = start(*patched("onnxprune.timing.PRECISION=0", *words))
    deadline = time.monotonic() + 60
    while not any(p.is_dir() and any(p.iterdir()) for p in folder.glob(".onnxprune-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)  # into the measurement
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.strip() == ("onnxprune: interrupted; nothing was written" if number == signal.SIGINT else "")
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    process = start("-m", "onnxprune", "list", "rules")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [("list", "rules"), ("inspect", "net.onnx", "--json", "-")])
def test_a_full_disk_behind_standard_output_is_one_line(folder: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "onnxprune", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr.startswith("onnxprune: error: standard output: cannot be written (No space")
    assert process.stderr.count("\n") == 1


def test_a_terminal_sees_progress_and_colour_and_a_pipe_does_not(folder: Path) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    words = ("prune", "net.onnx", "-o", "small.onnx", "--align", 1, "--bench-seconds", 1)
    process = start(*patched("onnxprune.commands.output.PATIENCE=0", *words), stderr=child)
    out, _ = process.communicate(timeout=120)
    seen = os.read(parent, 65536).decode(errors="replace")
    os.close(child)
    os.close(parent)
    assert process.returncode == 0
    assert "latency ..." in seen
    assert "\x1b" not in out and "parameters" in out


def test_a_bug_is_one_line_and_its_traceback_an_environment_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("onnxprune.inspection.inspect", broken)
    result = run("inspect", "net.onnx")
    line = "onnxprune: internal error: ZeroDivisionError: first second (set ONNXPRUNE_DEBUG=1 for the traceback)\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)
    monkeypatch.setenv(cli.DEBUG, "1")
    result = run("inspect", "net.onnx")
    assert "Traceback" in result.stderr and result.stderr.endswith(line)


def test_main_returns_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--version"], 0), (["inspect", "none.onnx"], 1), (["inspect"], 2)):
        monkeypatch.setattr(sys, "argv", ["onnxprune", *words])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            assert main() == code
        finally:
            signal.signal(signal.SIGTERM, handler)
