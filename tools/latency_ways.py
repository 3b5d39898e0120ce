"""The ways to prune that tools/bench_latency.py compares; each is run as a process of its own.

`onnxprune` meets a target of latency. The others are matched to its result: allocations at its latency as measured,
Torch-Pruning (L2 importance, the last layer whole, else its defaults) at its MACs.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from onnxprune.problem import Problem

Row = dict[str, Any]
CLOSE, TRIES = 0.004, 8  # to the MACs wanted, which end the search; pruning ratios that are tried at most
SECONDS = 5.0  # of the measurement to whose result allocations are matched


@dataclass(frozen=True)
class Job:
    """What a way is given.

    Attributes:
        name: of the network in torch; empty where there is only a file.
        path: the original, ONNX.
        out: where the result goes.
        share: what may remain: of the latency, or of the MACs where the way matches those.
        threads: inside an operator.
        cache: the folder of latency tables.
    """

    name: str
    path: str
    out: str
    share: float
    threads: int
    cache: str

    def command(self, way: str) -> list[str]:
        return [sys.executable, __file__, way, json.dumps(asdict(self))]


@dataclass(frozen=True)
class Way:
    """A way to prune: `matches` names the figure of onnxprune's row that its result is to have, too."""

    about: str
    make: Callable[[Job], Row]
    matches: str = "target"


def by_onnxprune(job: Job) -> Row:
    """What a user gets, and how long it took without the proof."""
    from onnxprune import Checks, Limits, couple, load, prune, score
    from onnxprune.plan import removed_units
    from onnxprune.problem import problem_of

    done = prune(job.path, f"latency={job.share}", out=job.out, threads=job.threads, checks=Checks(seconds=SECONDS))
    assert done.plan is not None
    record, coupling = done.record, couple(load(job.path), done.plan.options)
    problem = problem_of(coupling, score(coupling, "l2"), Limits(record["align"]))
    seconds = record["seconds"]
    return {
        "kept": record["macs"]["after"] / record["macs"]["before"],
        "seconds": sum(seconds.values()) - seconds["validation"],
        "table_seconds": seconds["latency table"],
        "table_error": record["latency_model"]["error"]["median"],
        "predicted": record["latency_model"]["predicted"],
        "measured": record["latency_ms"]["ratio"]["value"] if "latency_ms" in record else 1.0,  # nothing was cut
        **importance(problem, removed_units(coupling, done.plan)),
    }


def by_allocation(job: Job, uniform: bool) -> Row:
    """Another allocation of the same scores, whose latency as measured is about `job.share`."""
    from onnxprune import Limits, Target, couple, cut, load, make_plan, save, score
    from onnxprune.allocation import choose
    from onnxprune.cost import macs
    from onnxprune.latency.block import resolve_align
    from onnxprune.latency.meet import SLACK, Clock
    from onnxprune.latency.networks import table_of
    from onnxprune.problem import problem_of
    from onnxprune.rules.base import Options
    from onnxprune.steps import Context

    align = resolve_align("auto", "cpu", measure=True)
    coupling = couple(load(job.path), Options(align))
    problem = problem_of(coupling, score(coupling, "l2"), Limits(align))
    feed = Context(threads=job.threads).feeds(coupling.graph)[0]
    target = Target("latency", min(job.share * (1 + SLACK / 2), 1.0))  # what is met lies within SLACK below
    clock = Clock(problem, target, table_of(coupling, feed, "cpu", job.threads), feed, "cpu", job.threads)
    spent, scope = (clock.cost, "local") if uniform else (macs(coupling), "budget")
    smallest = spent(problem.removed(np.zeros(len(problem.count))))

    def chosen(aim: float) -> NDArray[np.bool_] | None:
        bound = spent.before * min(aim / clock.cost.before, 1.0)
        return choose(problem, spent, bound, scope) if bound >= smallest else None

    start = time.perf_counter()
    removed = clock.met(chosen, target.bound(clock.cost.before))
    seconds = time.perf_counter() - start
    save(cut(coupling, make_plan(coupling, removed), removed), job.out)
    return {"kept": counted(job.out) / counted(job.path), "seconds": seconds, **importance(problem, removed)}


def importance(problem: Problem, removed: NDArray[np.bool_]) -> Row:
    """What the scope `budget` keeps small, and the share of energy kept: a geometric mean, weighted by MACs."""
    from onnxprune.allocation import losses
    from onnxprune.cost import macs

    coupling = problem.coupling
    gone = np.bincount(coupling.group_of[removed], minlength=len(coupling.groups))
    lost = sum(float(curve[n]) for curve, n in zip(losses(problem), gone, strict=True))
    work = float(macs(coupling).per_group().sum())
    return {"lost": lost, "importance": math.exp(-lost / max(work, 1.0))}


