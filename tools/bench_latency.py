"""Realised speed against MACs kept: onnxprune's latency targets, other allocations and Torch-Pruning, side by side.

Usage: python tools/bench_latency.py [MODEL...] --out rows.jsonl [--targets 0.75,0.5] [--peers all|none|NAME,NAME]
       [--allocations] [--threads 1] [--seconds 60] [--timeout 1800] [--retry]

MODEL is a name of torchvision's, or timm's as `timm:NAME`, with random weights of a fixed seed; or a file, .onnx, which
Torch-Pruning is not tried on. Names need torch and torchvision, peers need torch_pruning.

For every target of latency onnxprune prunes the model; Torch-Pruning (with widths of any size, and with round_to=16)
then is to keep as many MACs, and with `--allocations` a uniform and a MAC-greedy allocation are to take as long. Each
of these is a process of its own. At the end the original and all results are timed in turns, in one loop, on one random
input. `speed/MACs` in the tables is the speed-up times the MACs kept: 1 where all that was cut is time saved.

A result is a row of JSON in the file of `--out`. A target whose rows are all there is not done again; where one is
missing, all of that target are, since only what ran in one loop is compared. What fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.calls import quiet, runner  # noqa: E402
from onnxprune.errors import OnnxPruneError  # noqa: E402
from onnxprune.feeds import random_feeds  # noqa: E402
from onnxprune.runtime import run, session  # noqa: E402
from tools import latency_ways  # noqa: E402
from tools.bench_accuracy import Bench, Failed, chosen  # noqa: E402
from tools.latency_ways import ALLOCATIONS, PEERS, WAYS, Job, Row  # noqa: E402
from tools.turns import ratios, rounds  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "vgg16_bn", "efficientnet_b0", "densenet121", "regnet_x_400mf")
ORIGINAL = "original"
ALIKE = 0.05  # so far apart two latencies may be for what they keep to be compared
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """A model on the command line."""

    text: str

    @property
    def is_file(self) -> bool:
        return self.text.endswith(".onnx")

    @property
    def label(self) -> str:
        return Path(self.text).stem if self.is_file else self.text


@dataclass(frozen=True)
class Sweep:
    """What is done with every model."""

    targets: Sequence[float]
    others: Sequence[str]
    threads: int
    seconds: float

    def about(self, source: Source) -> list[Row]:
        """The parts of the rows that are known before."""
        ways = ["onnxprune", *(way for way in self.others if not (source.is_file and way in PEERS))]
        common = {"model": source.label, "threads": self.threads}
        return [common | {"who": way, "target": target} for target in self.targets for way in ways]


def key(row: Row) -> Key:
    """What makes a row the same as another."""
    return row["model"], row["who"], row["target"], row["threads"]


def read(path: Path) -> dict[Key, Row]:
    """The rows of a file of a JSON object a line; of those that are the same the last."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return {key(row): row for row in rows}


def due(sweep: Sweep, source: Source, there: dict[Key, Row], retry: bool = False) -> Sweep:
    """The targets of which rows are missing (or failed, where those are to be tried again)."""
    found = {k for k, row in there.items() if not (retry and "error" in row)}
    missing = {about["target"] for about in sweep.about(source) if key(about) not in found}
    return replace(sweep, targets=[target for target in sweep.targets if target in missing])


