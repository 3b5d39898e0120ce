"""What `prune`, `apply` and `demo` have in common: run, keep the files, print the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxprune.commands.options import shapes
from onnxprune.commands.output import Progress, files, show

if TYPE_CHECKING:
    from onnxprune.pipeline import Result

Given = dict[str, Any]
SCORING = ("criterion", "combine", "normalise", "seed")
CHOOSING = (*SCORING, "scope", "ratios", "recover", "distance", "iterations", "depth")  # nothing for a lossless target
MEASURED = ("min_speedup", "max_drop", "metric", "batch")  # nothing where the models are not run
SELECTION = (
    "target",
    *SCORING,
    "scope",
    "align",
    "keep",
    "ratios",
    "allow_inexact",
    "head_dims",
    "recover",
    "distance",
    "iterations",
    "depth",
)


def carry_out(work: Callable[[Progress], Result], given: Given, notes: Mapping[str, Any]) -> None:
    """Do the work and report it.

    Args:
        work: makes the result.
        given: the verb's options; `plan`, `json`, `report` and `quiet` are looked at here.
        notes: entries for the record.
    """
    import onnxprune
    from onnxprune import report
    from onnxprune.errors import GateError

    quiet, page, record_file = given["quiet"], given["report"], given["json"]
    plan_file = given.get("plan")
    wanted = files(plan=plan_file, json=record_file, report=page)
    # What a metric prints is not part of a record. The display stands in for both streams, so it goes inside.
    with wanted as put, redirect_stdout(sys.stderr), Progress(quiet) as progress:
        result, failure = None, None
        try:
            result = work(progress)
            figures = result.record
        except GateError as error:
            figures, failure = error.record, error
        record = {**figures, "onnxprune": onnxprune.__version__, **notes}
        if plan_file and result and result.plan:
            progress("plan")
            put("plan", json.dumps(result.plan.to_dict(), separators=(",", ":")) + "\n")
        if record_file:
            put("json", report.to_json(record))
        if page:
            put("report", report.to_html(record))
    show(report.table(record), plan_file, record_file, page, quiet=quiet)
    if failure:
        raise failure


def conditions(given: Given) -> dict[str, Any]:
    """The options of the checks, as the engine takes them.

    Raises:
        UsageError: a gate, a metric or a batch without its measurement.
    """
    wanted = [f"--{name.replace('_', '-')}" for name in MEASURED if given.get(name) is not None]
    if given["no_validate"] and wanted:
        raise click.UsageError(f"--no-validate leaves {wanted[0]} without a measurement; drop one of the two")
    if given["metric"] is None and (given["max_drop"] or 0) > 1:
        raise click.UsageError(f"--max-drop {given['max_drop']:g}: without --metric it is a share, from 0 to 1")
    batch = given.get("batch")
    if batch is not None and given["seconds"] == 0 and given["min_speedup"] is None:
        raise click.UsageError("--bench-seconds 0 leaves --batch without a measurement; drop one of the two")
    from onnxprune.validate import Checks

    return {
        "data": source(given),
        "provider": given["provider"],
        "threads": given["threads"],
        "shapes": shapes(given["shape"]),
        "validate": not given["no_validate"],
        "checks": Checks(given["seconds"], given["min_speedup"], given["max_drop"], batch),
        "metric": given["metric"],
    }


def inputs(given: Given, **others: str) -> dict[str, str | None]:
    """The files that a run reads, by what the user calls them: none of them is written over."""
    from onnxprune.metric import file_of

    return {**others, "--data": given["data"], "--metric": file_of(given["metric"])}


def source(given: Given) -> Any:
    """`--data`, with what `--preprocess` and `--shape` say about it.

    Raises:
        UsageError: preprocessing of nothing.
    """
    data, preprocess = given["data"], given["preprocess"]
    if data is None and preprocess is not None:
        raise click.UsageError("--preprocess is for images; name their folder with --data")
    if preprocess is None and not isinstance(data, str):
        return data
    from onnxprune.data import Data, Preprocess

    return Data(data, None if preprocess is None else Preprocess.parse(preprocess), shapes(given["shape"]))


def selection(given: Given) -> dict[str, Any]:
    """The options that choose what is cut.

    Raises:
        UsageError: options that choose between units, where the target leaves no choice.
    """
    context = click.get_current_context()
    idle = [p for p in context.command.params if p.name in CHOOSING and _is_given(context, p)]
    if given["target"] == "lossless" and idle:
        raise click.UsageError(
            f"--target lossless removes what has no effect, whatever {idle[0].opts[0]} says; drop it"
        )
    return {name: given[name] for name in SELECTION}


def _is_given(context: click.Context, option: click.Parameter) -> bool:
    source = context.get_parameter_source(option.name or "")
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
