"""onnxprune beside Torch-Pruning and onnxsim.pruning: parameters kept and seconds, with half of the channels gone.

Usage: python tools/compare_peers.py [NAME...] [--timeout 150] [--json FILE]

Names are torchvision's, or timm's as `timm:NAME`. Every tool gets the same network with the same random weights
and runs in a process of its own with a time limit: Torch-Pruning the torch module (L2 importance, the last layer
ignored), the others its ONNX export. Seconds are those of the pruning alone, without imports, reading, exporting
and writing. Parameters are counted in ONNX files that ONNX Runtime loads, Torch-Pruning's result exported anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "densenet201",
    "efficientnet_b0",
    "inception_v3",
    "googlenet",
    "regnet_x_400mf",
    "resnext50_32x4d",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
)
NEEDS = {"onnxprune": "onnx", "torch-pruning": "torch_pruning", "onnxsim": "onnxsim"}
Figures = dict[str, Any]


def module(name: str) -> tuple[Any, Any]:
    """The network in eval mode, without training-only heads, and an input for it."""
    from models.export import timm_model, torchvision_model

    kind, _, rest = name.rpartition(":")
    made, inputs = (timm_model if kind == "timm" else torchvision_model)(rest)
    for head in ("aux1", "aux2", "AuxLogits"):
        if hasattr(made, head):
            setattr(made, head, None)
            setattr(made, "aux_logits", False)  # noqa: B010  # not an attribute that modules have
    return made, inputs[0]


def export(name: str, path: Path) -> Figures:
    from models.export import export_module

    made, x = module(name)
    export_module(made, (x,), path)
    return {}


def by_onnxprune(name: str, path: Path) -> Figures:
    from onnxprune import Limits, Options, allocate, couple, cut, load, make_plan, parse_target, score

    couple(load(path))  # fills the registry of rules
    start = time.perf_counter()
    coupling = couple(load(path), Options(1))
    gone = allocate(coupling, score(coupling, "l2"), parse_target("channels=0.5"), "local", Limits(1))
    pruned = cut(coupling, make_plan(coupling, gone), gone)
    return {"seconds": time.perf_counter() - start, "kept": elements(pruned) / elements(path)}


def by_onnxsim(name: str, path: Path) -> Figures:
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    model = onnx.load(path)
    start = time.perf_counter()
    pruned = apply_structured_pruning(model, 0.5)
    return {"seconds": time.perf_counter() - start, "kept": elements(pruned) / elements(path)}


def by_torch_pruning(name: str, path: Path) -> Figures:
    import torch
    import torch_pruning

    from models.export import export_module

    made, x = module(name)
    with torch.no_grad():
        classes = made(x).shape[1]
    layers = [m for m in made.modules() if classes in (getattr(m, n, 0) for n in ("out_features", "out_channels"))]
    start = time.perf_counter()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    torch_pruning.pruner.MetaPruner(
        made, x, importance=importance, pruning_ratio=0.5, ignored_layers=layers[-1:]
    ).step()
    seconds = time.perf_counter() - start
    pruned = path.with_name("torch-pruning.onnx")
    export_module(made, (x,), pruned)
    return {"seconds": seconds, "kept": elements(pruned) / elements(path)}


def elements(model: Any) -> int:
    """Float parameters of an ONNX model (a path or a proto) that ONNX Runtime can load."""
    from onnxprune import load
    from onnxprune.runtime import session

    session(model)
    graph = load(model)
    return sum(graph.size(name) for name in graph.parameters)


WORK: dict[str, Callable[[str, Path], Figures]] = {
    "export": export,
    "onnxprune": by_onnxprune,
    "torch-pruning": by_torch_pruning,
    "onnxsim": by_onnxsim,
}


def isolated(tool: str, name: str, path: Path, timeout: float) -> Figures:
    """One tool on one network, in a process of its own; what went wrong is under "error"."""
    if tool in NEEDS and importlib.util.find_spec(NEEDS[tool]) is None:
        return {"error": "not installed"}
    command = [sys.executable, __file__, "--work", tool, "--path", str(path), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"over {timeout:g} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:100]}


def compare(name: str, timeout: float) -> Figures:
    """One network through all tools."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        made = isolated("export", name, path, timeout)
        if "error" in made:
            return {"model": name, **dict.fromkeys(NEEDS, made)}
        return {"model": name, **{tool: isolated(tool, name, path, timeout) for tool in NEEDS}}


def table(rows: list[Figures]) -> Table:
    made = Table(title="parameters kept and seconds at channels=0.5, local, align 1")
    made.add_column("model")
    for tool in NEEDS:
        made.add_column(tool, justify="right", overflow="fold")
    for row in rows:
        cells = [row[tool] for tool in NEEDS]
        texts = [c.get("error") or f"{c['kept']:.3f}  {c['seconds']:7.2f} s" for c in cells]
        made.add_row(row["model"], *texts)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="torchvision names, or timm:NAME")
    parser.add_argument("--timeout", type=float, default=150, help="seconds for one tool on one model")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(WORK[args.work](args.names[0], args.path)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = []
    for name in args.names or MODELS:
        with console.status(name):
            rows.append(compare(name, args.timeout))
    console.print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
