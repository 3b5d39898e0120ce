"""Grow random networks over every kind of operator that has a rule, and prove each cut with the oracle.

Usage: python tools/random_graphs.py [--count 5000] [--seed 0] [--jobs 2]
       python tools/random_graphs.py --seed 17 --show

Failures are printed with their seed; `--show` prints the smallest prefix of that network that fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import onnx

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from onnxprune.errors import OnnxPruneError
from onnxprune.rules.base import Options
from onnxprune.testing import OracleError, VacuousError, oracle
from tools.networks import grow


def options_of(seed: int) -> Options:
    """Options of the analysis, drawn with the network."""
    random = Random(-seed)
    return Options(align=random.choice([1, 1, 1, 2, 4]), head_dims=random.random() < 0.3)


def check(seed: int, steps: int | None = None, size: int = 12) -> str:
    """Grow one network and prove two cuts of it; the verdict in one line, empty if all is well."""
    model = grow(Random(seed), steps, size)
    try:
        for removed in (0.5, None):
            oracle(model, removed, seed, options=options_of(seed), both=removed is None)
    except VacuousError:
        return ""
    except (OracleError, OnnxPruneError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error} (a crash)"
    return ""


def shrink(seed: int, size: int) -> int:
    """The least number of steps with which a seed still fails."""
    return next((steps for steps in range(size + 1) if check(seed, steps, size)), size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--size", type=int, default=12, help="steps at most (default 12)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--show", action="store_true", help="print the network of --seed and stop")
    args = parser.parse_args()
    if args.show:
        steps = shrink(args.seed, args.size)
        print(onnx.printer.to_text(grow(Random(args.seed), steps, args.size)))
        print(f"{steps} steps, {options_of(args.seed)}:", check(args.seed, steps, args.size) or "exact")
        return 0
    start, failed = time.perf_counter(), 0
    seeds = range(args.seed, args.seed + args.count)
    with ProcessPoolExecutor(args.jobs) as pool:
        verdicts = pool.map(partial(check, size=args.size), seeds, chunksize=16)
        for seed, verdict in zip(seeds, verdicts, strict=True):
            if verdict:
                failed += 1
                print(f"seed {seed}: {verdict}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{args.count} networks, {failed} failures, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
