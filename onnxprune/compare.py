"""The curve of a model, from the answers of its tasks and from latencies, which are measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from onnxprune import graph as graphs
from onnxprune import words
from onnxprune.data import read
from onnxprune.tasks import Answer, Task, Tell
from onnxprune.timing import MAX_FEEDS, Bench, bench
from onnxprune.tradeoff import Curve, Point

KEPT = ("macs", "params", "file_bytes")
CONDITIONS = ("provider", "threads", "cpus", "onnxruntime")


def latencies(task: Task, folder: Path, answers: Sequence[Answer], seconds: float, tell: Tell) -> dict[str, Bench]:
    """Target -> the latencies of the original and of the model that was made for it, taken in turns.

    Args:
        task: the model and all its targets.
        folder: where the pruned models are.
        answers: what is known of them.
        seconds: the longest comparison; 0: nothing is measured. Neither is a model that does not run, or a big one,
            whose weights are not to be in memory twice.
        tell: told about progress.
    """
    graph = graphs.load(task.model)
    ran = [answer["target"] for answer in answers if "fidelity" in answer]
    if seconds == 0 or graphs.is_big(graph) or not ran:
        return {}
    options, data = task.options, task.options.get("data")
    shapes = {n: shape for n, shape in (options.get("shapes") or {}).items() if n in graph.inputs}
    # Of sizes that were asked for only random inputs know.
    feeds = None if data is None or shapes else list(islice(read(data, graph.proto), MAX_FEEDS))
    found = {}
    for target in ran:
        tell(f"{target}: latency")
        found[target] = bench(
            task.model,
            folder / task.files[target],
            options.get("provider", "cpu"),
            options.get("threads"),
            feeds,
            shapes,
            max_seconds=max(seconds, 1.0),
            min_seconds=min(0.5, seconds),
        )
    return found


def curve_of(
    task: Task, cost: str, shares: Mapping[str, float], answers: Sequence[Answer], benches: Mapping[str, Bench]
) -> Curve:
    """The curve of a model.

    Args:
        task: the model and all its targets.
        cost: what they bound.
        shares: target -> share, the largest first.
        answers: one for each target.
        benches: target -> latencies, where they were measured.
    """
    by_target = {answer["target"]: answer for answer in answers}
    points = [_point(task.label, share, by_target[t], benches.get(t)) for t, share in shares.items()]
    met: Answer = next((answer for answer in answers if "error" not in answer), {})
    measured = [bench.to_dict() for bench in benches.values()]
    notes = [note for target in shares for note in by_target[target].get("notes", ())]
    notes += [line for each in measured for line in words.conditions(each)[1:]]
    return Curve(
        model=task.label,
        cost=cost,
        points=tuple(points),
        original={str(name): met[name]["before"] for name in (*KEPT, "metric") if name in met},
        measured={key: measured[0][key] for key in CONDITIONS} if measured else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def kept(curve: Curve, files: Mapping[str, str], folder: Path) -> Curve:
    """The same, where the models (target -> name of the file) stay in a folder."""

    def stays(point: Point) -> Point:
        return point if point.error is not None else replace(point, file=str(folder / files[point.target]))

    return replace(curve, points=tuple(map(stays, curve.points)))


def _point(label: str, share: float, answer: Answer, measured: Bench | None) -> Point:
    point = Point(label, answer["target"], share, seconds=answer["seconds"], error=answer.get("error"))
    if point.error is not None:
        return point
    fidelity = answer.get("fidelity", {})
    return replace(
        point,
        macs=_share(answer["macs"]),
        params=_share(answer["params"]),
        file_bytes=_share(answer["file_bytes"]),
        latency=measured.ratio if measured else None,
        milliseconds=measured.b.median.value if measured and measured.b else None,
        cosine=fidelity.get("cosine"),
        top1_agreement=fidelity.get("top1_agreement"),
        metric=answer.get("metric", {}).get("after", {}),
    )


def _share(pair: Mapping[str, Any]) -> float:
    return float(pair["after"] / pair["before"]) if pair["before"] else 1.0
