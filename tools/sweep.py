"""Prune many models and prove each cut: which are exact, how deep the cut goes, and what locks the rest.

Usage: python tools/sweep.py FILE_OR_FOLDER... [--target channels=0.5] [--jobs 2] [--resume results.jsonl]

Every model runs in a process of its own. It is cut, checked by ONNX and by ONNX Runtime, and compared with
the original whose removed weights are zero. A model that fails is a row, too: its error's last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Row = dict[str, Any]
# Outputs for two inputs must differ by this many times the parity, or parity says little about a model.
ALIVE = 100
LOCKS = 12  # kept per model


def examine(path: Path, target: str, scope: str, align: int, shapes: dict[str, tuple[int, ...]]) -> Row:
    """Prune one model and compare it with its masked original."""
    from onnxprune import Limits, Options, allocate, couple, cut, load, make_plan, mask, parse_target, score
    from onnxprune.cost import macs
    from onnxprune.groups import summary as count

    start = time.perf_counter()
    source = load(path)
    coupled = couple(source, Options(align=align))
    removed = allocate(coupled, score(coupled, "l2"), parse_target(target), scope, Limits(align))
    model = cut(coupled, make_plan(coupled, removed), removed)
    row: Row = {"seconds": time.perf_counter() - start}
    counts = count(coupled)
    row |= {"nodes": len(source.nodes), "groups": counts["groups"], "units": counts["units"]}
    row |= {"params": counts["params"], "cuttable": counts["cuttable_params"] / max(1, counts["params"])}
    row["params_kept"] = _elements(load(model)) / max(1, counts["params"])
    gone = _per_group(coupled, removed)
    work = macs(coupled)
    row["macs_kept"] = work(gone) / work.before if work.before else 1.0
    locks = Counter[tuple[str, str]]()
    for lock in coupled.locked:
        locks[lock.op, lock.reason] += lock.params
    row["locks"] = [[op, why, n / max(1, counts["params"])] for (op, why), n in locks.most_common(LOCKS)]
    return row | _verdict(model, mask(coupled, removed), shapes)


def _elements(graph: Any) -> int:
    return sum(graph.size(name) for name in graph.parameters)


def _per_group(coupled: Any, removed: Any) -> Any:
    import numpy as np

    return np.bincount(coupled.group_of[removed], minlength=len(coupled.groups))


def _verdict(model: Any, masked: Any, shapes: dict[str, tuple[int, ...]]) -> Row:
    """Checker, session, parity, and whether the outputs depend on the inputs at all."""
    import onnx

    from onnxprune.feeds import random_feeds
    from onnxprune.parity import compare, parity
    from onnxprune.runtime import run, session

    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    feeds = random_feeds(masked, count=2, shapes=shapes)
    found = parity(masked, model, feeds, threads=1)
    still = session(masked, threads=1, optimize=False, arena=False)
    first, second = (run(still, feed) for feed in feeds)
    noise: float | None = 0.0
    if not found.exact:  # how far the masked original is from itself, summed in another order
        other = session(masked, threads=1, arena=False)
        noise = compare(first, run(other, feeds[0])).to_dict()["relative"]
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
        return row | json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return row | {"error": lines[-1][:300], "trace": lines[-9:]}


def line(row: Row) -> str:
    """One model in one line."""
    name = Path(row["model"]).name.removesuffix(".onnx")[:38]
    if "error" in row:
        return f"{name:38} FAILED  {row['error'][:150]}"
    state = "exact" if row["exact"] else "WRONG"
    if not row["exact"] and row["parity"] and row["noise"] and row["parity"] < 10 * row["noise"]:
        state = "noisy"  # so is the masked original against itself
    still = row["alive"] is not None and row["alive"] <= ALIVE * (row["parity"] or 0.0)
    if row["exact"] and (row["vacuous"] or still):
        state = "hollow"  # equal, but so would anything be
    parity = "inf" if row["parity"] is None else f"{row['parity']:.0e}"
    op, why, share = row["locks"][0] if row["locks"] else ("", "nothing is locked", 0.0)
    figures = f"kept {row['params_kept']:.3f} macs {row['macs_kept']:.3f} cuttable {row['cuttable']:.3f}"
    lock = f"{share:.2f} {op or 'model'}: {why}"
    return f"{name:38} {state:6} {parity:>6} {figures} {row['seconds']:6.2f} s  {lock}"


def summary(rows: list[Row]) -> Iterator[str]:
    """Totals, and what locks most: the mean over models of the share of parameters behind each reason."""
    good = [r for r in rows if "error" not in r]
    exact = sum(r["exact"] for r in good)
    yield f"{len(rows)} models: {exact} exact, {len(good) - exact} wrong, {len(rows) - len(good)} failed"
    if not good:
        return
    kept = sorted(r["params_kept"] for r in good)
    yield f"parameters kept: median {kept[len(kept) // 2]:.3f}, mean {sum(kept) / len(kept):.3f}"
    weight, models = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in good:
        for op, why, share in row["locks"]:
            weight[op, why] += share
            models[op, why] += 1
    yield "share of parameters behind a lock (an axis each; mean over models), models, operator: reason"
    for (op, why), total in weight.most_common(30):
        yield f"  {total / len(good):7.4f} {models[op, why]:4d}  {op or 'model'}: {why}"


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
        for row in pool.map(lambda p: isolated(p, args), [p for p in paths if str(p) not in known]):
            rows.append(row)
            print(line(row), flush=True)
            if args.resume:
                with args.resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print("\n".join(summary(rows)))
    return int(any("error" in row or not row["exact"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
