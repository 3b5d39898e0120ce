"""`inspect`: what can be cut of a model, and what is locked and why."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.commands import options
from onnxprune.commands.output import Progress, check_paths, files, show


@click.command(
    epilog=options.examples(
        "onnxprune inspect resnet50.onnx",
        "onnxprune inspect net.onnx --shape input=1x3x640x640 --all --json groups.json",
        "onnxprune inspect net.onnx --explain layer1.0.conv1.weight",
    )
)
@options.model
@options.shape
@click.option(
    "--explain",
    metavar="NAME",
    help="For each axis of a tensor (or of a node's weights and outputs): its group, or the way to what locks it.",
)
@click.option("--all", "everything", is_flag=True, help="Every group and every lock, with full names.")
@options.allow_inexact
@options.head_dims
@options.json
@options.quiet
def inspect(model: str, json: str | None, explain: str | None, everything: bool, quiet: bool, **given: Any) -> None:
    """Show what can be cut, and what is locked and why."""
    check_paths({"MODEL": model}, {"--json": json})
    from onnxprune import __version__, inspection, report

    with files(json=json) as put, Progress(quiet) as progress:
        progress("analysis")
        record = inspection.inspect(model, options.shapes(given.pop("shape")), explain=explain, **given)
        record["onnxprune"] = __version__
        if json:
            put("json", report.to_json(record))
    parts = report.inspection if explain is None else report.explanation
    show(parts(record, everything), json, quiet=quiet)
