"""Every criterion at the same target: the accuracy that is left, without a repair and with one.

Usage: python tools/compare_criteria.py --out rows.jsonl [--page docs/criteria.md] [--file MODELS.toml]
       [--models NAME,NAME] [--criteria all] [--repairs none,full] [--share 0.75] [--seed 0] [--timeout 600] [--retry]

The default model is always there; MODELS.toml is that of tools/bench_accuracy.py. All groups are cut alike
(`--scope local`) and to any width (`--align 1`), so that the criterion alone decides. The table is of all rows in the
file of `--out` and replaces the one in the page, between the two lines that say so; a dash is a criterion that does not
apply to a model, and a blank what was not run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.criteria.base import CRITERIA  # noqa: E402
from onnxprune.default import calibration, model_path, sample  # noqa: E402
from tools.accuracy_page import Row, read  # noqa: E402
from tools.bench_accuracy import Bench, Model, Run, chosen, models, sweep  # noqa: E402

REPAIRS = ("none", "full")
SUM = "0.7*wanda+0.3*l1"  # an example of a weighted sum
BEGIN, END = "<!-- tools/compare_criteria.py writes what follows -->", "<!-- to here -->"


@dataclass(frozen=True)
class Choice(Run):
    """One row to be."""

    criterion: str = "l2"
    repair: str = "none"

    @property
    def options(self) -> list[str]:
        way = ["--scope", "local", "--align", "1", "--criterion", self.criterion, "--recover", self.repair]
        return [*way, *self.model.options, "--seed", str(self.seed)]

    @property
    def about(self) -> Row:
        return super().about | {"variant": f"{self.criterion} {self.repair}"}


def accuracy(path: str) -> float:
    """The share of the labelled sample that a model of the default kind answers rightly."""
    from onnxprune.runtime import run, session

    images, labels = sample()
    return float((run(session(path, threads=1), {"image": images})["logits"].argmax(axis=1) == labels).mean())


def default(folder: Path) -> Model:
    """The shipped model, and how it is evaluated."""
    import numpy as np

    np.savez(folder / "default.npz", image=calibration())
    measure = "accuracy on 1,000 pictures of clothes"
    evaluate = f"{sys.executable} {__file__} --accuracy {{model}}"
    return Model("default", str(model_path()), evaluate, folder, data="default.npz", measure=measure)


def table(rows: Sequence[Row], names: Sequence[str], criteria: Sequence[str]) -> list[str]:
    """The lines of a page: criteria by models and repairs."""
    found = {(row["model"], row["variant"]): row for row in rows}
    dense = {row["model"]: row["dense"] for row in rows if "dense" in row}
    ways = list(product(names, REPAIRS))
    lines = ["| criterion | " + " | ".join(f"{name}, {repair}" for name, repair in ways) + " |"]
    lines.append("|---|" + "--:|" * len(ways))
    for criterion in criteria:
        cells = (_cell(found.get((name, f"{criterion} {repair}"))) for name, repair in ways)
        lines.append(f"| `{criterion}` | " + " | ".join(cells) + " |")
    return [*lines, "| *not pruned* | " + " | ".join(f"{dense[n]:.3f}" if n in dense else "" for n, _ in ways) + " |"]


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row['value']:.3f}" if "value" in row else "-"


def placed(page: str, lines: Sequence[str]) -> str:
    """The page with these lines where the others were."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *lines, "", END + after])


def main() -> int:
    if sys.argv[1:2] == ["--accuracy"]:
        print(accuracy(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("--page", type=Path, help="where the table goes, besides the screen")
    parser.add_argument("--file", type=Path, help="more models, .toml or .json")
    parser.add_argument("--models", default="all", help="all, or some of the names in the file")
    parser.add_argument("--criteria", default="all", help="all, or some")
    parser.add_argument("--repairs", default="all", help=", ".join(REPAIRS))
    parser.add_argument("--share", type=float, default=0.75, help="of the MACs that may remain")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one command")
    parser.add_argument("--retry", action="store_true", help="also do again what failed")
    args = parser.parse_args()
    criteria = [*CRITERIA.names(), SUM]
    with tempfile.TemporaryDirectory() as folder:
        there = {"default": default(Path(folder))}
        if args.file is not None:
            more = models(args.file)
            there |= {name: more[name] for name in chosen(args.models, more)}
        picked = chosen(args.repairs, REPAIRS), there.values(), chosen(args.criteria, criteria)
        # Repair after repair: where it is stopped, every model has something.
        runs = [
            Choice(model, "uniform", args.seed, args.share, criterion, repair)
            for repair, model, criterion in product(*picked)
        ]
        sweep(Bench(Path(folder), args.timeout), runs, args.out, args.retry)
    lines = table([row for row in read([args.out]) if row["share"] == args.share], list(there), criteria)
    print("\n".join(lines))
    if args.page is not None:
        args.page.write_text(placed(args.page.read_text(encoding="utf-8"), lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
