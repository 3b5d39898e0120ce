"""Grow random networks over every kind of operator that has a rule, and prove each cut with the oracle.

Usage: python tools/fuzz.py [--count 5000] [--seed 0] [--jobs 2] [--save DIR]
       python tools/fuzz.py --seed 17 --show

A network and its cut follow from the seed. One that fails is shrunk to a graph of which no node can be spared; it is
printed, and with --save written to DIR. Networks that prove nothing are counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import onnx

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from onnxprune.errors import OnnxPruneError
from onnxprune.rules.base import RULES, Options
from tools.networks import grow
from tools.networks.feeds import feeds
from tools.networks.shrink import shrink
from tools.networks.trial import Cut, Trial, attempt, cut_of, run


def trial(seed: int, size: int = 12) -> Trial:
    """Grow the network of a seed and prove its cut."""
    return attempt(grow(Random(seed), size=size), cut_of(seed))


def smallest(model: onnx.ModelProto, cut: Cut, kind: str) -> tuple[onnx.ModelProto, Cut]:
    """The smallest graph that fails in the same way, and the plainest cut that shows it."""
    cuts = [Cut(share, seed, Options()) for share in (0.5, None) for seed in (0, 1)]
    cuts += [cut, *(Cut(share, cut.seed, cut.options, cut.optimize) for share in (0.5, None))]

    def failing(smaller: onnx.ModelProto) -> Cut | None:
        if not runs(smaller):
            return None
        trials = ((way, attempt(smaller, way)) for way in cuts)
        return next((way for way, t in trials if t.kind == kind and not t.noise), None)

    small = shrink(model, lambda smaller: failing(smaller) is not None)
    return small, failing(small) or cut


def runs(model: onnx.ModelProto) -> bool:
    """Whether a graph is a model at all."""
    try:
        onnx.checker.check_model(model)
        run(model, feeds(model, 0), False)
    except (OnnxPruneError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return False
    return True


def show(seed: int, size: int, save: Path | None, verdict: Trial, whole: bool = False) -> None:
    """Print the smallest graph that fails as the network of a seed does (save that network where it is to be whole)."""
    model, cut = grow(Random(seed), size=size), cut_of(seed)
    if not whole:
        if verdict.failure:
            model, cut = smallest(model, cut, verdict.kind)
            verdict = attempt(model, cut)
        print(onnx.printer.to_text(model))
        print(f"seed {seed}, {cut}: {verdict.failure or verdict.vacuous or 'exact'}", flush=True)
    if save:
        save.mkdir(parents=True, exist_ok=True)
        onnx.save(model, save / f"seed_{seed}.onnx")


def campaign(seeds: range, size: int, jobs: int) -> Iterator[tuple[int, Trial]]:
    """The verdicts on many seeds."""
    if jobs == 1:
        yield from ((seed, trial(seed, size)) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from zip(seeds, pool.map(partial(trial, size=size), seeds, chunksize=16), strict=True)


def summary(trials: Iterable[Trial], seconds: float) -> Iterator[str]:
    """What was proved, in a few lines."""
    trials = list(trials)
    count = len(trials)
    failed = [t for t in trials if t.failure and not t.noise]
    vacuous = Counter(t.vacuous for t in trials if t.vacuous)
    cut = sum(bool(t.cut_ops) for t in trials)
    yield f"{count} networks, {len(failed)} failures, {seconds:.0f} s ({count / seconds:.1f} a second)"
    yield f"cut: {cut / count:.1%}; rounding, not a failure: {sum(t.noise for t in trials)}"
    reasons = ", ".join(f"{reason}: {n}" for reason, n in vacuous.most_common())
    yield f"vacuous: {vacuous.total() / count:.1%} ({reasons})"
    seen, lost = Counter(op for t in trials for op in t.ops), Counter(op for t in trials for op in t.cut_ops)
    yield "networks in which an operator lost indices (of those that have it):"
    yield "  " + ", ".join(f"{op} {lost[op]} ({seen[op]})" for op, _ in lost.most_common())
    yield "rules that never saw a cut: " + ", ".join(op for op in RULES.names() if not lost[op])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--size", type=int, default=12, help="steps at most (default 12)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--save", type=Path, help="a directory for the graphs that fail")
    parser.add_argument("--no-shrink", action="store_true", help="only say which seeds fail")
    parser.add_argument("--show", action="store_true", help="print the network of --seed and stop")
    args = parser.parse_args()
    if args.show:
        show(args.seed, args.size, args.save, trial(args.seed, args.size))
        return 0
    start, trials = time.perf_counter(), []
    for seed, verdict in campaign(range(args.seed, args.seed + args.count), args.size, args.jobs):
        trials.append(verdict)
        if verdict.failure:
            print(f"seed {seed}: {verdict.failure}{' (rounding)' if verdict.noise else ''}", flush=True)
            if not verdict.noise:
                show(seed, args.size, args.save, verdict, args.no_shrink)
    print("\n".join(summary(trials, time.perf_counter() - start)))
    return int(any(t.failure and not t.noise for t in trials))


if __name__ == "__main__":
    sys.exit(main())
