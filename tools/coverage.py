"""Prune many models and prove each cut: which are exact, how deep the cut goes, and what locks the rest.

Usage: python tools/coverage.py FILE_OR_FOLDER... [--target channels=0.5] [--jobs 2] [--resume results.jsonl]
       python tools/coverage.py --resume results.jsonl --page docs/coverage.md

Every model runs in a process of its own. It is cut, checked by ONNX and by ONNX Runtime, and compared with
the original whose removed weights are zero. A model that fails is a row, too: its error's last line. The file of
`--resume` keeps the rows; `--page` makes a page of those for the given target, of all of them where no model is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

# The root in place of this folder, whose `coverage` must not stand in for the package of that name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if Path(place).resolve() != HERE)]

from tools.coverage_page import Row, histogram, page, state, states  # noqa: E402

LOCKS = 12  # kept per model


def examine(path: Path, target: str, scope: str, align: int, shapes: dict[str, tuple[int, ...]]) -> Row:
    """Prune one model and compare it with its masked original."""
    import numpy as np

    from onnxprune import Limits, Options, allocate, bodies, couple, cut, load, make_plan, mask, parse_target, score
    from onnxprune.cost import macs
    from onnxprune.errors import OnnxPruneError, TargetError
    from onnxprune.groups import summary as count

    start = time.perf_counter()
    source = load(path)
    coupled = couple(source, Options(align=align))
    removed = np.zeros(coupled.units, dtype=bool)
    with suppress(TargetError):  # nothing can be cut: a row all the same
        removed = allocate(coupled, score(coupled, "l2"), parse_target(target), scope, Limits(align))
    model = cut(coupled, make_plan(coupled, removed), removed)
    row: Row = {"seconds": time.perf_counter() - start, "exporter": exporter(source.proto), "family": family(source)}
    counts = count(coupled)
    row |= {"nodes": len(source.nodes), "groups": counts["groups"], "units": counts["units"]}
    row |= {"params": counts["params"], "cuttable": counts["cuttable_params"] / max(1, counts["params"])}
    row["params_kept"] = bodies.total(load(model)) / max(1, counts["params"])
    gone = _per_group(coupled, removed)
    work = macs(coupled)
    row["macs_kept"] = work(gone) / work.before if work.before else 1.0
    row["locks"] = [[*key, n / max(1, counts["params"])] for key, n in _locks(coupled).most_common(LOCKS)]
    try:
        return row | _verdict(model, mask(coupled, removed), shapes)
    except OnnxPruneError as error:  # no inputs are known on which it runs, say
        return row | {"unproved": str(error)}


def _locks(coupled: Any) -> Counter[tuple[str, str]]:
    """Parameters behind each operator and reason; a tensor counts once for each."""
    tensors: dict[tuple[str, str, str], int] = {}
    for lock in coupled.locked:
        key = (lock.op, lock.reason, lock.value)
        tensors[key] = max(tensors.get(key, 0), lock.params)
    sums = Counter[tuple[str, str]]()
    for (op, why, _), params in tensors.items():
        sums[op, why] += params
    return sums


def exporter(model: Any) -> str:
    """Who wrote a file: `pytorch 2.13 (dynamo)`."""
    name = " ".join([model.producer_name, *[".".join(model.producer_version.split("+")[0].split(".")[:2])]]).strip()
    if model.producer_name != "pytorch":
        return name
    dynamo = any(p.key.startswith(("namespace", "pkg.torch")) for n in model.graph.node for p in n.metadata_props)
    return f"{name} ({'dynamo' if dynamo else 'torchscript'})"


def family(graph: Any) -> str:
    """What kind of network it is, by its operators; a ViT's one convolution makes patches."""
    if not graph.parameters:
        return "Other"
    ops = Counter(node.op for node in graph.nodes)
    fused = sum(number for op, number in ops.items() if "Attention" in op)
    computed = sum(
        node.op == "MatMul" and not any(name in graph.constants for name in node.inputs) for node in graph.nodes
    )
    attends = fused or min(ops["Softmax"], computed) >= 2
    convolves = sum(number for op, number in ops.items() if "Conv" in op)
    if attends:
        return "Convolutions and attention" if convolves > 2 else "Attention"
    if ops["LSTM"] + ops["GRU"] + ops["RNN"]:
        return "Recurrent"
    return "Convolutions" if convolves > 1 else "Dense layers"


def _per_group(coupled: Any, removed: Any) -> Any:
    import numpy as np

    return np.bincount(coupled.group_of[removed], minlength=len(coupled.groups))


