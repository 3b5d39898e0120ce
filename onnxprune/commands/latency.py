"""`latency`: where a model's time goes, and what is kept of earlier measurements."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import source
from onnxprune.commands.output import Progress, check_paths, files, show


@click.command(
    epilog=options.examples(
        "onnxprune latency net.onnx --threads 1",
        "onnxprune latency --show",
        "onnxprune latency --clear",
    )
)
@click.argument("model", required=False)
@options.runtime
@options.data
@options.preprocess
@options.shape
@options.batch
@click.option(
    "--align", default="auto", show_default=True, metavar="auto|N", help="Widths in `prune` that it is measured for."
)
@options.allow_inexact
@options.head_dims
@click.option("--all", "everything", is_flag=True, help="Every operator.")
@click.option("--show", "listed", is_flag=True, help="List what was measured before and is kept on disk.")
@click.option("--clear", is_flag=True, help="Forget what was measured before.")
@options.json
@options.quiet
def latency(
    model: str | None, everything: bool, listed: bool, clear: bool, json: str | None, quiet: bool, **given: Any
) -> None:
    """Measure what every operator of MODEL takes, as a function of its widths.

    This is what `prune --target latency=X` does first; it is kept on disk for the next time.
    """
    if sum((model is not None, listed, clear)) != 1:
        raise click.UsageError("give one of MODEL, --show and --clear")
    if clear and json is not None:
        raise click.UsageError("--clear has nothing to write to --json")
    check_paths({"MODEL": model, "--data": given["data"]}, {"--json": json})
    from onnxprune import clocked, report
    from onnxprune.latency import shelf

    if clear:
        number = shelf.clear()
        show([f"{number} {'file' if number == 1 else 'files'} removed"], quiet=quiet)
        return
    with files(json=json) as put, Progress(quiet) as progress:
        if model is None:
            record: dict[str, Any] = {"entries": list(shelf.entries())}
            parts = clocked.shelf(record["entries"])
        else:
            from onnxprune.timetable import timetable

            wanted = {
                name: given[name] for name in ("align", "allow_inexact", "head_dims", "provider", "threads", "batch")
            }
            shapes, data = options.shapes(given["shape"]), source(given)
            record = timetable(model, shapes=shapes, data=data, on_stage=progress, **wanted)
            parts = clocked.timetable(record, everything)
        put("json", report.to_json(record))
    show(parts, json, quiet=quiet)
