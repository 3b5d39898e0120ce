"""The recipes in docs run as written, on the default model with its calibration inputs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from onnxprune.passes import names

if TYPE_CHECKING:
    from tests.e2e.conftest import Run

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "zoo.md"]  # whose tool runs its own
DEFAULT = ROOT / "models" / "default"
RECIPES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(
        re.findall(r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize("text", RECIPES)
def test_the_recipe(text: str, run: Run, folder: Path) -> None:
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    model, data = DEFAULT / "default.onnx", DEFAULT / "calibration.npz"
    done = run("run", "recipe.toml", model, "-o", "small.onnx", "--data", data, "--bench-seconds", 0)
    assert done.exit_code == 0, done.stderr
    onnx.checker.check_model("small.onnx", full_check=True)


def test_every_pass_is_in_a_recipe() -> None:
    used = {step["name"] for recipe in RECIPES for step in tomllib.loads(str(recipe.values[0]))["pass"]}
    assert used == set(names())


def test_the_example_in_python(run: Run, folder: Path) -> None:
    page = (ROOT / "docs" / "passes" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    recipe = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "net.onnx").rename(folder / "model.onnx")
    made: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), made)
    assert (folder / "small.onnx").exists()
