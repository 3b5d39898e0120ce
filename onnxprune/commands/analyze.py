"""`analyze`: what the answers lose when one group, or one layer, alone gets narrower."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from onnxprune.commands import options
from onnxprune.commands.carry_out import inputs, source
from onnxprune.commands.output import Progress, check_paths, files, show

OPTIONS = (
    "by",
    "target",
    "criterion",
    "recover",
    "metric",
    "distance",
    "align",
    "keep",
    "seed",
    "allow_inexact",
    "head_dims",
    "provider",
    "threads",
)


@click.command(
    epilog=options.examples(
        "onnxprune analyze net.onnx --data images.npz",
        "onnxprune analyze net.onnx --data images.npz --by layer --ratios 0.25,0.5 --plot layers.png",
        "onnxprune analyze net.onnx --data images.npz --target macs=0.5 --json ratios.json",
    )
)
@options.model
@click.option(
    "--ratios",
    default="0.1,0.25,0.5,0.75",
    show_default=True,
    metavar="SHARES",
    help="The shares of the units that go, each alone.",
)
@click.option(
    "--by",
    type=click.Choice(["group", "layer"]),
    default="group",
    show_default=True,
    help="What is cut alone: a group with all that is coupled, or what one layer reads of it.",
)
@click.option(
    "--target",
    metavar="WHAT",
    help="Also choose the share of each group that stays for macs=X, params=X or channels=X, as --ratio of `prune`.",
)
@options.ordering
@click.option(
    "--recover",
    type=click.Choice(["none", "bias", "channel"]),
    default="channel",
    show_default=True,
    help="The repair of what reads the cut channels that the loss is measured with.",
)
@options.distance
@options.metric
@options.inputs
@click.option("--all", "everything", is_flag=True, help="Every row, with full names.")
@click.option("--json", metavar="FILE", help="Write the analysis as JSON; - is standard output.")
@click.option("--csv", metavar="FILE", help="Write a row for each group or layer; - is standard output.")
@click.option("--plot", metavar="FILE", help="Draw a heat map: a .png or an .svg (needs matplotlib).")
@options.quiet
def analyze(model: str, ratios: str, everything: bool, **given: Any) -> None:
    """See which groups or layers a model can do without.

    Each is cut alone by several ratios, and what that changes in the answers is measured on inputs that were held out;
    with --metric, what it changes in your own measure, which takes a run of that for every figure.
    """
    written = {name: given[name] for name in ("json", "csv", "plot")}
    check_paths(inputs(given, MODEL=model), {f"--{name}": path for name, path in written.items()})
    wanted = {name: given[name] for name in OPTIONS}
    wanted |= {"data": source(given), "shapes": options.shapes(given["shape"])}
    from onnxprune import __version__, analyzed, plot
    from onnxprune.analyzing import analyze as work

    if given["plot"]:
        plot.check(given["plot"])
    with files(**written) as put, redirect_stdout(sys.stderr), Progress(given["quiet"]) as progress:
        found = work(model, ratios=ratios, on_stage=progress, **wanted)
        if given["json"]:
            put("json", analyzed.to_json(found, onnxprune=__version__))
        if given["csv"]:
            put("csv", analyzed.to_csv(found))
        if given["plot"]:
            from onnxprune.heatmap import heatmap

            put("plot", heatmap(found, Path(given["plot"]).suffix))
    show(analyzed.table(found, everything), given["json"], given["csv"], quiet=given["quiet"])
