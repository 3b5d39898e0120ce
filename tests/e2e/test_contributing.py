"""The examples of CONTRIBUTING.md work as printed: inside the tree, and from another package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
KINDS = ("rules", "criteria", "passes")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def named() -> dict[str, str]:
    """File -> content, by the comment on the first line."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}


def python(folder: Path, *words: str) -> str:
    """What Python prints with `folder` on its path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package(folder: Path) -> None:
    """Install `acme_onnx`, whose modules hold the examples, as pip would."""
    entries = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    (folder / "acme_onnx").mkdir()
    (folder / "acme_onnx" / "__init__.py").touch()
    info = folder / "acme_onnx-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-onnx\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for path, text in named().items():
        kind = path.removeprefix("onnxprune/").partition("/")[0]
        if kind in KINDS:
            (folder / "acme_onnx" / f"{kind}.py").write_text(text)


def test_every_example_is_a_file_with_a_test() -> None:
    files = [Path(path) for path in named()]
    sources = [path for path in files if path.parts[0] != "tests"]
    assert [path.parts[-2] for path in sources] == list(KINDS)
    for path in sources:
        assert Path("tests", path.parts[-2], f"test_{path.name}") in files
        assert not (ROOT / path).exists(), "the example is real code now: take another"


def test_the_examples_pass_their_own_tests(tmp_path: Path) -> None:
    package(tmp_path)
    for path, text in named().items():
        if path.startswith("tests/"):
            (tmp_path / Path(path).name).write_text(text)
    out = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))
    assert "3 passed" in out


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("rules", "A channel keeps its place, and its scale goes with it."),
        ("criteria", "Largest absolute weight of the filter."),
        ("passes", "Remove the doc strings of nodes, and of the model where that is asked for."),
    ],
)
def test_another_package_shows_up_in_the_lists(tmp_path: Path, kind: str, line: str) -> None:
    package(tmp_path)
    assert line in python(tmp_path, "-m", "onnxprune", "list", kind)


def test_the_examples_are_in_the_house_style(tmp_path: Path) -> None:
    for path, text in named().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.partition("\n")[2])
    style = ("--no-cache", "--config", str(ROOT / "pyproject.toml"), str(tmp_path))
    ours = 'lint.isort.known-first-party=["onnxprune"]'
    python(tmp_path, "-m", "ruff", "check", "--config", ours, *style)
    python(tmp_path, "-m", "ruff", "format", "--check", *style)
