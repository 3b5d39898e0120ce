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
    )
)
@options.model
@options.shape
@click.option("--all", "everything", is_flag=True, help="Every group and every lock, with full names.")
@options.json
@options.quiet
def inspect(model: str, json: str | None, everything: bool, quiet: bool, **given: Any) -> None:
    """Show what can be cut, and what is locked and why."""
    check_paths({"MODEL": model}, {"--json": json})
    from onnxprune import __version__, pipeline, report

    with files(json=json) as put, Progress(quiet) as progress:
        progress("analysis")
        record = pipeline.inspect(model, options.shapes(given["shape"])) | {"onnxprune": __version__}
        if json:
            put("json", report.to_json(record))
    show(report.inspection(record, everything), json, quiet=quiet)
