"""How long the engine takes, stage by stage, next to reading and writing the same file, and its peak memory.

Usage: python tools/bench_engine.py [MODEL.onnx...] [--repeat 5] [--json FILE]

Without models it makes two of its own (a ResNet-50 and a DenseNet-201 in shape, with random weights). Imports
are not timed. Memory is the peak of a process of its own that prunes once without validation.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = ("load", "analysis", "scores", "plan", "cut")
MEGABYTE = 1e6


@dataclass
class Builder:
    """A convolutional network, node by node; every call returns the name of the new value."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array: NDArray[np.float32] = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        self.weights.append(numpy_helper.from_array(np.abs(array) if len(shape) == 1 else array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"n{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, inside: int, out: int, kernel: int, stride: int = 1, bias: bool = True) -> str:
        extra = [self.weight(out)] if bias else []
        pads = [kernel // 2] * 4
        weight = self.weight(out, inside, kernel, kernel)
        return self.op("Conv", x, weight, *extra, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def bn_relu(self, x: str, width: int) -> str:
        return self.op("Relu", self.op("BatchNormalization", x, *(self.weight(width) for _ in range(4))))

    def pool(self, x: str, kind: str, kernel: int) -> str:
        return self.op(kind, x, kernel_shape=[kernel] * 2, strides=[2, 2], pads=[(kernel - 1) // 2] * 4)

    def finish(self, x: str, width: int, path: Path) -> None:
        x = self.op("Flatten", self.op("GlobalAveragePool", x))
        y = self.op("Gemm", x, self.weight(1000, width), self.weight(1000), transB=1)
        data = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
        result = helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 1000])
        graph = helper.make_graph(self.nodes, path.stem, [data], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, path)


def resnet(path: Path, depths: tuple[int, ...] = (3, 4, 6, 3)) -> None:
    """Bottleneck blocks with residual sums, BatchNorms folded: ResNet-50."""
    net = Builder()
    x, width = net.pool(net.op("Relu", net.conv("x", 3, 64, 7, 2)), "MaxPool", 3), 64
    for stage, depth in enumerate(depths):
        inner = 64 << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            y = net.op("Relu", net.conv(x, width, inner, 1))
            y = net.op("Relu", net.conv(y, inner, inner, 3, stride))
            y = net.conv(y, inner, 4 * inner, 1)
            x = x if block else net.conv(x, width, 4 * inner, 1, stride)
            x, width = net.op("Relu", net.op("Add", y, x)), 4 * inner
    net.finish(x, width, path)


def densenet(path: Path, depths: tuple[int, ...] = (6, 12, 48, 32), growth: int = 32) -> None:
    """Dense blocks: every layer reads all before it: DenseNet-201."""
    net = Builder()
    x, width = net.pool(net.op("Relu", net.conv("x", 3, 64, 7, 2)), "MaxPool", 3), 64
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            y = net.conv(net.bn_relu(x, width), width, 4 * growth, 1)
            y = net.conv(net.op("Relu", y), 4 * growth, growth, 3, bias=False)
            x, width = net.op("Concat", x, y, axis=1), width + growth
        x = net.bn_relu(x, width)
        if stage < len(depths) - 1:
            x = net.pool(net.conv(x, width, width // 2, 1, bias=False), "AveragePool", 2)
            width //= 2
    net.finish(x, width, path)


def stages(path: Path, target: str, align: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """The engine's stages as functions without arguments, to be run in order."""
    from onnxprune import Limits, Options, allocate, couple, cut, load, make_plan, parse_target, score

    state: dict[str, Any] = {}

    def plan() -> None:
        limits = Limits(align)
        state["gone"] = allocate(state["units"], state["scores"], parse_target(target), "local", limits)
        state["plan"] = make_plan(state["units"], state["gone"])

    yield "load", lambda: state.update(graph=load(path))
    yield "analysis", lambda: state.update(units=couple(state["graph"], Options(align)))
    yield "scores", lambda: state.update(scores=score(state["units"], "l2"))
    yield "plan", plan
    yield "cut", lambda: state.update(model=cut(state["units"], state["plan"], state["gone"]))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(path: Path, target: str, align: int, repeat: int) -> dict[str, Any]:
    """Median seconds of every stage and of reading and writing the file, in turns; memory in megabytes."""
    engine: dict[str, list[float]] = {name: [] for name in STAGES}
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.onnx"
        for turn in range(repeat + 1):  # the first warms up: imports, the registry, the page cache
            io = seconds(lambda: onnx.save(onnx.load(path), copy))
            times = {name: seconds(run) for name, run in stages(path, target, align)}
            if turn:
                plain.append(io)
                for name, value in times.items():
                    engine[name].append(value)
    row: dict[str, Any] = {"model": path.stem, "megabytes": path.stat().st_size / MEGABYTE}
    row["load_save"] = statistics.median(plain)
    row |= {name: statistics.median(values) for name, values in engine.items()}
    # The engine's own work is the sum without reading; `with_load` adds that.
    row["sum"] = statistics.median(sum(t) for t in zip(*(engine[n] for n in STAGES[1:]), strict=True))
    row["with_load"] = statistics.median(sum(t) for t in zip(*engine.values(), strict=True))
    row["ratio"] = row["sum"] / row["load_save"]
    row["peak"] = peak(path, target, align)
    row["peak_ratio"] = row["peak"] / row["megabytes"]
    row["within"] = row["peak"] < 3 * row["megabytes"] + 300
    return row


def peak(path: Path, target: str, align: int) -> float:
    """Megabytes at the peak of a fresh process that reads, prunes and writes."""
    command = [sys.executable, __file__, "--peak", str(path), "--target", target, "--align", str(align)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def prune_once(path: Path, target: str, align: int) -> float:
    """Prune without validation in this process; its peak in megabytes."""
    from onnxprune import prune

    with tempfile.TemporaryDirectory() as folder:
        prune(path, target, scope="local", align=align, validate=False, out=Path(folder) / "out.onnx")
    return high_water() / MEGABYTE


def high_water() -> int:
    """Peak bytes of this process; Linux's `ru_maxrss` is no less than what the parent held at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a model, seconds to the millisecond."""
    made = Table(title="seconds (median)")
    made.add_column("model")
    columns = ["MB", "load+save", *STAGES, "with load", "sum", "/ load+save", "peak MB", "/ file", "< 3x+300"]
    for name in columns:
        made.add_column(name, justify="right")
    for row in rows:
        times = [f"{row[name]:.3f}" for name in ("load_save", *STAGES, "with_load", "sum")]
        memory = [f"{row['peak']:.0f}", f"{row['peak_ratio']:.2f}", "yes" if row["within"] else "NO"]
        made.add_row(row["model"], f"{row['megabytes']:.0f}", *times, f"{row['ratio']:.2f}", *memory)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--target", default="channels=0.5")
    parser.add_argument("--align", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the figures; - for the screen alone")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(prune_once(args.peak, args.target, args.align))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = [(resnet, Path(folder) / "resnet50.onnx"), (densenet, Path(folder) / "densenet201.onnx")]
        for build, path in () if args.models else made:
            build(path)
        paths = args.models or [path for _, path in made]
        rows = [measure(path, args.target, args.align, args.repeat) for path in paths]
    if args.json != "-":
        Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.json:
        text = json.dumps(rows, indent=2)
        print(text) if args.json == "-" else Path(args.json).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
