"""The pruning zoo: every kind of pruning, as recipes, on a few models; what each costs and brings, as a page.

Usage: python tools/zoo.py MODELS.toml rows.jsonl docs/zoo.md [--models NAME,NAME] [--timeout 3600]

MODELS.toml is that of tools/bench_accuracy.py. The recipes are in tools/zoo.toml, the words of the page in
tools/zoo.md.j2. Rows that are in the file are not measured again. Latencies are compared in the run that makes the
model, so run this alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.numerals import count, milliseconds, percent, size  # noqa: E402
from tools.bench_accuracy import Bench, Failed, Model, Run, chosen, evaluated, inputs, models  # noqa: E402

RUN = (sys.executable, "-m", "onnxprune", "run")
RECIPES = ROOT / "tools" / "zoo.toml"
CHUNK = 1 << 20
SEED = 0
SIZES = ("macs", "params", "file_bytes")

Row = dict[str, Any]


class Recipe(NamedTuple):
    """A row of the table: what is pruned, in what grain, with the passes of a recipe; `data`: it sees inputs."""

    title: str
    kind: str
    recipe: str
    data: bool = True


def recipes() -> dict[str, Recipe]:
    """The recipes by their titles, in the order of the table."""
    found = tomllib.loads(RECIPES.read_text(encoding="utf-8"))["row"]
    return {entry["title"]: Recipe(**entry) for entry in found}


def zipped(path: Path) -> int:
    """Bytes of a file after DEFLATE, as in a .zip."""
    packer, total = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def dense(bench: Bench, model: Model) -> Row:
    """What the model is before."""
    path = model.place(model.path)
    return {"value": evaluated(bench, model, path), "zipped": zipped(path)}


def measured(bench: Bench, model: Model, recipe: Recipe) -> Row:
    """A recipe on a model; what went wrong is under "error"."""
    row: Row = {"model": model.name, "title": recipe.title, "measure": model.measure}
    out, record, file = (bench.folder / name for name in ("made.onnx", "record.json", "recipe.toml"))
    file.write_text(recipe.recipe, encoding="utf-8")
    try:
        row["dense"] = bench.once((model.name,), lambda _: dense(bench, model))
        given = ["--data", str(inputs(bench, Run(model, "default", SEED, 1.0)))] if recipe.data else []
        files = [str(file), str(model.place(model.path)), "-o", str(out), "--json", str(record), "--quiet"]
        ran = bench.call("run", [*RUN, *files, *given, *model.options])
        row |= {"seconds": ran.seconds, "megabytes": ran.megabytes}
        found = json.loads(record.read_text(encoding="utf-8"))
        row |= {key: found[key] for key in ("params", "macs", "file_bytes", "latency_ms") if key in found}
        row["said"] = [each["said"] for each in found["passes"] if each["said"]]
        row |= {"value": evaluated(bench, model, out), "zipped": zipped(out)}
    except Failed as error:
        said = str(error).rpartition("onnxprune: error: ")[2].replace(str(model.place(model.path)), model.name)
        row["error"] = said.partition(" (")[0][:200]
    out.unlink(missing_ok=True)
    return row


def page(rows: list[Row], there: dict[str, Recipe]) -> str:
    """The page: its words, and a table for each model."""
    env = Environment(
        loader=FileSystemLoader(ROOT / "tools"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tables = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name and row["title"] in there]
        before = {key: next((row[key]["before"] for row in mine if key in row), 0) for key in SIZES}
        first = next(row for row in mine if "dense" in row)
        tables.append((name, {**first["dense"], **before, "measure": first["measure"]}, mine))
    shown = {"count": count, "size": size, "percent": percent, "milliseconds": milliseconds}
    return env.get_template("zoo.md.j2").render(tables=tables, recipes=there, **shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="the models, .toml or .json")
    parser.add_argument("rows", type=Path, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("page", type=Path, help="where the page goes")
    parser.add_argument("--models", default="all", help="all, or some of the names in the file")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one command")
    args = parser.parse_args()
    there, kinds = models(args.file), recipes()
    rows: list[Row] = []
    if args.rows.exists():
        rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    done = {(row["model"], row["title"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.timeout)
        bench.made.update({(row["model"],): row["dense"] for row in rows if "dense" in row})
        for name in chosen(args.models, there):
            for title in kinds:
                if (name, title) in done:
                    continue
                row = measured(bench, there[name], kinds[title])
                rows.append(row)
                print(f"{name[:28]:28} {title:40} {row.get('error') or row['value']}", flush=True)
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    args.page.write_text(page(rows, kinds), encoding="utf-8")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
