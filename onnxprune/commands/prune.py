"""`prune` and `apply`: from a model to a smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import carry_out, conditions, inputs, selection
from onnxprune.commands.output import Progress, check_paths

if TYPE_CHECKING:
    from onnxprune.pipeline import Result


@click.command(
    epilog=options.examples(
        "onnxprune prune resnet50.onnx -o small.onnx --target macs=0.5 --data images.npz",
        "onnxprune prune net.onnx -o small.onnx --keep '^head' --min-speedup 1.2 --json -",
        "onnxprune prune masked.onnx -o small.onnx --target lossless",
    )
)
@options.model
@options.output
@options.selection
@options.checks
@options.batch
@options.plan
@options.json
@options.report
@options.quiet
def prune(model: str, out: str, **given: Any) -> None:
    """Make a model smaller, with proof and figures.

    The result is checked to compute the function of the original with the removed weights set to zero, and its speed
    and fidelity are measured. It is written if the checks pass.
    """
    files = {name: given[name] for name in ("plan", "json", "report")}
    check_paths(inputs(given, MODEL=model), {"-o": out, **_dashed(files)})
    chosen, checked = selection(given), conditions(given)

    def work(progress: Progress) -> Result:
        from onnxprune.pruning import prune

        return prune(model, out=out, on_stage=progress, **chosen, **checked)

    carry_out(work, given, {"out": out, "options": chosen})


@click.command(
    epilog=options.examples(
        "onnxprune prune v1.onnx -o v1-small.onnx --plan plan.json",
        "onnxprune apply v2.onnx plan.json -o v2-small.onnx",
        "onnxprune apply v2.onnx plan.json -o v2-small.onnx --data inputs.npz --recover auto",
    )
)
@options.model
@click.argument("plan")
@options.output
@options.recover("none")
@options.distance
@options.checks
@options.batch
@options.json
@options.report
@options.quiet
def apply(model: str, plan: str, out: str, **given: Any) -> None:
    """Replay the PLAN of an earlier run.

    MODEL is the model that the plan was made for, or a re-export of it with other weights.
    """
    files = {name: given[name] for name in ("json", "report")}
    check_paths(inputs(given, MODEL=model, PLAN=plan), {"-o": out, **_dashed(files)})
    checked, repair = conditions(given), {name: given[name] for name in ("recover", "distance")}

    def work(progress: Progress) -> Result:
        from onnxprune.pruning import apply

        return apply(model, plan, out=out, **repair, on_stage=progress, **checked)

    carry_out(work, given, {"out": out, "options": {"plan": plan, **repair}})


def _dashed(files: dict[str, str | None]) -> dict[str, str | None]:
    return {f"--{name}": path for name, path in files.items()}
