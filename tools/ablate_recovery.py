"""Ablations of the recovery: what is cut stays the same, the weights are recovered in several ways.

Usage: python tools/ablate_recovery.py MODELS.toml --out rows.jsonl [--shares 0.5] [--seeds 0] [--ways all]
       [--models NAME,NAME] [--threads 1] [--timeout 3600] [--retry]

MODELS.toml is that of tools/bench_accuracy.py. For every model, share and seed one `onnxprune prune --plan` fixes the
cut and whether results get their variance back; `as-is` does over again what that run did, the other ways of
tools/ablations.py differ from it in one thing each. None of them falls back to the cut weights where it does harm: that
is what the figures are to show. A way is a row of JSON in the file of `--out`, of which tools/accuracy_page.py makes a
section.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch as replaced

import numpy as np
import onnx
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune import couple, cut, data, load, recovery, refit  # noqa: E402
from onnxprune.cost import macs  # noqa: E402
from onnxprune.divergence import distance_of, off, signatures  # noqa: E402
from onnxprune.feeds import Feed  # noqa: E402
from onnxprune.parts import Engine  # noqa: E402
from onnxprune.patch import NOTHING, patched  # noqa: E402
from onnxprune.plan import read_plan, removed_units  # noqa: E402
from onnxprune.recovery import Contracted, Pair, Step, Stop  # noqa: E402
from onnxprune.rules.base import Dim  # noqa: E402
from onnxprune.samples import Samples, clusters, split  # noqa: E402
from onnxprune.steps import Context  # noqa: E402
from tools.ablations import ABLATIONS, Ablation  # noqa: E402
from tools.accuracy_page import Row  # noqa: E402
from tools.bench_accuracy import PRUNE, Bench, Failed, Run, chosen, evaluated, inputs, models, sweep  # noqa: E402

Array = NDArray[Any]
DRAWS = 20  # of calibration inputs by other seeds, at most, where more samples are wanted


@dataclass(frozen=True, eq=False)
class OneShot:
    """A step that sees, in place of the repaired cut model, the original without the channels that went."""

    step: Contracted
    pair: Pair

    cut = True
    thin: Stop = (0, [])  # the cut model does not run

    @property
    def dense(self) -> Stop:
        return self.step.dense

    def add(self, choosing: bool, dense: Mapping[str, Array], thin: Mapping[str, Array]) -> None:
        self.step.add(choosing, dense, {self.step.b.x.value: self._narrow(dense[self.step.a.x.value])})

    def best(self, everything: bool) -> tuple[Any, Any]:
        return self.step.best(everything)

    def _narrow(self, value: Array) -> Array:
        for axis in range(value.ndim):
            where = (slice(None),) * axis + (self.pair.kept(Dim(self.step.a.x.value, axis)),)
            value = value[where]
        return value


def one_shot(pair: Pair, steps: Iterable[Step]) -> Iterator[Step]:
    """With the inputs of the original nothing that lost no channels has anything to make up for, and no sum has."""
    return (OneShot(s, pair) for s in no_branch(pair, no_after(pair, steps)) if isinstance(s, Contracted))


def no_branch(pair: Pair, steps: Iterable[Step]) -> Iterator[Step]:
    return (replace(step, other=None) if isinstance(step, Contracted) else step for step in steps)


def no_after(pair: Pair, steps: Iterable[Step]) -> Iterator[Step]:
    return (step for step in steps if step.cut)


ORDERS: dict[str, Callable[[Pair, Iterable[Step]], Iterable[Step]]] = {
    "as they are": lambda pair, steps: steps,
    "one-shot": one_shot,
    "no-branch": no_branch,
    "no-after": no_after,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A cut that is recovered in several ways.

    Attributes:
        pair: the original and the cut model.
        parts: the samples as the product parts them.
        rescale: whether the product gave results their variance back.
        kept: the share of the MACs.
        more: calibration inputs of another draw, by its number.
        done: figures of ways.
    """

    pair: Pair
    parts: Samples
    engine: Engine
    seed: int
    rescale: bool
    kept: float
    more: Callable[[int], Iterable[Feed]]
    done: dict[Ablation, Row] = field(default_factory=dict)

    @cached_property
    def distance(self) -> Any:
        return distance_of(self.pair.original.graph, self.parts.aside, self.engine)

    def off(self, patch: Any = NOTHING) -> float:
        return off(self.distance, self.pair.cut, self.parts.aside, self.engine, patch)

    @cached_property
    def before(self) -> float:
        return self.off()

    def parted(self, count: int) -> Samples:
        """So many samples that are not put aside, parted as the product would."""
        aside = {_bytes(self.parts.feeds[i]) for i in self.parts.spare}
        order = np.random.default_rng(self.seed).permutation(len(self.parts.feeds))
        own = [self.parts.feeds[i] for i in order]
        pool = {b: feed for feed in own if (b := _bytes(feed)) not in aside}
        for draw in range(1, DRAWS + 1):
            if len(pool) >= count:
                break
            pool |= {b: feed for feed in self.more(draw) if (b := _bytes(feed)) not in aside | pool.keys()}
        if len(pool) < count:
            raise Failed(f"samples: {count} are wanted, and there are {len(pool)} that differ")
        feeds, original = list(pool.values())[:count], self.pair.original
        alike = clusters(signatures(original.graph, feeds, self.engine))
        return split(feeds, self.parts.inputs, alike, count, macs(original).before)

    def recovered(self, way: Ablation) -> tuple[Any, float]:
        """New weights, and the seconds that they took."""
        parts = self.parts if way.samples is None else self.parted(way.samples)
        rescale = self.rescale if way.rescale is None else way.rescale
        made, order = recovery._steps, ORDERS[way.steps]
        with ExitStack() as stack:
            ridges = refit.RIDGES if way.ridge is None else (way.ridge,)
            stack.enter_context(replaced.object(refit, "RIDGES", ridges))
            steps = replaced.object(recovery, "_steps", lambda pair, *rest: list(order(pair, made(pair, *rest))))
            stack.enter_context(steps)
            turn, start = parts.last, time.perf_counter()
            if way.method == "none":
                return NOTHING, 0.0
            patch, _ = recovery.recover(
                self.pair, *turn, way.method, self.engine, self.seed, everything=True, rescale=rescale
            )
        return patch, time.perf_counter() - start


