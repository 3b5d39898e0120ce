"""What the end-to-end tests share: tiny models on disk, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxprune.cli import cli
from onnxprune.testing import Builder

Run = Callable[..., Result]
Fails = Callable[..., str]


def classifier(seed: int = 0, side: int | str = 8) -> onnx.ModelProto:
    """x [N, 3, side, side] -> three convolutions with a residual sum -> y [N, 5]."""
    b = Builder(seed=seed)
    y = b.op("Relu", b.conv(b.input("x", "N", 3, side, side), 16, name="stem"))
    y = b.op("Add", y, b.conv(b.op("Relu", b.conv(y, 32, name="wide")), 16, name="back"))
    y = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", y)))
    return b.model(b.gemm(y, 5, name="head", bias=False))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `net.onnx` and matching `images.npz` in it."""
    onnx.save(classifier(), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """`run("prune", "net.onnx", ...)` in the folder; the result has exit_code, stdout and stderr."""
    runner = CliRunner()
    return lambda *words: runner.invoke(cli, [str(word) for word in words], prog_name="onnxprune")


@pytest.fixture
def fails(run: Run, folder: Path) -> Fails:
    """`fails("prune", ...)`: one line on standard error, the exit code given, and not a byte of difference on disk."""

    def check(*words: object, code: int = 1) -> str:
        before = contents(folder)
        result = run(*words)
        assert result.exit_code == code, (result.stderr, result.exception)
        assert result.stdout == ""
        assert result.stderr.startswith("onnxprune: error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert contents(folder) == before
        return result.stderr.removeprefix("onnxprune: error: ").strip()

    return check


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
