"""Everything in README.md runs as written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.testing import Builder

if TYPE_CHECKING:
    from tests.e2e.conftest import Run

PAGE = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def commands() -> Iterator[list[str]]:
    """Every `onnxprune ...` line of the shell blocks, in order."""
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["onnxprune"]:
                yield words[1:]


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.onnx`, of which half the filters hardly matter, and `images.npz`."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 32, 32), 64, name="stem"))
    for layer in range(3):
        y = b.op("Relu", b.conv(y, 64, name=f"body.{layer}"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    made = b.model(b.gemm(b.op("Relu", b.gemm(y, 64, name="head.0")), 5, name="head.1"))
    for tensor in made.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        array[len(array) // 2 :] *= 1e-3 if len(array) > 5 else 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(made, "model.onnx")
    monkeypatch.setattr("onnxprune.timing.PRECISION", 0.5)  # do not measure for long
    Path("recipe.toml").write_text(blocks("toml")[0], encoding="utf-8")
    np.savez("images.npz", x=np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32))


def test_the_commands(run: Run, model: None) -> None:
    ran = list(commands())
    assert {words[0] for words in ran} >= {"inspect", "prune", "apply", "bench", "list"}
    for words in ran:
        result = run(*words)
        busy = result.exit_code == 3 and "--min-speedup" in result.stderr  # other tests run beside this one
        assert result.exit_code == 0 or busy, (words, result.stderr)
    onnx.checker.check_model("small.onnx")
    again, small = (onnx.load(name).graph.initializer for name in ("again.onnx", "small.onnx"))
    assert [(t.name, list(t.dims)) for t in again] == [(t.name, list(t.dims)) for t in small]  # repaired, cut alike


def test_the_python_blocks(model: None, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), {})
    assert "exact: True" in capsys.readouterr().out


def test_the_output_of_the_demo_is_what_it_prints(run: Run) -> None:
    printed = next(block for block in blocks("") if "onnxprune demo" in block)

    def labels(text: str) -> list[str]:
        return [line.split()[0] for line in text.splitlines() if re.match(r"[A-Za-z]", line)]

    result = run("demo")
    assert labels(printed.partition("\n")[2]) == labels(result.stdout)


def test_every_verb_is_named() -> None:
    from onnxprune.cli import cli

    for verb in cli.commands:
        assert f"| `{verb}" in PAGE.read_text(encoding="utf-8")
