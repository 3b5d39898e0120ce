"""The command line: parse, call, print, and say in one line what went wrong.

Exit codes: 0 all is well, 1 a known error, 2 usage, 3 a gate failed, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from io import TextIOWrapper
from typing import Any

import click

from onnxprune import __version__
from onnxprune.commands import analyze, bench, demo, inspect, latency, listing, options, prune, run, sweep
from onnxprune.errors import MESSAGE_LIMIT, OnnxPruneError, one_line

DEBUG = "ONNXPRUNE_DEBUG"


class Verbs(click.Group):
    """A group whose verbs end in one line, whatever they raise."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which a newcomer needs them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click has a line for each
        except KeyboardInterrupt:
            click.echo("onnxprune: interrupted; nothing was written", err=True)
            ctx.exit(130)
        except Exception as error:
            if os.environ.get(DEBUG):
                traceback.print_exc()
            click.echo(f"onnxprune: {_line(error)}", err=True)
            ctx.exit(error.exit_code if isinstance(error, OnnxPruneError) else 1)


def _line(error: Exception) -> str:
    if isinstance(error, OnnxPruneError):
        return f"error: {error}"
    text = one_line(f"{type(error).__name__}: {error}".rstrip(": "), MESSAGE_LIMIT)
    return f"internal error: {text} (set {DEBUG}=1 for the traceback)"


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=options.examples("onnxprune demo", "onnxprune prune net.onnx -o small.onnx --target macs=0.5"),
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Prune exported ONNX models: exact surgery, measured speed, without training."""


for verb in (
    demo.demo,
    inspect.inspect,
    analyze.analyze,
    prune.prune,
    prune.apply,
    run.run,
    sweep.sweep,
    bench.bench,
    latency.latency,
    listing.listing,
):
    cli.add_command(verb)


def main() -> int:
    """Run the command line; return the exit code."""
    if not os.environ.get(DEBUG):
        warnings.simplefilter("ignore")  # other libraries' notes to their programmers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in letters that a terminal does not have
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files go
    try:
        cli(prog_name="onnxprune")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