def pruned(bench: Bench, source: Source, sweep: Sweep) -> list[Row]:
    """The original and what all ways make of it: rows with the `file` of each, or an "error"."""
    rows, mine, file = list[Row](), Row(), Path(source.text).absolute()
    cache = tempfile.mkdtemp(dir=bench.folder)  # its first use measures, as a user's does
    job = Job("" if source.is_file else source.text, str(file), "", 1.0, sweep.threads, cache)
    if not source.is_file:
        job = replace(job, path=str(bench.folder / "original.onnx"))
        bench.call("export", job.command("export"))
    for number, row in enumerate(sweep.about(source)):
        made = replace(job, out=str(bench.folder / f"{number}.onnx"))
        way = WAYS[row["who"]]
        mine = row if row["who"] == "onnxprune" else mine
        try:
            if way.matches not in mine:
                raise Failed("there is no result of onnxprune to match")
            done = bench.call(row["who"], replace(made, share=mine[way.matches]).command(row["who"]))
            row |= json.loads(done.said) | {"file": made.out}
        except Failed as error:
            row["error"] = str(error)[:300]
        print(line(row), flush=True)
        rows.append(row)
    first = {"model": source.label, "who": ORIGINAL, "target": 1.0, "threads": sweep.threads}
    return [first | {"kept": 1.0, "file": job.path}, *rows]


def measured(rows: Sequence[Row], threads: int, seconds: float) -> list[Row]:
    """The rows, the original's first, with what their files take: as shares of the original's time."""
    feed, calls, ready = random_feeds(session(rows[0]["file"], threads=threads))[0], [], []
    for row in rows:
        if "error" not in row:
            try:
                model = session(row["file"], threads=threads, config=quiet(threads))
                run(model, feed)
                calls.append(runner(model, feed, "cpu"))
                ready.append(row)
            except OnnxPruneError as error:
                row["error"] = str(error).replace(row["file"], "the result")[:300]
    times = rounds(calls, seconds)
    for row, each, ratio in zip(ready, times, ratios(times), strict=True):
        row |= {"ms": median(each), "rounds": len(each), "latency": ratio.value, "ci95": [ratio.low, ratio.high]}
        row["gain"] = row["kept"] / ratio.value
        if "predicted" in row:
            row["off"] = row["predicted"] / ratio.value - 1
    return [{name: value for name, value in row.items() if name != "file"} for row in rows]


