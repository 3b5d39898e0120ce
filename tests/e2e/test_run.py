"""`run`: a recipe from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from onnxprune.testing import Builder

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

FAST = ("--bench-seconds", "0")
RECIPE = """
[[pass]]
name = "prune_channels"
target = "macs=0.8"
criterion = "l2"
align = 1

[[pass]]
name = "prune_channels"
target = "macs=0.8"
criterion = "l1"
scope = "local"
align = 1

[[pass]]
name = "reconstruct"
"""


@pytest.fixture
def recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_passes_in_order_with_one_record(run: Run, folder: Path, recipe: Path) -> None:
    done = run("run", recipe, "net.onnx", "-o", "small.onnx", "--data", "images.npz", "--json", "r.json", *FAST)
    assert done.exit_code == 0, done.stderr
    assert "recipe.toml: prune_channels, prune_channels, reconstruct" in done.stdout
    onnx.checker.check_model("small.onnx", full_check=True)
    record = json.loads((folder / "r.json").read_text())
    assert [step["name"] for step in record["passes"]] == ["prune_channels", "prune_channels", "reconstruct"]
    assert record["passes"][1]["options"]["criterion"] == "l1"
    assert 0.5 < record["macs"]["after"] / record["macs"]["before"] <= 0.64
    sizes = {t.name: list(t.dims) for t in onnx.load("net.onnx").graph.initializer}
    units = {group["name"]: group["units"]["before"] for group in record["groups"]}
    assert units["wide"] == sizes["wide"][0]
    assert record["parity"]["exact"]


def test_no_plan_where_an_earlier_pass_changed_the_model(recipe: Path, folder: Path) -> None:
    from onnxprune import Pipeline, read_recipe

    steps = read_recipe(recipe)
    assert Pipeline(steps[:1]).run(folder / "net.onnx").plan is not None
    assert Pipeline(steps[:2]).run(folder / "net.onnx").plan is None


def test_bad_recipes_end_in_one_line(fails: Fails, folder: Path, recipe: Path) -> None:
    assert fails("run", "none.toml", "net.onnx", "-o", "o.onnx").startswith("none.toml: cannot be read")
    recipe.write_text(RECIPE.replace("local", "everywhere"))
    said = fails("run", "recipe.toml", "net.onnx", "-o", "o.onnx", *FAST)
    assert said == (
        "recipe.toml line 12: prune_channels: scope = everywhere: choose one of auto, global, local, budget, damage"
    )
    assert "is both RECIPE and -o" in fails("run", "recipe.toml", "net.onnx", "-o", "recipe.toml")


def test_repair_without_a_cut_is_refused(fails: Fails, recipe: Path) -> None:
    recipe.write_text('[[pass]]\nname = "reconstruct"\n')
    assert "there is no cut to recover from" in fails("run", "recipe.toml", "net.onnx", "-o", "o.onnx", *FAST)


def test_repair_that_does_not_find_its_layers_is_refused(fails: Fails, folder: Path, recipe: Path) -> None:
    b = Builder()
    y = b.op("Relu", b.batch_norm(b.conv(b.input("x", "N", 3, 8, 8), 16, name="a")))
    y = b.op("Relu", b.batch_norm(b.conv(y, 16, name="b")))
    onnx.save(b.model(b.conv(y, 4, name="c")), "bn.onnx")
    steps = ('"prune_channels"\nalign = 1\nscope = "local"', '"fold_batchnorm"', '"reconstruct"')
    recipe.write_text("".join(f"[[pass]]\nname = {step}\n" for step in steps))
    said = fails("run", "recipe.toml", "bn.onnx", "-o", "o.onnx", "--data", "images.npz", *FAST)
    assert "reconstruct does not find" in said and "put clean-up passes before the cut" in said


@pytest.mark.parametrize("step", ['"sparsify"', '"quantize"\nmode = "dynamic"'])
def test_repair_that_would_undo_a_pass_is_refused(step: str, fails: Fails, recipe: Path) -> None:
    steps = ('"prune_channels"\nalign = 1\ncriterion = "l2"', step, '"reconstruct"')
    recipe.write_text("".join(f"[[pass]]\nname = {each}\n" for each in steps))
    said = fails("run", "recipe.toml", "net.onnx", "-o", "o.onnx", "--data", "images.npz", *FAST)
    name = step.split('"')[1]
    assert said.partition(": ")[2] == f"reconstruct: would undo what {name} did to the weights; put it before that"
