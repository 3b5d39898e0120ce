"""A record as a table for the screen, as JSON and as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxprune import clocked, explained, locked, numerals, words
from onnxprune.words import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

FEW = 5  # groups and locks that the table of a run shows
SOME = 12  # and that an inspection shows
NAME = 44  # characters of a tensor's name
WIDTH = 56  # of a lock
LABEL = 11
# What a record starts with; the long lists come last.
FIRST = (
    "version",
    "onnxprune",
    "model",
    "out",
    "options",
    "recover",
    "accuracy",
    "metric",
    "params",
    "macs",
    "file_bytes",
)
LAST = ("seconds", "warnings", "groups", "locked")


def to_json(record: Record) -> str:
    """The record as JSON text: figures first, long lists last; what is not a finite number is null."""
    from onnxprune.runtime import plain

    middle = [key for key in record if key not in FIRST and key not in LAST]
    keys = [key for key in (*FIRST, *middle, *LAST) if key in record]
    return json.dumps(plain({key: record[key] for key in keys}), indent=2, allow_nan=False) + "\n"


def to_html(record: Record) -> str:
    """The record as one HTML file that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("onnxprune", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template("report.html").render(
        record=record, words=words, numerals=numerals, locked=locked, clocked=clocked
    )


def table(record: Record) -> list[RenderableType]:
    """The table of a run: what became smaller, the proof, what was cut, what is locked and why."""
    parts: list[RenderableType] = [_title(record), "", _comparison(record), ""]
    facts: list[tuple[str, RenderableType | None]] = [
        ("proof", _verdict(words.proof(record))),
        ("fidelity", _lines(words.fidelity(record), words.inputs(record))),
        ("measured", _lines(*words.conditions(record["latency_ms"])) if "latency_ms" in record else None),
        ("predicted", _lines(*clocked.predicted(record))),
        ("recovery", _lines(words.recovery(record))),
        *((name, Text(said)) for name, said in words.passes(record)),
        ("search", _lines(*words.searched(record))),
        ("cut", _lines(words.cut(record))),
    ]
    label = max([LABEL, *(len(name) for name, what in facts if what is not None)])
    parts.append(_facts(facts, label))
    cut = words.most_cut(record)[:FEW]
    if cut:
        parts.append(_indented(_groups(cut, cut=True), label))
    if locks := locked.locks(record):
        shown = _indented(_locks(locks[:FEW], len(locks) - FEW), label)
        parts += [_facts([("locked", Text(_locked(record)))], label), shown]
    times = Text(words.times(record), style="dim")
    return [*parts, "", _facts([("seconds", times)], label), *_warnings(record, label)]


def inspection(record: Record, everything: bool = False) -> list[RenderableType]:
    """What `inspect` shows."""
    cuttable, opened = record["cuttable"], record.get("opened", {})
    title = Text().append(record["model"], "bold")
    title.append(f"  {numerals.count(record['params'])} parameters, {numerals.count(record['macs']['before'])} MACs")
    gains = {option: more for option, more in opened.items() if _shares(more) != _shares(cuttable)}
    shares = [_shares(cuttable), *(f"{_shares(more)} with {option}" for option, more in gains.items())]
    groups, locks = [g for g in words.largest(record) if g["units"]["before"] > 1], locked.locks(record)
    units = numerals.plural(sum(g["units"]["before"] for g in groups), "unit")
    shown = len(groups) if everything else SOME
    parts: list[RenderableType] = [
        title,
        "",
        _facts([("can be cut", _lines(*shares)), ("groups", Text(f"{len(groups)}, of {units}"))]),
        *([_indented(_groups(groups[:shown], False, record["macs"]["before"], everything))] if groups else []),
        *_more(len(groups) - shown),
        "",
    ]
    if locks:
        shown = len(locks) if everything else SOME
        parts += [
            _facts([("locked", Text(_locked(record)))]),
            _indented(_locks(locks[:shown], len(locks) - shown, everything)),
        ]
    return [*parts, *_warnings(record)]


def explanation(record: Record, everything: bool = False) -> list[RenderableType]:
    """What `inspect --explain` shows."""
    parts: list[RenderableType] = []
    for value in record["explain"]:
        parts += [
            *([""] if parts else []),
            Text().append(value["value"], "bold").append(f"  {explained.title(value)}"),
            "",
        ]
        parts.append(_facts((line.label, Text(line.text)) for line in explained.lines(value, everything)))
    return parts


def comparison(bench: Record) -> list[RenderableType]:
    """What `bench` shows: a model's latency, or two models' and their ratio."""
    grid = _grid("", "median", "95 % interval", "quartiles")
    for side in ("a", "b"):
        if found := bench[side]:
            show = numerals.milliseconds
            pairs = [" to ".join(map(show, found[key])) for key in ("median_ci95", "spread") if None not in found[key]]
            grid.add_row(numerals.tail(found["model"], NAME - 14), show(found["median"]), *pairs)
    facts: list[tuple[str, RenderableType | None]] = [("on", _lines(*words.conditions(bench)))]
    fed = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in bench["inputs"].items())
    facts.append(("inputs", _lines(fed, *bench["assumed"])))
    if bench["speedup"]:
        facts.insert(0, ("result", _verdict(words.speed(bench["speedup"]))))
    return [grid, "", _facts(facts)]