def _bytes(feed: Feed) -> bytes:
    return b"".join(np.ascontiguousarray(value).tobytes() for value in feed.values())


def case(bench: Bench, run: Run, threads: int) -> Case:
    """Prune once; then analyse the original and cut it as that run did."""
    source, given = run.model.place(run.model.path), inputs(bench, run)
    out, plan, record = (bench.folder / name for name in ("pruned.onnx", "plan.json", "record.json"))
    files = ["-o", str(out), "--data", str(given), "--json", str(record), "--plan", str(plan), "--quiet"]
    bench.call(
        "prune", [*PRUNE, str(source), *files, "--target", f"macs={run.share}", "--bench-seconds", "0", *run.options]
    )
    found = json.loads(record.read_text(encoding="utf-8"))
    graph, wanted, engine = load(source), read_plan(plan), Engine(threads=threads)
    context = Context(threads=threads, data=data.read(str(given), graph.proto))
    original = couple(graph, wanted.options)
    context.observe(original)
    removed = removed_units(original, wanted)
    pair = Pair(original, removed, load(cut(original, wanted, removed)))
    kept = found["macs"]["after"] / found["macs"]["before"]
    rescaled = bool(found.get("recovery", {}).get("rescaled"))

    def more(draw: int) -> Iterable[Feed]:
        if run.model.calibrate is None:
            return []
        fresh = inputs(bench, replace(run, seed=run.seed + 1000 * draw))
        return data.read(str(fresh), graph.proto).samples()

    return Case(pair, context.samples(original), engine, run.seed, rescaled, kept, more)


@dataclass(frozen=True)
class Ablated(Run):
    """One row to be."""

    way: str = "as-is"
    threads: int = 1

    @property
    def about(self) -> Row:
        return super().about | {"variant": self.way}


def measured(bench: Bench, run: Run) -> Row:
    """One way to recover, evaluated; what went wrong is under "error"."""
    assert isinstance(run, Ablated)
    way, model, row = ABLATIONS[run.way], run.model, run.about
    try:
        row["dense"] = bench.once((model.name,), lambda _: evaluated(bench, model, model.place(model.path)))
        made: Case = bench.once(("case",), lambda _: case(bench, run, run.threads))
        rescale = made.rescale if way.rescale is None else way.rescale
        same = replace(way, about="", rescale=rescale)  # one of `variance-on` and `variance-off` is `as-is`
        if same not in made.done:
            patch, seconds = made.recovered(way)
            out = bench.folder / "recovered.onnx"
            onnx.save(patched(made.pair.cut, patch), out)
            distance = {"kind": made.distance.kind, "before": made.before, "after": made.off(patch)}
            figures = {"distance": distance, "seconds": round(seconds, 2)}
            made.done[same] = figures | {"value": evaluated(bench, model, out)}
        row |= {"kept": made.kept, "rescaled": rescale, **made.done[same]}
    except Failed as error:
        row["error"] = str(error)[:300]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="the models, .toml or .json")
    parser.add_argument("--out", type=Path, required=True, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("--shares", default="0.5", help="of the MACs that may remain")
    parser.add_argument("--seeds", default="0", help="of calibration inputs, and of what is drawn")
    parser.add_argument("--ways", default="all", help=", ".join(["all", *ABLATIONS]))
    parser.add_argument("--models", default="all", help="all, or some of the names in the file")
    parser.add_argument("--threads", type=int, default=1, help="of the recoveries")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one command")
    parser.add_argument("--retry", action="store_true", help="also do again what failed")
    args = parser.parse_args()
    there, ways = models(args.file), chosen(args.ways, ABLATIONS)
    names, seeds, shares = chosen(args.models, there), args.seeds.split(","), args.shares.split(",")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, name, share in product(map(int, seeds), names, map(float, shares)):
        runs = [Ablated(there[name], "default", seed, share, way, args.threads) for way in ways]
        with tempfile.TemporaryDirectory() as folder, threadpool_limits(args.threads):  # a bench for each cut
            rows += sweep(Bench(Path(folder), args.timeout), runs, args.out, args.retry, measured)
    print(f"{len(rows)} rows, {sum('error' in row for row in rows)} failed")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
