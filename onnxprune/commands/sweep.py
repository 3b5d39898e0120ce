"""`sweep`: the curve of latency, fidelity and size, and its knee."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from onnxprune.commands import executors, options
from onnxprune.commands.carry_out import SELECTION, inputs, source
from onnxprune.commands.output import Progress, check_paths, files, show

COSTS = ("macs", "params", "channels", "latency")


@click.command(
    epilog=options.examples(
        "onnxprune sweep net.onnx --data images.npz --plot curve.svg",
        "onnxprune sweep net.onnx --targets 0.9,0.75,0.5 --cost params --out-dir models --csv curve.csv",
        "onnxprune sweep a.onnx b.onnx --targets 0.9:0.3:4 --executor dask --address tcp://10.0.0.1:8786",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--targets",
    default="0.9:0.3",
    show_default=True,
    metavar="SHARES",
    help="The shares that may remain: FROM:TO, FROM:TO:COUNT (7 if not said), or some with commas between.",
)
@click.option("--cost", type=click.Choice(COSTS), default="macs", show_default=True, help="What the shares are of.")
@options.choice
@options.conditions
@options.metric
@click.option("--out-dir", metavar="DIR", help="Keep the pruned models, as <stem>-<cost>=<share>.onnx.")
@click.option("--json", metavar="FILE", help="Write the curves as JSON; - is standard output.")
@click.option("--csv", metavar="FILE", help="Write a row for each point; - is standard output.")
@click.option("--plot", metavar="FILE", help="Draw the curves: a .png or an .svg (needs matplotlib).")
@click.option(
    "--executor",
    type=click.Choice(executors.KINDS),
    help="Prune in several processes or on a Dask cluster; latencies are measured here, afterwards.",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes (as many as processors).")
@click.option("--address", metavar="tcp://HOST:PORT", help="The scheduler of the Dask cluster.")
@options.quiet
def sweep(models: tuple[str, ...], targets: str, cost: str, **given: Any) -> None:
    """Prune for several targets, and see where it stops to pay.

    Every target gives a point: latency, fidelity and size against the original's. The table marks the front, points
    that no other beats in all three, and the knee.
    """
    executors.check(given["executor"], given["workers"], given["address"])
    written = {name: given[name] for name in ("json", "csv", "plot")}
    read = inputs(given, **{f"MODEL {n}" if n > 1 else "MODEL": model for n, model in enumerate(models, 1)})
    check_paths(read, {f"--{name}": path for name, path in written.items()})
    wanted = {name: given[name] for name in SELECTION if name != "target"}
    wanted |= {name: given[name] for name in ("provider", "threads", "metric", "seconds")}
    wanted |= {"data": source(given), "shapes": options.shapes(given["shape"])}
    from onnxprune import __version__, plot, swept
    from onnxprune.sweeping import sweep as work

    if given["plot"]:
        plot.check(given["plot"])
    with (
        files(**written) as put,
        redirect_stdout(sys.stderr),
        Progress(given["quiet"]) as progress,
        executors.opened(given["executor"], given["workers"], given["address"]) as where,
    ):
        curves = work(list(models), targets, cost, out=given["out_dir"], on_stage=progress, **where, **wanted)
        if given["json"]:
            put("json", swept.to_json(curves, onnxprune=__version__, cost=cost, targets=targets))
        if given["csv"]:
            put("csv", swept.to_csv(curves))
        if given["plot"]:
            put("plot", plot.plot(curves, Path(given["plot"]).suffix))
    shown = [part for curve in curves for part in ("", *swept.table(curve))][1:]
    show(shown, given["json"], given["csv"], quiet=given["quiet"])