def names(entries: Iterable[tuple[str, str]]) -> Table:
    """What `list` shows: names and a line on each."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in entries:
        grid.add_row(name, text)
    return grid


def _title(record: Record) -> Text:
    title = Text().append(record["model"], "bold")
    if record.get("out"):
        title.append(" -> ", "dim").append(record["out"], "bold")
    said = words.chosen(record)
    return title.append("\n" + said, "dim") if said else title


def _comparison(record: Record) -> Table:
    grid = _grid("", "before", "after", "")
    grid.columns[0].min_width, grid.columns[0].justify = LABEL, "left"
    grid.columns[3].justify = "left"
    for row in words.rows(record):
        grid.add_row(Text(row.label, style="bold"), row.before, row.after, _verdict(row.note))
    return grid


def _locked(record: Record) -> str:
    names = len({lock["value"] for lock in record["locked"]})
    return f"{numerals.plural(names, 'parameter tensor')} along at least one axis; by parameters:"


def _groups(groups: Iterable[Mapping[str, Any]], cut: bool, total: float = 0.0, full: bool = False) -> Table:
    grid = _grid("", *(("",) if cut else ("units", "MACs", "")))
    for group in groups:
        name, units = words.title(group), group["units"]
        more = len(group["tensors"]) - 1
        cells = [f"{units['before']} -> {units['after']}"] if cut else [str(units["before"])]
        if not cut:
            cells += [numerals.count(group["macs"]), numerals.percent(group["macs"] / total) if total else ""]
            name = name if full or len(name) <= NAME - 6 else numerals.tail(name, NAME - 6)
            name += f" +{more}" if more > 0 else ""
        grid.add_row(name if full else numerals.tail(name, NAME), *cells)
    return grid


def _locks(locks: Iterable[locked.LockSum], more: int, full: bool = False) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for lock in locks:
        note = "at " + (", ".join(lock.nodes) if full else numerals.tail(lock.nodes[0], NAME))
        note += f" and {numerals.plural(len(lock.nodes) - 1, 'more node')}" if len(lock.nodes) > 1 and not full else ""
        note += f"; {lock.hint}" if lock.hint else ""
        apart = "  " if len(lock.what) + len(note) < WIDTH else "\n"
        grid.add_row(numerals.count(lock.params), Text(lock.what).append(apart + note, "dim"))
    if more > 0:
        grid.add_row("", f"... and {more} more")
    return grid


def _shares(found: Mapping[str, float]) -> str:
    return f"{numerals.percent(found['params'])} of the parameters, {numerals.percent(found['macs'])} of the MACs"


def _grid(*headers: str) -> Table:
    """Left-aligned names, right-aligned figures."""
    head = any(headers)
    grid = Table(box=None, padding=(0, 2, 0, 0), show_header=head, header_style="dim", pad_edge=False)
    for index, header in enumerate(headers):
        grid.add_column(header, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return grid


def _facts(facts: Iterable[tuple[str, RenderableType | None]], label: int = LABEL) -> Table:
    """Labels in a column of their own; what there is nothing to say about is left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=label, no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, what in facts:
        if what is not None:
            grid.add_row(name, what)
    return grid


def _indented(what: RenderableType, label: int = LABEL) -> Padding:
    return Padding(what, (0, 0, 0, label + 2))


def _more(number: int) -> list[RenderableType]:
    return [_indented(Text(f"... and {number} more (--all)"))] if number > 0 else []


def _lines(*lines: str | None) -> Text | None:
    said = [line for line in lines if line]
    return Text("\n".join(said)) if said else None


def _verdict(verdict: words.Verdict | None) -> Text | None:
    styles = {True: "green", False: "yellow", None: ""}
    return None if verdict is None else Text(verdict.text, style=styles[verdict.good])


def _warnings(record: Record, label: int = LABEL) -> list[RenderableType]:
    said = words.warnings(record)
    notes = (("note" if index == 0 else "", Text(line, style="yellow")) for index, line in enumerate(said))
    return [_facts([note], label) for note in notes]
