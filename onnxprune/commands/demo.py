"""`demo`: the whole job on the small model that is part of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import carry_out, conditions, inputs, selection
from onnxprune.commands.output import Progress, check_paths

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxprune.pipeline import Result

NAME = "the default model (Fashion-MNIST)"
BATCH = 250


@click.command(
    epilog=options.examples(
        "onnxprune demo",
        "onnxprune demo --target macs=0.3 --threads 1 --report demo.html",
    )
)
@click.option("-o", "out", metavar="OUT", help="Keep the pruned model.")
@options.selection
@options.checks
@options.plan
@options.json
@options.report
@options.quiet
def demo(out: str | None, **given: Any) -> None:
    """Prune the small model that comes with onnxprune.

    It is a trained classifier of clothes, so the table has its true accuracy before and after.
    """
    check_paths(
        inputs(given), {"-o": out, "--plan": given["plan"], "--json": given["json"], "--report": given["report"]}
    )
    from onnxprune.default import calibration, model_path

    given["data"] = given["data"] or calibration()
    chosen, checked = selection(given), conditions(given)
    notes: dict[str, Any] = {"model": NAME, "out": out, "options": chosen}

    def work(progress: Progress) -> Result:
        from onnxprune.pruning import prune

        result = prune(model_path(), out=out, on_stage=progress, **chosen, **checked)
        if checked["validate"]:
            progress("accuracy")
            notes["accuracy"] = _accuracies(result.model, given["provider"], given["threads"])
        return result

    carry_out(work, given, notes)


def _accuracies(pruned: ModelProto, provider: str, threads: int | None) -> dict[str, Any]:
    """Share of the labelled sample that each model answers rightly."""
    from onnxprune.default import model_path, sample
    from onnxprune.runtime import run, session

    images, labels = sample()

    def accuracy(model: Any) -> float:
        ready = session(model, provider, threads)
        hits = 0
        for start in range(0, len(images), BATCH):
            answers = run(ready, {"image": images[start : start + BATCH]})["logits"].argmax(1)
            hits += int((answers == labels[start : start + BATCH]).sum())
        return hits / len(labels)

    return {"before": accuracy(model_path()), "after": accuracy(pruned), "images": len(labels)}
