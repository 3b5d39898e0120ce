"""Pruning and quantization against each other and together: what each keeps, how small and how fast it gets.

Usage: python tools/bench_quantize.py MODEL --data DATA [--targets macs=0.75,macs=0.5] [--mode static]
       [--metric METRIC.py:FUNCTION] [--ways int8] [--threads 1] [--seconds 10] [--out rows.jsonl] [--keep FOLDER]

Every way is a pipeline from the original, so that fidelity (on samples that nothing was made with), size and latency
(the two models in turns) are all measured against it. The table is Markdown; `--out` has the whole records, `--keep`
the models, for `onnxprune bench` on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune import Checks, Pipeline  # noqa: E402
from onnxprune.errors import OnnxPruneError  # noqa: E402
from onnxprune.passes import get  # noqa: E402
from onnxprune.report import to_json  # noqa: E402
from onnxprune.steps import Pass  # noqa: E402

Row = dict[str, Any]
HEAD = ("way", "metric", "cosine", "same top-1", "file", "latency (95 %)")


def ways(mode: str, targets: list[str]) -> Iterator[tuple[str, list[Pass]]]:
    """Name -> passes."""
    less = get("quantize")(mode=mode)
    yield "float16", [get("quantize")(mode="float16")]
    yield "int8", [less]
    for target in targets:
        prune, repair = get("prune_channels")(target=target), get("reconstruct")()
        yield f"{target}", [prune, repair]
        yield f"{target}, then int8", [prune, repair, less]
        yield f"int8, then {target}", [less, prune, repair]


def measured(model: Path, way: str, steps: list[Pass], args: argparse.Namespace) -> Row:
    """The record of a pipeline, or why there is none."""
    try:
        checks = Checks(seconds=args.seconds)
        out = args.keep and args.keep / f"{model.stem} {way}.onnx".replace(", ", "-").replace(" ", "-")
        options = {"metric": args.metric, "threads": args.threads, "checks": checks, "out": out}
        return Pipeline(steps).run(model, data=args.data, **options).record
    except OnnxPruneError as error:
        return {"error": str(error)}


def cells(way: str, record: Row) -> list[str]:
    """A row of the table."""
    if "error" in record:
        return [way, record["error"], *[""] * (len(HEAD) - 2)]
    kept, ratio, size = record["fidelity"], record["latency_ms"]["ratio"], record["file_bytes"]
    metric = next(iter(record.get("metric", {}).get("after", {}).values()), None)
    same = kept["top1_agreement"]
    return [
        way,
        "-" if metric is None else f"{metric:.4f}",
        f"{kept['cosine']:.4f}",
        "-" if same is None else f"{same:.3f}",
        f"{size['after'] / size['before']:.2f}",
        f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
    ]


def line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="inputs, as `onnxprune prune --data` takes them")
    parser.add_argument("--targets", default="macs=0.75,macs=0.5", help="of prune_channels, with commas between")
    parser.add_argument("--mode", default="static", choices=("static", "dynamic"), help="of int8")
    parser.add_argument("--metric", help="the measure that counts, as `onnxprune prune --metric` takes it")
    parser.add_argument("--ways", default="", help="only those with this in their name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for a comparison of latencies")
    parser.add_argument("--out", type=Path, help="where records go, a line each")
    parser.add_argument("--keep", type=Path, help="a folder for the models")
    args = parser.parse_args()
    print(f"{line(list(HEAD))}\n{line(['---'] * len(HEAD))}", flush=True)
    first = True
    for way, steps in ways(args.mode, args.targets.split(",")):
        if args.ways not in way:
            continue
        record = measured(args.model, way, steps, args)
        if first and "metric" in record:
            before = next(iter(record["metric"]["before"].values()))
            print(line(["original", f"{before:.4f}", "1", "1", "1", "1"]), flush=True)
            first = False
        print(line(cells(way, record)), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(json.loads(to_json({"way": way, **record}))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
