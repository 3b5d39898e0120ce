"""Torch-Pruning on the same ONNX files at equal MACs: its training-free criteria, evaluated as onnxprune's results are.

Usage: python tools/compare_accuracy.py MODELS.toml --out rows.jsonl [--shares 0.75,0.5] [--seeds 0]
       [--criteria l1,lamp] [--models NAME,NAME] [--timeout 3600] [--retry]

MODELS.toml is that of tools/bench_accuracy.py. The model comes into torch by onnx2torch and goes back by torch.onnx;
layers that make the output stay whole, all else is Torch-Pruning's default. Its pruning ratio is searched until the
MACs kept are the share wanted; `kept` in the rows is onnxprune's count of the files, as everywhere. Nothing is trained
and nothing repaired. A model that does not get through is a row with the reason.
tools/accuracy_page.py puts the rows beside those of tools/bench_accuracy.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.accuracy_page import CRITERIA, Row  # noqa: E402
from tools.bench_accuracy import Bench, Failed, Run, chosen, evaluated, inputs, models, sweep  # noqa: E402

CLOSE = 0.02  # to the share wanted, of which MACs kept may be off: where all groups are cut alike, they come in steps
TRIES = 14  # of pruning ratios


@dataclass(frozen=True)
class Peer(Run):
    """One row to be."""

    criterion: str = "l1"

    @property
    def about(self) -> Row:
        return super().about | {"variant": f"torch-pruning-{self.criterion}", "options": []}


def measured(bench: Bench, run: Run) -> Row:
    """One model pruned by one criterion, in a process of its own; what went wrong is under "error"."""
    assert isinstance(run, Peer)
    row, model = run.about, run.model
    source, out = model.place(model.path), bench.folder / "peer.onnx"
    try:
        row["dense"] = bench.once((model.name,), lambda _: evaluated(bench, model, source))
        words = [str(word) for word in (source, inputs(bench, run), out, run.criterion, run.share, run.seed)]
        done = bench.call("torch-pruning", [sys.executable, __file__, "--work", *words])
        row |= {"seconds": round(done.seconds, 2), "megabytes": round(done.megabytes, 1), **json.loads(done.said)}
        row["value"] = evaluated(bench, model, out)
    except Failed as error:
        row["error"] = str(error)[:300]
    return row


def nearest(kept: Callable[[float], float], share: float) -> float:
    """The ratio, found by bisection, that keeps about this share; what is kept comes in steps, and falls.

    Raises:
        SystemExit: no ratio is close.
    """
    low, high, seen = 0.0, 1.0, dict[float, float]()
    for _ in range(TRIES):
        ratio = (low + high) / 2
        seen[ratio] = kept(ratio)
        if abs(seen[ratio] - share) <= CLOSE / 8:
            return ratio
        low, high = (ratio, high) if seen[ratio] > share else (low, ratio)
    best = min(seen, key=lambda ratio: abs(seen[ratio] - share))
    if abs(seen[best] - share) > CLOSE:
        raise SystemExit(f"no ratio keeps {share:g} of the MACs: the nearest keeps {seen[best]:.3f}")
    return best


def work(source: str, data: str, out: str, criterion: str, share: str, seed: str) -> Row:
    """Convert, prune and export one model."""
    import numpy as np
    import torch

    from models.torchvision_ops import import_torchvision

    import_torchvision()  # onnx2torch imports it
    import onnx2torch
    import torch_pruning

    from onnxprune import load
    from onnxprune.data import read
    from onnxprune.runtime import run, session

    torch.set_num_threads(1)
    graph = load(source)
    feed = next(iter(read(data, graph.proto).samples()))
    example = tuple(torch.from_numpy(feed[name]) for name in graph.inputs)

    def made(ratio: float) -> Any:
        torch.manual_seed(int(seed))
        model = onnx2torch.convert(initialised(graph.proto)).eval()
        if ratio:
            importance, everywhere = importances(torch_pruning)[criterion]
            torch_pruning.pruner.MetaPruner(
                model,
                example,
                importance=importance,
                global_pruning=everywhere,
                pruning_ratio=ratio,
                ignored_layers=last(model, example),
            ).step()
        return model

    whole = made(0.0)
    for one, other in zip(answers(whole, example), run(session(source), feed).values(), strict=True):
        if not np.allclose(one.numpy(), other, rtol=1e-3, atol=1e-3 * float(np.abs(other).max())):
            raise SystemExit("onnx2torch makes a model with other answers of it")
    dense = count(whole, example)
    ratio = nearest(lambda tried: count(made(tried), example) / dense, float(share))
    export(made(ratio), example, graph, out)
    return {"ratio": ratio, "kept": cost(out, data) / cost(source, data)}


def initialised(proto: Any) -> Any:
    """The model with constants where onnx2torch looks for weights."""
    from onnx import ModelProto, numpy_helper

    model = ModelProto()
    model.CopyFrom(proto)
    values = {
        n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].t.dims
    }
    rest = [n for n in model.graph.node if n.output[0] not in values]
    made = [numpy_helper.from_array(numpy_helper.to_array(tensor), name) for name, tensor in values.items()]
    model.graph.ClearField("node")
    model.graph.node.extend(rest)
    model.graph.initializer.extend(made)
    return model


def count(model: Any, example: tuple[Any, ...]) -> float:
    """MACs of convolutions and linear layers, as onnxprune counts them: Torch-Pruning's own count has more in it."""
    import torch

    found = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.modules.conv._ConvNd, torch.nn.Linear)):
            layer.register_forward_hook(lambda layer, given, made: found.append(made.numel() * layer.weight[0].numel()))
    answers(model, example)
    return float(sum(found))


