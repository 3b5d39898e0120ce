"""A page from the rows of tools/coverage.py: what was run, a table for each family, what locks most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePath
from statistics import median
from typing import Any

Row = dict[str, Any]
# Outputs for two inputs must differ by this many times the parity, or parity says little about a model.
ALIVE = 100
LOCKS = 30  # reasons in the histogram
FAMILIES = ("Convolutions", "Convolutions and attention", "Attention", "Recurrent", "Dense layers", "Other")


def state(row: Row) -> str:
    """What a row says about exactness, in a word."""
    if "error" in row:
        return "failed"
    if "unproved" in row:
        return "unproved"
    if not row["exact"]:
        # noisy: so is the masked original against itself, summed in another order
        return "noisy" if row["parity"] and row["noise"] and row["parity"] < 10 * row["noise"] else "WRONG"
    still = row["alive"] is not None and row["alive"] <= ALIVE * (row["parity"] or 0.0)
    return "hollow" if row["vacuous"] or still else "exact"


def states(rows: Iterable[Row]) -> Counter[str]:
    """How many rows say what."""
    return Counter(map(state, rows))


def histogram(rows: Iterable[Row]) -> list[tuple[float, int, str, str]]:
    """Mean share of the parameters behind a lock, number of models, operator and reason; the largest first."""
    good = [row for row in rows if "error" not in row]
    weight, models = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in good:
        for op, why, share in row["locks"]:
            weight[op, why] += share
            models[op, why] += 1
    return [(total / len(good), models[key], key[0] or "model", key[1]) for key, total in weight.most_common(LOCKS)]


def page(rows: Sequence[Row]) -> str:
    """The page as Markdown; file names only, no paths."""
    good = [row for row in rows if "error" not in row]
    return "\n".join([*_head(rows, good), *_tables(rows), *_locks(good), *_failures(rows)]) + "\n"


def _head(rows: Sequence[Row], good: Sequence[Row]) -> Iterator[str]:
    first = rows[0]
    options = f"--target {first['target']} --scope {first['scope']} --align {first['align']}"
    counts = ", ".join(f"{number} {name}" for name, number in states(rows).most_common())
    yield from (
        "# Coverage",
        "",
        "Made by `tools/coverage.py`; do not edit.",
        "",
        "```sh",
        f"python tools/coverage.py MODELS {options} --resume results.jsonl --page docs/coverage.md",
        "```",
        "",
        f"Every model is pruned to `{first['target']}`, checked by ONNX and by ONNX Runtime, and compared with the",
        "original whose removed weights are zero, on two random inputs, with graph optimisations off.",
        "",
        f"{len(rows)} models: {counts}.",
        "",
        "- *exact*: the largest difference is within the tolerance of the precision (1e-4 of the largest output in",
        "  float32)",
        "- *noisy*: it is not, but the masked original differs as much from itself when its sums are ordered otherwise",
        "- *hollow*: it is, but the outputs hardly depend on the inputs, so that it says little",
        "- *unproved*: it is pruned, but does not run on random inputs",
        "- *params* and *MACs*: what is kept; *can be cut*: the share of the parameters of which an axis can be cut;",
        "  *seconds*: load, analysis, scores and cut",
        "",
    )
    if good:
        kept, macs = (median(row[key] for row in good) for key in ("params_kept", "macs_kept"))
        yield f"Median over all models: {100 * kept:.1f} % of the parameters kept, {100 * macs:.1f} % of the MACs."
        yield ""


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    names = _names(rows)
    order = {name: number for number, name in enumerate(FAMILIES)}

    def family(row: Row) -> int:
        return order.get(row.get("family", ""), len(order) - 1)

    def line(row: Row) -> str:
        name, exporter = names[row["model"]], row.get("exporter", "")
        if "error" in row:
            return f"| {name} | {exporter} | | | | | | failed |"
        figures = f"{row['params_kept']:.3f} | {row['macs_kept']:.3f} | {row['cuttable']:.3f} | {row['seconds']:.2f}"
        return f"| {name} | {exporter} | {row['nodes']} | {figures} | {state(row)} |"

    ordered = sorted(rows, key=lambda row: (family(row), names[row["model"]].lower()))
    for number, members in groupby(ordered, key=family):
        yield from (f"## {FAMILIES[number]}", "")
        yield "| model | exporter | nodes | params | MACs | can be cut | seconds | result |"
        yield "|---|---|--:|--:|--:|--:|--:|---|"
        yield from map(line, members)
        yield ""


def _locks(good: Sequence[Row]) -> Iterator[str]:
    yield from (
        "## What locks",
        "",
        "A tensor that is locked along one axis may be cut along another: the shares do not add up to one, and they",
        "are larger than what cannot be cut at all.",
        "",
        "| share of the parameters, mean | models | operator | reason |",
        "|--:|--:|---|---|",
    )
    for share, models, op, why in histogram(good):
        yield f"| {100 * share:.2f} % | {models} | {op} | {_cell(why)} |"
    yield ""


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in rows if state(row) in ("failed", "unproved", "WRONG")]
    if failed:
        names = _names(rows)
        yield from ("## Not proved", "", "| model | what happened |", "|---|---|")
        for row in failed:
            said = row.get("error") or row.get("unproved") or f"differs by {row['parity'] or 'more than can be told'}"
            yield f"| {names[row['model']]} | {_cell(said.replace(row['model'], names[row['model']]))} |"


def _names(rows: Iterable[Row]) -> dict[str, str]:
    """Path -> file name without `.onnx`; with its folder where two are called alike."""
    paths = [PurePath(row["model"]) for row in rows]
    twice = Counter(path.name for path in paths)
    return {
        str(path): (f"{path.parent.name}/{path.name}" if twice[path.name] > 1 else path.name).removesuffix(".onnx")
        for path in paths
    }


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
