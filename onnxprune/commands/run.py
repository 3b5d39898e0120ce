"""`run`: a recipe, any sequence of passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import carry_out, conditions, inputs
from onnxprune.commands.output import Progress, check_paths

if TYPE_CHECKING:
    from onnxprune.pipeline import Result


@click.command(
    epilog=options.examples(
        "onnxprune run recipe.toml net.onnx -o small.onnx --data images.npz",
        "onnxprune list passes",
    )
)
@click.argument("recipe")
@options.model
@options.output
@options.checks
@options.batch
@options.json
@options.report
@options.quiet
def run(recipe: str, model: str, out: str, **given: Any) -> None:
    """Run the passes of a RECIPE, a TOML file.

    It has a [[pass]] table for each, in order, with its name and its options; `list passes` shows what there is.
    Proof, figures and gates are those of `prune`.
    """
    files = {f"--{name}": given[name] for name in ("json", "report")}
    check_paths(inputs(given, RECIPE=recipe, MODEL=model), {"-o": out, **files})
    checked = conditions(given)
    from onnxprune.recipe import read_recipe

    passes = read_recipe(recipe)

    def work(progress: Progress) -> Result:
        from onnxprune.pipeline import Pipeline

        validate, checks = checked.pop("validate"), checked.pop("checks")
        return Pipeline(passes).run(model, out=out, on_stage=progress, checks=checks if validate else None, **checked)

    carry_out(work, given, {"out": out, "options": {"recipe": Path(recipe).name}})
