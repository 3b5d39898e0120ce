"""`bench`: how long a model takes, and how two compare."""

from __future__ import annotations

import json as jsons
from typing import Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import source
from onnxprune.commands.output import Progress, check_paths, files, show


@click.command(
    epilog=options.examples(
        "onnxprune bench net.onnx",
        "onnxprune bench net.onnx small.onnx --threads 1 --seconds 20",
    )
)
@click.argument("a")
@click.argument("b", required=False)
@options.runtime
@options.data
@options.preprocess
@options.shape
@options.batch
@click.option(
    "--seconds", type=options.Number(1), default=10.0, show_default=True, metavar="S", help="Longest measurement."
)
@options.json
@options.quiet
def bench(a: str, b: str | None, seconds: float, json: str | None, quiet: bool, **given: Any) -> None:
    """Measure the latency of one model, or of two in turns.

    Two models need the same inputs; their ratio comes with its 95 % interval.
    """
    check_paths({"A": a, "--data": given["data"]}, {"--json": json})
    check_paths({"B": b}, {"--json": json})
    from onnxprune import report, timing
    from onnxprune.data import read

    with files(json=json) as put, Progress(quiet) as progress:
        progress("latency")
        shapes = options.shapes(given["shape"])  # of sizes that were asked for only random inputs know
        feeds = None if given["data"] is None or shapes else read(source(given), a)
        where = given["provider"], given["threads"]
        found = timing.bench(a, b, *where, feeds, shapes, max_seconds=seconds, batch=given["batch"]).to_dict()
        put("json", jsons.dumps(found, indent=2) + "\n")
    show(report.comparison(found), json, quiet=quiet)
