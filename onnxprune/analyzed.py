"""A sensitivity analysis as a table for the screen, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import shlex
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from onnxprune import numerals, words
from onnxprune.problem import ONE
from onnxprune.sensitivity import Row, Sensitivity

if TYPE_CHECKING:
    from rich.console import RenderableType

SOME = 20  # rows that are shown
NAME, SHORT = 28, 18  # characters of a name, without and with a column of ratios
LEAST = 1e-6  # below which a loss is rounding


def to_json(found: Sensitivity, **notes: Any) -> str:
    """The analysis as JSON text; what is not a finite number is null.

    Args:
        found: the analysis.
        notes: more entries.
    """
    return json.dumps({"version": 1, **notes, **found.to_dict()}, indent=2, allow_nan=False) + "\n"


def to_csv(found: Sensitivity) -> str:
    """A row for each group or layer, a column for each share that was cut; what is not a finite number is empty."""
    text, kept = io.StringIO(), dict(found.ratios)
    names = [f"cut {cut:g}" for cut in found.cuts]
    last = ["kept"] if found.target else []
    writer = csv.DictWriter(text, [found.by, "node", "units", "macs", *names, *last], lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        values = {name: v if isfinite(v) else None for name, v in zip(names, row.values, strict=True)}
        line = {found.by: row.name, "node": row.node, "units": row.units, "macs": row.macs, **values}
        writer.writerow(line | ({"kept": kept.get(ONE + row.name, 1.0)} if last else {}))
    return text.getvalue()


def table(found: Sensitivity, everything: bool = False) -> list[RenderableType]:
    """The rows, the most sensitive first, and the ratios that were chosen, as options of `prune`."""
    kept = dict(found.ratios)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    shown.add_column(found.by, overflow="fold")
    cuts = (numerals.percent(cut) for cut in found.cuts)
    for header in ("units", "MACs", *cuts, *(["kept"] if found.target else [])):
        shown.add_column(header, justify="right", no_wrap=True)
    count = len(found.rows) if everything else SOME
    for row in found.rows[:count]:
        last = [numerals.percent(kept.get(ONE + row.name, 1.0))] if found.target else []
        name = title(row) if everything else numerals.tail(title(row), SHORT if found.target else NAME)
        shown.add_row(name, str(row.units), numerals.percent(row.macs), *map(number, row.values), *last)
    repair = "as it is" if found.recover == "none" else f"repaired ({found.recover})"
    said = f"{found.what} when so much of one {found.by} alone is cut, the rest {repair}; the most sensitive first"
    parts: list[RenderableType] = [Text(found.model, style="bold"), Text(said, style="dim"), "", shown]
    if len(found.rows) > count:
        parts.append(Text(f"... and {len(found.rows) - count} more (--all)"))
    if found.target:
        parts += ["", *(Text(line) for line in options(found))]
    return parts


def options(found: Sensitivity) -> list[str]:
    """The ratios as options of `prune`, a line each; in front of them the target that they meet."""
    lines = [f"--target {found.target} --criterion {found.criterion} --scope local --align {found.align}"]
    lines += [f"--ratio {shlex.quote(f'{pattern}={share:g}')}" for pattern, share in found.ratios]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def title(row: Row) -> str:
    """What a person calls a group: its tensor, or the node where that has no name of its own."""
    return words.title({"name": row.name, "node": row.node})


def number(value: float) -> str:
    """A loss with three digits, as far as they say something."""
    if not isfinite(value):
        return "-"
    return "<1e-6" if 0 < abs(value) < LEAST else f"{value:.3g}"
