"""Latency tables in words: what was predicted, where a model's time goes, what is kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from onnxprune import numerals, words
from onnxprune.latency.table import parsed
from onnxprune.words import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

SOME = 12  # operators that are shown
NAME, SHORT = 44, 36  # characters of a name, beside three and four columns


def predicted(record: Record) -> list[str]:
    """What a table said of the result, beside what the clock says, and what such a table is worth."""
    model, bench = record.get("latency_model"), record.get("latency_ms")
    if model is None:
        return []
    ratio = bench["ratio"]["value"] if bench and bench.get("ratio") else None
    clock = "" if ratio is None else f", measured {ratio:.3f}"
    return [f"{model['predicted']:.3f} of the original's latency{clock}", worth(model)]


def worth(model: Mapping[str, Any]) -> str:
    """How far the predictions of a table are off."""
    error, fitted = model["error"], numerals.plural(model["networks"], "network")
    off = f"{numerals.percent(error['median'])} in the median, {numerals.percent(error['most'])} at most"
    return f"by a table of {fitted}; on {error['networks']} others it was off by {off}"


def timetable(record: Record, everything: bool = False) -> list[RenderableType]:
    """Where a model's time goes, by its table."""
    model, show = record["latency_model"], numerals.milliseconds
    operators = record["operators"]
    shown = operators if everything else operators[:SOME]
    grid = _grid("", "now", "share", "half as wide")
    for entry in shown:
        share = numerals.percent(entry["ms"] / model["before_ms"])
        grid.add_row(numerals.tail(entry["node"], NAME), show(entry["ms"]), share, show(entry["half_ms"]))
    title = Text().append(record["model"], "bold").append(f"  {show(model['before_ms'])}, {words.machine(record)}")
    kinds = "operator by operator" if model["by"] == "node" else "by kinds of operators, from the whole"
    block = (
        f"channels count in blocks of {model['block']}" if model["block"] > 1 else "any number of channels is as good"
    )
    more = [f"{len(operators) - len(shown)} more: --all shows them"] if len(operators) > len(shown) else []
    lines = [*more, "", block, f"measured {kinds}, in {model['seconds']:.1f} s", worth(model)]
    return [title, "", grid, *(Text(line, style="dim") for line in lines)]


def shelf(entries: Sequence[Record]) -> list[RenderableType]:
    """All that was measured before and is kept."""
    tables = [found for entry in entries if (found := parsed(entry)) is not None]
    if not tables:
        return [Text("no latency is kept on disk; see `onnxprune latency MODEL`")]
    grid = _grid("", "provider", "threads", "latency", "error")
    for kept in tables:
        sizes = "x".join(map(str, next(iter(kept.conditions["inputs"].values()), [""])[1:]))
        where = (str(kept.conditions["provider"]), str(kept.conditions["threads"] or "default"))
        name = numerals.tail(f"{kept.model} {sizes}", SHORT)
        grid.add_row(name, *where, numerals.milliseconds(kept.before), numerals.percent(kept.error))
    return [grid]


def _grid(*headers: str) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for index, header in enumerate(headers):
        grid.add_column(header, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return grid