def answers(model: Any, example: tuple[Any, ...]) -> tuple[Any, ...]:
    """All outputs, without gradients."""
    import torch

    with torch.no_grad():
        made = model(*example)
    return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def importances(peer: Any) -> Mapping[str, tuple[Any, bool]]:
    """The importance, and whether all layers are ranked together, as the paper of LAMP does."""
    found = peer.importance
    return {
        "l1": (found.GroupMagnitudeImportance(p=1), False),
        "l2": (found.GroupMagnitudeImportance(p=2), False),
        "fpgm": (found.FPGMImportance(), False),
        "lamp": (found.LAMPImportance(), True),
        "random": (found.RandomImportance(), False),
    }


def last(model: Any, example: tuple[Any, ...]) -> list[Any]:
    """For each output the last layer as wide as one of its axes."""
    found = []
    for output in answers(model, example):
        wide = [
            layer
            for layer in model.modules()
            if {getattr(layer, name, 0) for name in ("out_features", "out_channels")} & set(output.shape[1:])
        ]
        found += wide[-1:]
    return found


def export(model: Any, example: tuple[Any, ...], graph: Any, out: str) -> None:
    """Write the model with the original's names, and open where the original is."""
    import torch

    names = [*graph.inputs, *graph.outputs]
    shapes = {name: graph.shapes.get(name) or () for name in names}
    open_axes = {
        n: {a: f"{n}_{a}" for a, s in enumerate(shape) if not isinstance(s, int)} for n, shape in shapes.items()
    }
    with torch.no_grad():
        torch.onnx.export(
            model,
            example,
            out,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes=open_axes,
            opset_version=17,
            dynamo=False,
        )


def cost(path: str, data: str) -> float:
    """MACs of a sample, as onnxprune counts them."""
    from onnxprune import couple, load
    from onnxprune.cost import macs
    from onnxprune.data import read
    from onnxprune.steps import Context

    coupling = couple(load(path))
    Context(threads=1, data=read(data, coupling.graph.proto)).observe(coupling)
    return float(macs(coupling).before)


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(*sys.argv[2:])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="the models, .toml or .json")
    parser.add_argument("--out", type=Path, required=True, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("--shares", default="0.75,0.5", help="of the MACs that may remain")
    parser.add_argument("--seeds", default="0", help="of the random criterion")
    parser.add_argument("--criteria", default="l1,lamp", help="all, or some of those of the tool")
    parser.add_argument("--models", default="all", help="all, or some of the names in the file")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one command")
    parser.add_argument("--retry", action="store_true", help="also do again what failed")
    args = parser.parse_args()
    there = models(args.file)
    names, wanted = chosen(args.models, there), chosen(args.criteria, CRITERIA)
    seeds, shares = args.seeds.split(","), args.shares.split(",")
    runs = [
        Peer(there[name], "default", int(seed), float(share), criterion)
        for seed, name, share, criterion in product(seeds, names, shares, wanted)
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(Bench(Path(folder), args.timeout), runs, args.out, args.retry, measured)
    print(f"{len(rows)} runs, {sum('error' in row for row in rows)} failed")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