def _verdict(model: Any, masked: Any, shapes: dict[str, tuple[int, ...]]) -> Row:
    """Checker, session, parity, and whether the outputs depend on the inputs at all."""
    import onnx

    from onnxprune.errors import OnnxPruneError
    from onnxprune.feeds import UNUSUAL, random_feeds
    from onnxprune.parity import compare, parity, rounding
    from onnxprune.runtime import run, session

    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    feeds = random_feeds(masked, count=2, shapes=shapes)
    still = session(masked, threads=1, optimize=False, arena=False)
    first, second = (run(still, feed) for feed in feeds)
    resized = random_feeds(masked, seed=1, shapes=shapes, defaults=UNUSUAL)
    with suppress(OnnxPruneError):  # a model may take no other sizes
        run(still, resized[0])
        feeds += resized
    found = parity(masked, model, feeds, threads=1)
    noise: float | None = 0.0
    if not found.exact:  # how far the masked original is from itself, summed in another order
        noise = max(output.relative for output in rounding(masked, feeds, threads=1).values())
    return {
        "noise": noise,
        "parity": found.to_dict()["relative"],
        "notes": [f"{o.name}: {o.note}" for o in found.outputs if o.note],
        "exact": found.exact,
        "tolerance": found.tolerance,
        "vacuous": list(found.vacuous),
        "alive": compare(first, second).to_dict()["relative"],
    }


def isolated(path: Path, arguments: argparse.Namespace) -> Row:
    """`examine` in a process of its own, with a time limit; what went wrong becomes a row."""
    shapes = [f"--shape={n}={'x'.join(map(str, s))}" for n, s in arguments.shape]
    options = [*shapes, "--target", arguments.target, "--scope", arguments.scope, "--align", str(arguments.align)]
    command = [sys.executable, __file__, "--one", str(path), *options]
    row: Row = {"model": str(path), "target": arguments.target, "scope": arguments.scope}
    row["align"] = arguments.align
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        return row | {"error": f"no result within {arguments.timeout} s"}
    if done.returncode == 0:
        made: Row = json.loads(done.stdout.splitlines()[-1])
        return row | made
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return row | {"error": lines[-1][:300], "trace": lines[-9:]}


def line(row: Row) -> str:
    """One model in one line."""
    name = Path(row["model"]).name.removesuffix(".onnx")[:38]
    if "error" in row:
        return f"{name:38} FAILED  {row['error'][:150]}"
    parity = "" if "unproved" in row else "inf" if row["parity"] is None else f"{row['parity']:.0e}"
    op, why, share = row["locks"][0] if row["locks"] else ("", "nothing is locked", 0.0)
    figures = f"kept {row['params_kept']:.3f} macs {row['macs_kept']:.3f} cuttable {row['cuttable']:.3f}"
    lock = f"{share:.2f} {op or 'model'}: {why}"
    return f"{name:38} {state(row):8} {parity:>6} {figures} {row['seconds']:6.2f} s  {lock}"


def summary(rows: list[Row]) -> Iterator[str]:
    """Totals, and what locks most: the mean over models of the share of parameters behind each reason."""
    good = [r for r in rows if "error" not in r]
    yield f"{len(rows)} models: " + ", ".join(f"{number} {name}" for name, number in states(rows).most_common())
    if not good:
        return
    kept = sorted(r["params_kept"] for r in good)
    yield f"parameters kept: median {kept[len(kept) // 2]:.3f}, mean {sum(kept) / len(kept):.3f}"
    yield "share of parameters behind a lock (mean over models), models, operator: reason"
    yield from (f"  {share:7.4f} {models:4d}  {op}: {why}" for share, models, op, why in histogram(good))


def models(paths: Iterable[Path]) -> list[Path]:
    """The `.onnx` files that the arguments name, smallest first."""
    found = {p for path in paths for p in (path.rglob("*.onnx") if path.is_dir() else [path])}
    return sorted(found, key=lambda p: (p.stat().st_size, p))


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`x=1x3x48x320` as a name and a shape."""
    name, _, sizes = text.rpartition("=")
    return name, tuple(int(size) for size in sizes.split("x"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("paths", nargs="*", type=Path, help=".onnx files, or folders with some")
    parser.add_argument("--target", default="channels=0.5")
    parser.add_argument("--scope", default="local")
    parser.add_argument("--align", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds a model")
    parser.add_argument("--shape", action="append", type=shape, default=[], help="NAME=1x3x48x320: the feeds'")
    parser.add_argument("--resume", type=Path, help="a JSON-lines file: read, and appended to")
    parser.add_argument("--page", type=Path, help="write a page in Markdown")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.one:
        print(json.dumps(examine(args.one, args.target, args.scope, args.align, dict(args.shape))))
        return 0
    known: dict[str, Row] = {}
    if args.resume and args.resume.exists():
        for text in args.resume.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            if [row["target"], row["scope"], row["align"]] == [args.target, args.scope, args.align]:
                known[row["model"]] = row
    paths = models(args.paths)
    rows = [known[str(p)] for p in paths if str(p) in known]
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in as_completed(pool.submit(isolated, p, args) for p in paths if str(p) not in known):
            row = future.result()
            rows.append(row)
            print(line(row), flush=True)
            if args.resume:
                with args.resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    rows = rows or list(known.values())
    print("\n".join(summary(rows)))
    if args.page and rows:
        args.page.parent.mkdir(parents=True, exist_ok=True)
        args.page.write_text(page(rows), encoding="utf-8")
    return int(any(not row.get("exact") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
