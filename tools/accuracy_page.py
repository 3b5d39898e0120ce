"""A page and its plots from the rows of tools/bench_accuracy.py, compare_accuracy.py and ablate_recovery.py.

Usage: python tools/accuracy_page.py rows.jsonl... docs/accuracy.md

The plots go to a folder beside the page, with its name. The same rows make the same files. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.ablations import ABLATIONS, section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Key = tuple[Any, ...]
ALIKE = ("--scope", "local", "--criterion", "obs")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
MARKERS = "os^vDP*X<>hd"
# The same rows, the same bytes; letters stay text.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "onnxprune",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Variant:
    """A way to prune: options of `onnxprune prune`, and how many of the samples it gets (None: all)."""

    about: str
    options: tuple[str, ...] = ()
    samples: int | None = None


VARIANTS = {
    "default": Variant("widths by damage, full recovery"),
    "channel": Variant("widths by damage, recovery by channel maps and biases", ("--recover", "channel")),
    "bias": Variant("widths by damage, recovery of biases alone", ("--recover", "bias")),
    "none": Variant("widths by damage, no recovery", ("--recover", "none")),
    "global": Variant("all units in one ranking, full recovery", ("--scope", "global", "--criterion", "obs")),
    "uniform": Variant("all groups cut alike, full recovery", ALIKE),
    "uniform-none": Variant("all groups cut alike, no recovery", (*ALIKE, "--recover", "none")),
    "magnitude": Variant(
        "all groups cut alike by the size of weights, no recovery",
        ("--scope", "local", "--criterion", "l2", "--recover", "none"),
    ),
    "samples-16": Variant("as default, on 16 of the samples", samples=16),
    "samples-64": Variant("as default, on 64 of the samples", samples=64),
    "samples-256": Variant("as default, on 256 of the samples", samples=256),
    "distance-values": Variant("as default, answers compared as plain values", ("--distance", "values")),
    "align-1": Variant("as default, widths of any size", ("--align", "1")),
}
CRITERIA = {"l1": "L1 norms", "l2": "L2 norms", "fpgm": "FPGM", "lamp": "LAMP, one ranking", "random": "chance"}
PEERS = {
    f"torch-pruning-{name}": Variant(f"Torch-Pruning by {what}, no repair (`tools/compare_accuracy.py`)")
    for name, what in CRITERIA.items()
}
KNOWN = VARIANTS | PEERS


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of files of a JSON object a line; of those for the same run the last."""
    rows = (json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return list({key(row): row for row in rows}.values())


def key(row: Row) -> Key:
    """What makes a run the same as another."""
    return row["model"], row["variant"], row["seed"], row["share"], tuple(row["options"])


@dataclass(frozen=True)
class Cell:
    """The runs of one model, variant and share, a seed each."""

    rows: tuple[Row, ...]
    seeds: int

    @property
    def values(self) -> list[float]:
        return [row["value"] for row in self.rows]

    @property
    def spread(self) -> float:
        """The sample standard deviation."""
        return stdev(self.values) if len(self.rows) > 1 else 0.0

    @property
    def text(self) -> str:
        """`0.912 ± 0.003`, and of how many seeds if some are missing."""
        if not self.rows:
            return ""
        spread = f" ± {self.spread:.3f}" if len(self.rows) > 1 else ""
        return f"{mean(self.values):.3f}{spread}" + (f" (n={len(self.rows)})" if len(self.rows) < self.seeds else "")


@dataclass(frozen=True)
class Sweep:
    """The rows of one model."""

    name: str
    rows: Sequence[Row]

    @property
    def good(self) -> list[Row]:
        return [row for row in self.rows if "error" not in row]

    @property
    def dense(self) -> float | None:
        return next((row["dense"] for row in self.rows if "dense" in row), None)

    @property
    def measure(self) -> str:
        return str(next((row["measure"] for row in self.rows if row.get("measure")), "value"))

    @property
    def slug(self) -> str:
        """A name for a file."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)

    def cell(self, variant: str, share: float) -> Cell:
        rows = [row for row in self.good if (row["variant"], row["share"]) == (variant, share)]
        alike = [row for row in self.rows if (row["variant"] in PEERS) == (variant in PEERS)]  # those have their own
        return Cell(tuple(sorted(rows, key=lambda row: row["seed"])), len({row["seed"] for row in alike}))


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Those of the sweep, and those of tools/ablate_recovery.py."""
    swept, ablated = ([row for row in rows if (row["variant"] in ABLATIONS) == which] for which in (False, True))
    return swept, ablated


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Models in the order of their names."""
    names = sorted({row["model"] for row in rows})
    return [Sweep(name, [row for row in rows if row["model"] == name]) for name in names]


def variants(rows: Iterable[Row]) -> list[str]:
    """Those that occur, in the order of the table; others after them."""
    found = {row["variant"] for row in rows}
    return [name for name in KNOWN if name in found] + sorted(found - set(KNOWN))


def shares(rows: Iterable[Row]) -> list[float]:
    """The largest first."""
    return sorted({row["share"] for row in rows}, reverse=True)


def page(rows: Sequence[Row], plots: str) -> str:
    """The page as Markdown; `plots` is the folder of the plots as the page sees it."""
    swept, ablated = apart(rows)
    models = (_model(sweep, plots) for sweep in sweeps(swept))
    parts = [_head(swept), _ways(swept), *models, section(sweeps(ablated)), _failures(rows)]
    return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"


def _head(rows: Sequence[Row]) -> Iterator[str]:
    seeds = ",".join(str(seed) for seed in sorted({row["seed"] for row in rows if row["variant"] not in PEERS}))
    processors = " or ".join(str(number) for number in sorted({row["processors"] for row in rows}))
    yield from (
        "# Accuracy against MACs kept",
        "",
        "Made by `tools/bench_accuracy.py` and `tools/accuracy_page.py`; do not edit.",
        "",
        "```sh",
        f"python tools/bench_accuracy.py MODELS.toml --shares {','.join(map(str, shares(rows)))} --seeds {seeds} \\",
        f"    --variants {','.join(name for name in variants(rows) if name not in PEERS)} --out rows.jsonl",
        "python tools/accuracy_page.py rows.jsonl docs/accuracy.md",
        "```",
        "",
        "`MODELS.toml` says where the models are, how calibration inputs are made, and how a model is evaluated; the",
        "head of `tools/bench_accuracy.py` shows how it is written. Here they are `tools/accuracy/public.toml` and, of",
        "models that no default was chosen with, `unseen.toml`; `tools/accuracy/unseen.py` fetches or makes those. The",
        "rows are kept in `tools/accuracy/rows.jsonl`. Each run is one `onnxprune prune` with `--target macs=SHARE`. A",
        "seed stands for other calibration inputs and for another `--seed`; where the inputs are a fixed file, for the",
        "latter alone. No labels are used for pruning, and nothing is trained.",
        "",
        f"Models: {len(sweeps(rows))}. Runs: {len(rows)}, of which {sum('error' in row for row in rows)} failed.",
        "",
        "- *columns*: the share of the MACs that may remain",
        "- *cells*: the mean over the seeds ± their sample standard deviation; `(n=2)`: only so many seeds have a",
        "  value; blank: none has",
        "- *dense*: the model as it was, evaluated in the same way",
        "- *kept*: the share of the MACs that did remain, mean over the seeds. Widths are multiples of a block, so",
        "  that it may be less than was allowed; the plots show values over this share.",
        f"- *seconds*: of the whole command, median over all runs ({processors} processors)",
        "- *MB*: the most memory that any of the runs held",
        "",
    )


def _ways(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("## Variants", "", "| variant | what it is | options |", "|---|---|---|")
    for name in variants(rows):
        way = KNOWN.get(name, Variant("is no more in the table of `tools/accuracy_page.py`"))
        options = f"`{' '.join(way.options)}`" if way.options else ""
        yield f"| {name} | {way.about} | {options} |"
    yield ""


def _model(sweep: Sweep, plots: str) -> Iterator[str]:
    columns = shares(sweep.rows)
    dense = "" if sweep.dense is None else f" Dense: {sweep.dense:.3f}."
    yield from (f"## {sweep.name}", "", f"{_cell(sweep.measure)}.{dense}", "")
    if sweep.good:
        yield from (f"![{_cell(sweep.measure)} of {sweep.name} over MACs kept]({plots}/{sweep.slug}.svg)", "")
    yield f"| variant | {' | '.join(f'{share:g}' for share in columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for name in variants(sweep.rows):
        yield f"| {name} | {' | '.join(sweep.cell(name, share).text for share in columns)} |"
    yield from ("", f"| variant | seconds | MB | {' | '.join(f'kept at {share:g}' for share in columns)} |")
    yield f"|---|--:|--:|{'--:|' * len(columns)}"
    for name in variants(sweep.rows):
        done = [row for row in sweep.good if row["variant"] == name]
        cost = (
            (f"{median(r['seconds'] for r in done):.1f}", f"{max(r['megabytes'] for r in done):.0f}") if done else " "
        )
        cells = [sweep.cell(name, share).rows for share in columns]
        kept = [f"{mean(row['kept'] for row in rows):.3f}" if rows else "" for rows in cells]
        yield f"| {name} | {' | '.join([*cost, *kept])} |"
    yield ""


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    """Runs without a value; those that failed alike share a line."""
    failed = Counter((r["model"], r["variant"], r["share"], _cell(r["error"])) for r in rows if "error" in r)
    if failed:
        yield from ("## No value", "", "| model | variant | share | seeds | what happened |", "|---|---|--:|--:|---|")
        for (model, variant, share, why), seeds in failed.items():
            yield f"| {model} | {variant} | {share:g} | {seeds} | {why} |"


def _cell(text: str) -> str:
    """Text for a table, without the folders of files: they are of one machine alone."""
    text = re.sub(r"(?<![\w.:/])(?:/[^\s/:'\"|]+)+/(?=[^\s/])", "", text)
    return " ".join(text.replace("|", "\\|").split())


def plot(sweep: Sweep, path: Path) -> None:
    """Value over MACs kept, a line for each variant, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's style is
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="MACs kept", ylabel=sweep.measure, title=sweep.name)
        for name in variants(sweep.good):
            _line(axes, name, [cell for share in shares(sweep.rows) if (cell := sweep.cell(name, share)).rows])
        if sweep.dense is not None:
            axes.axhline(sweep.dense, color="black", linestyle="--", linewidth=1, label="dense")
        axes.set_xlim(right=1)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _line(axes: Axes, name: str, cells: Sequence[Cell]) -> None:
    kept, values = ([mean(row[of] for row in cell.rows) for cell in cells] for of in ("kept", "value"))
    place = [*KNOWN, name].index(name)  # the same colour on every plot
    look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
    look["linestyle"] = "-" if place < len(COLOURS) else ":"
    spreads = [cell.spread for cell in cells]
    axes.errorbar(kept, values, spreads, label=name, capsize=3, linewidth=1.5, markersize=4, **look)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("rows", nargs="+", type=Path, help="files that those tools wrote")
    parser.add_argument("page", type=Path, help="the page, .md")
    args = parser.parse_args()
    rows = sorted(read(args.rows), key=lambda row: (row["model"], row["share"], row["seed"]))
    plots = args.page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    for sweep in sweeps(apart(rows)[0]):
        if sweep.good:
            plot(sweep, plots / f"{sweep.slug}.svg")
    args.page.write_text(page(rows, plots.name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