def bench_model(bench: Bench, source: Source, sweep: Sweep) -> list[Row]:
    """All rows of a model."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:  # weights are big: they go before the next model
        try:
            return measured(pruned(replace(bench, folder=Path(folder)), source, sweep), sweep.threads, sweep.seconds)
        except (Failed, OnnxPruneError) as error:  # of the original
            return [about | {"error": str(error)[:300]} for about in sweep.about(source)]


def line(row: Row) -> str:
    """A way that was gone, in one line."""
    name = f"{row['model'][:28]:28} {row['who']:17} {row['target']:<5g}"
    return (
        f"{name} FAILED  {row['error']}" if "error" in row else f"{name} kept {row['kept']:.3f} {row['seconds']:7.1f} s"
    )


def table(rows: Iterable[Row]) -> Table:
    """All figures, by model and target."""
    made = Table(title="latency and MACs as shares of the original's; speed/MACs: the speed-up times the MACs kept")
    made.add_column("model")
    made.add_column("who")
    for name in ("target", "MACs", "latency (95 %)", "speed/MACs", "predicted", "importance", "prune s", "table s"):
        made.add_column(name, justify="right")
    formats = {"gain": "{:.2f}", "predicted": "{:.3f}", "importance": "{:.3f}", "seconds": "{:.1f}"}
    for row in rows:
        cells = [row["model"], row["who"], f"{row['target']:g}"]
        if "error" in row:
            made.add_row(*cells, "", "failed")
            continue
        if row["who"] == ORIGINAL:
            made.add_row(*cells, "1.000", f"{row['ms']:.2f} ms")
            continue
        low, high = row["ci95"]
        share = f"{row['latency']:.3f} ({low:.3f}-{high:.3f})"
        rest = [form.format(row[name]) if name in row else "" for name, form in formats.items()]
        seconds = f"{row['table_seconds']:.2f}" if "table_seconds" in row else ""
        made.add_row(*cells, f"{row['kept']:.3f}", share, *rest, seconds)
    return made


def summary(rows: Sequence[Row]) -> Table:
    """What the rows say of each way.

    `slower` counts results whose whole interval is above the original; `off target` is the largest distance of latency
    from the target, `off predicted` the median of predictions from latency, both relative. The importance is the median
    of its ratios to that of onnxprune's result, and how many of them there are: of latencies that are really alike.
    """
    made = Table(title="over all models and targets")
    made.add_column("who")
    columns = ("results", "failed", "speed/MACs", "least", "slower", "off target", "off predicted", "importance")
    for name in columns:
        made.add_column(name, justify="right")
    mine = {(r["model"], r["target"]): r for r in rows if r["who"] == "onnxprune" and "error" not in r}
    for who in WAYS:
        here = [row for row in rows if row["who"] == who]
        good = [row for row in here if "error" not in row]
        if not here:
            continue
        gains = [row["gain"] for row in good]
        away = [abs(row["latency"] / row["target"] - 1) for row in good if who == "onnxprune"]
        wrong = [abs(row["off"]) for row in good if "off" in row]
        pairs = [(row, mine.get((row["model"], row["target"]))) for row in good if "importance" in row]
        shares = [
            row["importance"] / other["importance"]
            for row, other in pairs
            if other is not None and abs(row["latency"] / other["latency"] - 1) <= ALIKE
        ]
        made.add_row(
            who,
            str(len(good)),
            str(len(here) - len(good)),
            f"{median(gains):.2f}" if gains else "",
            f"{min(gains):.2f}" if gains else "",
            str(sum(row["ci95"][0] > 1 for row in good)),
            f"{max(away):.1%}" if away else "",
            f"{median(wrong):.1%}" if wrong else "",
            f"{median(shares):.3f} ({len(shares)})" if shares else "",
        )
    return made


def ready(sources: Sequence[Source], peers: Sequence[str], bench: Bench) -> None:
    """Make sure that all models are there.

    Raises:
        SystemExit: one is not, or what it needs is not, in one line.
    """
    if lost := [source.text for source in sources if source.is_file and not Path(source.text).is_file()]:
        raise SystemExit(f"{lost[0]}: no such file")
    names = [source.text for source in sources if not source.is_file]
    try:
        if names:
            words = [json.dumps(names), json.dumps(list(peers))]
            bench.call("models", [sys.executable, latency_ways.__file__, "known", *words])
    except Failed as error:
        raise SystemExit(str(error)) from None


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", default=MODELS, help="torchvision names, timm:NAME, or .onnx files")
    parser.add_argument("--out", type=Path, required=True, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("--targets", default="0.75,0.5", help="of the latency that may remain")
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(PEERS)}")
    parser.add_argument("--allocations", action="store_true", help=f"also {' and '.join(ALLOCATIONS)}")
    parser.add_argument("--threads", type=int, default=1, help="inside an operator")
    parser.add_argument("--seconds", type=float, default=60, help="to time the results of a model, at most")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one way on one model")
    parser.add_argument("--retry", action="store_true", help="also do again what failed")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    peers = [] if args.peers == "none" else chosen(args.peers, PEERS)
    others = [*(ALLOCATIONS if args.allocations else ()), *peers]
    sweep = Sweep([float(target) for target in args.targets.split(",")], others, args.threads, args.seconds)
    sources, there = [Source(text) for text in args.models], read(args.out)
    todo = [(source, left) for source in sources if (left := due(sweep, source, there, args.retry)).targets]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.timeout)
        ready([source for source, _ in todo], peers, bench)
        for source, left in todo:
            rows = bench_model(bench, source, left)
            there |= {key(row): row for row in rows}
            with args.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    labels = {source.label for source in sources}
    found = [row for row in there.values() if row["model"] in labels and row["threads"] == args.threads]
    found.sort(key=lambda row: (row["model"], -row["target"], [ORIGINAL, *WAYS].index(row["who"])))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(found))
    console.print(summary(found))
    failed = [row for row in found if "error" in row]
    for row in failed:
        print(line(row))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