def by_torch_pruning(job: Job, step: int | None) -> Row:
    """Torch-Pruning's result, exported anew; seconds are of the last pruning, not of the search for its ratio."""
    import torch

    from models.export import export_module
    from models.torchvision_ops import import_torchvision
    from tools.compare_accuracy import count, last
    from tools.compare_peers import module

    import_torchvision()  # torch_pruning imports it
    import torch_pruning

    torch.set_num_threads(job.threads)
    whole, x = module(job.name)
    seconds = [0.0]

    def pruned(ratio: float) -> Any:
        model = copy.deepcopy(whole)
        start = time.perf_counter()
        torch_pruning.pruner.MetaPruner(
            model,
            x,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=step,
            ignored_layers=last(model, (x,)),
        ).step()
        seconds.append(time.perf_counter() - start)
        return model

    dense = count(copy.deepcopy(whole), (x,))
    ratio = closest(lambda tried: count(pruned(tried), (x,)) / dense, job.share)
    export_module(pruned(ratio), (x,), job.out)
    return {"ratio": ratio, "kept": counted(job.out) / counted(job.path), "seconds": seconds[-1]}


def closest(kept: Callable[[float], float], share: float, tries: int = TRIES) -> float:
    """Of the ratios that were tried, the one that keeps nearest to a share of the MACs.

    MACs fall about with the square of what stays of every width, so ratios are interpolated between the roots of MACs;
    where they fall in steps, that comes twice to the same side, and the half is next.
    """
    low, high = (0.0, 1.0), (1.0, 0.0)  # a ratio and the root of what it keeps
    wanted, seen, sides = math.sqrt(share), dict[float, float](), [True, False]
    for _ in range(tries):
        within = (low[1] - wanted) / max(low[1] - high[1], 1e-12)
        within = 0.5 if sides[-1] == sides[-2] else min(max(within, 0.05), 0.95)
        ratio = low[0] + (high[0] - low[0]) * within
        seen[ratio] = kept(ratio)
        if abs(seen[ratio] - share) <= CLOSE:
            break
        here = ratio, math.sqrt(seen[ratio])
        sides.append(seen[ratio] > share)
        low, high = (here, high) if sides[-1] else (low, here)
    return min(seen, key=lambda ratio: abs(seen[ratio] - share))


def counted(path: str) -> float:
    """MACs of a file, as onnxprune counts them."""
    from onnxprune import couple, load
    from onnxprune.cost import macs

    return float(macs(couple(load(path))).before)


def export(job: Job) -> Row:
    """The original as a file."""
    from tools.compare_peers import export as exported

    return exported(job.name, Path(job.path))


def known(names: Sequence[str], peers: Sequence[str]) -> None:
    """Make sure that networks, and what prunes them in torch, are there.

    Raises:
        SystemExit: one of them is not, in one line.
    """
    kinds = {name: name.rpartition(":")[0] or "torchvision" for name in names}
    try:
        from models.torchvision_ops import import_torchvision

        import_torchvision()
        if peers:
            import torch_pruning  # noqa: F401
        found = {kind: MODELS[kind]() for kind in {*kinds.values()} & {*MODELS}}
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed: {WITHOUT}") from None
    for name, kind in kinds.items():
        if kind not in found or not found[kind](name.rpartition(":")[2]):
            raise SystemExit(f"{name}: no model of torchvision, nor of timm as timm:NAME")


def _torchvision() -> Callable[[str], bool]:
    from torchvision.models import list_models

    return lambda name: name in list_models()


def _timm() -> Callable[[str], bool]:
    import timm

    return lambda name: bool(timm.is_model(name))


MODELS = {"torchvision": _torchvision, "timm": _timm}
WITHOUT = "give .onnx files, which need no torch, or leave out --peers"

WAYS = {
    "onnxprune": Way("onnxprune --target latency=X", by_onnxprune),
    "uniform": Way("all groups cut alike", lambda job: by_allocation(job, uniform=True), "measured"),
    "by-macs": Way("scope budget, of MACs", lambda job: by_allocation(job, uniform=False), "measured"),
    "torch-pruning": Way("Torch-Pruning", lambda job: by_torch_pruning(job, None), "kept"),
    "torch-pruning-16": Way("Torch-Pruning, round_to=16", lambda job: by_torch_pruning(job, 16), "kept"),
}
ALLOCATIONS, PEERS = ("uniform", "by-macs"), ("torch-pruning", "torch-pruning-16")


def main(task: str, *words: str) -> None:
    if task == "known":
        known(*map(json.loads, words))
        return
    job = Job(**json.loads(words[0]))
    os.environ["ONNXPRUNE_CACHE"] = job.cache
    from onnxprune import OnnxPruneError

    try:
        print(json.dumps(export(job) if task == "export" else WAYS[task].make(job)))
    except OnnxPruneError as error:
        raise SystemExit(str(error).replace(job.path, "the model")) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
