"""The curves of a sweep as a table for the screen, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from onnxprune import numerals, words
from onnxprune.tradeoff import Curve, Point

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxprune.timing import Interval

COLUMNS = (
    "model",
    "target",
    "share",
    "macs",
    "params",
    "file_bytes",
    "latency",
    "latency_low",
    "latency_high",
    "milliseconds",
    "cosine",
    "top1_agreement",
)
LAST = ("seconds", "front", "knee", "file", "error")


def to_json(curves: Sequence[Curve], **notes: Any) -> str:
    """All curves as JSON text; what was not measured is null.

    Args:
        curves: those of a sweep.
        notes: more entries.
    """
    record = {"version": 1, **notes, "curves": [curve.to_dict() for curve in curves]}
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def to_csv(curves: Sequence[Curve]) -> str:
    """A row for each point, the user's measures in columns of their own; what was not measured is empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for curve in curves for point in curve.points for name in point.metric))
    columns = [*COLUMNS, *(f"metric {name}" for name in names), *LAST]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for curve in curves:
        for point in curve.to_dict()["points"]:
            latency: Mapping[str, float] = point.pop("latency") or {}
            ends = {f"latency_{end}": latency.get(end) for end in ("low", "high")}
            metric = {f"metric {name}": value for name, value in point.pop("metric").items()}
            writer.writerow({**point, "latency": latency.get("value"), **ends, **metric})
    return text.getvalue()


def table(curve: Curve) -> list[RenderableType]:
    """The points of a curve, those on the front and the knee marked."""
    names = list(dict.fromkeys(name for point in curve.points for name in point.metric))
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    shown.add_column("target", no_wrap=True)
    for header in (
        "params" if curve.cost == "params" else "MACs",
        "file",
        "latency (95 %)",
        "cosine",
        "top-1",
        *names,
        "",
    ):
        shown.add_column(header, justify="right" if header else "left", no_wrap="latency" not in header)
    before = curve.original.get("metric", {})
    if names:
        shown.add_row("original", *[""] * 5, *(_number(before.get(name)) for name in names), "")
    for number, point in enumerate(curve.points):
        mark = "knee" if number == curve.knee else "front" if number in curve.front else ""
        shown.add_row(point.target, *_figures(curve.cost, point, names), mark, style="" if mark else "dim")
    parts: list[RenderableType] = [Text(curve.model, style="bold"), "", shown, "", _knee(curve), _measured(curve)]
    said = [*(point.error for point in curve.points if point.error), *curve.notes]
    return [*parts, *(Text(line, style="yellow") for line in said)]


def _figures(cost: str, point: Point, names: Sequence[str]) -> list[str]:
    share = point.params if cost == "params" else point.macs
    cosine = "-" if point.cosine is None else f"{point.cosine:.4f}"
    metric = [_number(point.metric.get(name)) for name in names]
    latency = _interval(point.latency)
    return [_percent(share), _percent(point.file_bytes), latency, cosine, _percent(point.top1_agreement), *metric]


def _percent(share: float | None) -> str:
    return "-" if share is None else numerals.percent(share)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _interval(latency: Interval | None) -> str:
    if latency is None:
        return "-"
    return f"{numerals.percent(latency.value)} ({100 * latency.low:.1f} to {100 * latency.high:.1f})"


def _knee(curve: Curve) -> Text:
    if curve.knee is None:
        return Text("no knee: the answers fall as evenly as what remains, or too little is known")
    target = curve.points[curve.knee].target
    return Text(f"{target} is the knee: a cut below it costs the answers more than one above it")


def _measured(curve: Curve) -> Text:
    said = "was not measured" if curve.measured is None else f"on {words.machine(curve.measured)}"
    return Text(f"latency {said}", style="dim")
