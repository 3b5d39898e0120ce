"""Peak memory of `onnxprune` on a model of several gigabytes, and whether the result is exact.

Usage: python tools/bench_memory.py [--gigabytes 4] [--float16] [--target params=0.6] [--folder DIR] [--json FILE]

Makes a decoder-only transformer with external weights, written tensor by tensor, and lets `inspect`, `prune` and
`apply` have it, each in a process of its own that is watched meanwhile. Other options are handed to `prune`.

*Anonymous* memory is what the process needs. *Resident* also counts the mapped pages of the models' files, which the
system may drop at any time. The bound: no more than the model's file, the largest tensors in flight (one as it is, cut
along one axis, and cut along both) and 1 GB. The result is compared, on a short sequence, with the original in which
weights are set to zero here, from the plan alone. Needs four times the model's size on the disk; all of it is removed.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onnxprune.tensors import Store, carry, fill, frame, read_tensor
from onnxprune.writing import stream

GIGABYTE = 1e9
SLACK = 1e9  # what the bound allows besides the file and the tensors in flight
HEAD = 64
FIELDS = {"anonymous": "RssAnon", "mapped": "RssFile"}


def decoder(path: Path, gigabytes: float, dtype: type[Any] = np.float32) -> Path:
    """Write a decoder-only transformer of about that size, tensor by tensor.

    RMSNorm, causal attention with rotary-free heads, SwiGLU and an embedding that is not tied.
    """
    width = 2048 if gigabytes >= 1 else 256
    vocabulary, heads, inner = 16 * width, width // HEAD, 4 * width
    layer = 4 * width * width + 3 * width * inner + 2 * width
    layers = max(1, round((gigabytes * GIGABYTE / np.dtype(dtype).itemsize - 2 * vocabulary * width) / layer))
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    block = rng.standard_normal(1 << 20, dtype=np.float32)

    def make(store: Store) -> ModelProto:
        nodes: list[NodeProto] = []
        weights: list[TensorProto] = []

        def weight(name: str, *shape: int) -> str:
            array = _cheap(block, len(weights), shape, 1 / np.sqrt(shape[0])).astype(dtype)
            fill(tensor := TensorProto(), TensorProto(data_type=elem), name, array, store)
            weights.append(tensor)
            return name

        def const(name: str, value: Any) -> str:
            weights.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        def op(kind: str, *inputs: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(kind, list(inputs), [f"v{len(nodes)}"], f"n{len(nodes)}", **attributes))
            return str(nodes[-1].output[0])

        def norm(x: str, name: str) -> str:
            size = op("Sqrt", op("Add", op("ReduceMean", op("Mul", x, x), axes=[-1]), "tiny"))
            return op("Mul", op("Div", x, size), const(name, np.ones(width, dtype)))

        def split(x: str) -> str:
            return op("Transpose", op("Reshape", x, "heads"), perm=[0, 2, 1, 3])

        const("tiny", dtype(1e-5)), const("scale", dtype(HEAD**-0.5)), const("one", np.int64(1))
        const("heads", np.array([0, 0, heads, HEAD])), const("joined", np.array([0, 0, width]))
        length = op("Gather", op("Shape", "ids"), "one")
        square = op("Concat", op("Unsqueeze", length, const("first", [0])), op("Unsqueeze", length, "first"), axis=0)
        hidden = op("Trilu", op("Expand", const("masked", dtype(-1e4)), square), "one")
        x = op("Gather", weight("embedding", vocabulary, width), "ids")
        for i in range(layers):
            y = norm(x, f"l{i}.norm1")
            q, k, v = (split(op("MatMul", y, weight(f"l{i}.{part}", width, width))) for part in "qkv")
            logits = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), "scale")
            mixed = op("MatMul", op("Softmax", op("Add", logits, hidden), axis=-1), v)
            mixed = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), "joined")
            x = op("Add", x, op("MatMul", mixed, weight(f"l{i}.o", width, width)))
            y = norm(x, f"l{i}.norm2")
            gate, up = (op("MatMul", y, weight(f"l{i}.{part}", width, inner)) for part in ("gate", "up"))
            y = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
            x = op("Add", x, op("MatMul", y, weight(f"l{i}.down", inner, width)))
        y = op("MatMul", norm(x, "norm"), weight("head", width, vocabulary))
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
        out = helper.make_tensor_value_info(y, elem, ["batch", "sequence", vocabulary])
        graph = helper.make_graph(nodes, "decoder", [ids], [out], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return stream(path, make)


def _cheap(block: NDArray[np.float32], seed: int, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    """Numbers that differ from row to row, and from tensor to tensor, without drawing each one."""
    rng = np.random.default_rng(seed)
    rows = [np.resize(np.roll(block, int(rng.integers(block.size))), shape[1]) for _ in range(16)]
    array = np.stack(rows)[rng.integers(16, size=shape[0])]
    array *= rng.uniform(0.5, 1.5, (shape[0], 1)).astype(np.float32) * np.float32(scale)
    array *= rng.uniform(0.5, 1.5, shape[1]).astype(np.float32)
    return array


def watched(command: list[str]) -> dict[str, float]:
    """Run a command to its end: seconds, and the peaks of its memory in bytes (Linux)."""
    peaks = dict.fromkeys((*FIELDS, "resident"), 0.0)
    started = time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            for name, value in _memory(process.pid):
                peaks[name] = max(peaks[name], value)
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - started, **peaks}


def _memory(pid: int) -> Iterator[tuple[str, float]]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:  # it is gone
        return
    said = dict(line.split(":", 1) for line in lines)
    if "VmHWM" in said:  # the peak of the whole resident memory is kept by the system
        yield "resident", float(said["VmHWM"].split()[0]) * 1024
        for name, field in FIELDS.items():
            yield name, float(said[field].split()[0]) * 1024


def in_flight(before: Path, after: Path) -> float:
    """Bytes of the tensors that a cut may hold at once: the largest one, cut along one axis, and cut along both."""
    large = max(_sizes(before).values())
    return 2.0 * large + max(_sizes(after).values())


def _sizes(path: Path) -> dict[str, int]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {t.name: helper.tensor_dtype_to_np_dtype(t.data_type).itemsize * int(np.prod(t.dims)) for t in tensors}


def masked(model: Path, plan: Path, path: Path) -> Path:
    """The original with zeros where the plan drops something, tensor by tensor."""
    kept = json.loads(plan.read_text())["kept"]
    source = onnx.load(model, load_external_data=False)

    def make(store: Store) -> ModelProto:
        made = frame(source)
        for tensor in source.graph.initializer:
            target = made.graph.initializer.add()
            if tensor.name not in kept:
                carry(target, tensor, tensor.name, model.parent, store)
                continue
            array = np.array(read_tensor(tensor, model.parent))
            for axis, indices in kept[tensor.name].items():
                gone = np.setdiff1d(np.arange(array.shape[int(axis)]), indices)
                np.moveaxis(array, int(axis), 0)[gone] = 0
            fill(target, tensor, tensor.name, array, store)
        return made

    return stream(path, make)


def difference(a: Path, b: Path) -> float:
    """The largest difference of two models' outputs on a short sequence, relative to the largest output."""
    from onnxprune.runtime import LEAN, run, session

    feed = {"ids": np.random.default_rng(0).integers(0, 1000, (1, 12))}
    outputs = []
    for path in (a, b):
        ready = session(path, optimize=False, arena=False, config=LEAN)
        outputs.append(next(iter(run(ready, feed).values())))
        del ready
    left, right = (output.astype(np.float64) for output in outputs)
    return float(np.abs(left - right).max() / np.abs(left).max())


def measure(folder: Path, args: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """All figures, and those of every verb."""
    model, out, again, plan, record = (
        folder / n for n in ("big.onnx", "small.onnx", "again.onnx", "plan.json", "record.json")
    )
    decoder(model, args.gigabytes, np.float16 if args.float16 else np.float32)
    verbs = {
        "inspect": ["inspect", str(model), "--quiet"],
        "prune": ["prune", str(model), "-o", str(out), "--target", args.target, "--plan", str(plan)],
        "apply": ["apply", str(model), str(plan), "-o", str(again), "--no-validate", "--quiet"],
    }
    verbs["prune"] += ["--json", str(record), *options]
    runs = {verb: watched([sys.executable, "-m", "onnxprune", *words]) for verb, words in verbs.items()}
    size, flight = (float(sum(p.stat().st_size for p in folder.glob(f"{model.name}*"))), in_flight(model, out))
    for run in runs.values():
        run["within"] = max(size + run["anonymous"], run["resident"]) <= size + flight + SLACK
    said = json.loads(record.read_text())
    same = filecmp.cmp(f"{out}.data", f"{again}.data", shallow=False)
    return {
        "file": size,
        "written": float(sum(p.stat().st_size for p in folder.glob(f"{out.name}*"))),
        "in_flight": flight,
        "verbs": runs,
        "within": all(run["within"] for run in runs.values()),
        "stages": said["seconds"],
        "parity": said.get("parity", {}).get("relative"),
        "same": same,
        "difference": difference(masked(model, plan, folder / "masked.onnx"), out),
    }


def show(row: dict[str, Any]) -> None:
    """The figures, a line each."""
    for name in ("file", "written", "in_flight"):
        print(f"{name:>10}  {row[name] / GIGABYTE:.3f} GB")
    for verb, run in row["verbs"].items():
        memory = ", ".join(f"{name} {run[name] / GIGABYTE:.3f} GB" for name in (*FIELDS, "resident"))
        print(f"{verb:>10}  {memory}, {run['seconds']:.1f} s, bound {'held' if run['within'] else 'NOT HELD'}")
    print(f"{'stages':>10}  {', '.join(f'{stage} {seconds:.1f} s' for stage, seconds in row['stages'].items())}")
    print(f"{'exactness':>10}  {row['difference']:.1e} of the largest output (the run itself says {row['parity']})")
    print(f"{'replay':>10}  {'the same weights' if row['same'] else 'OTHER WEIGHTS'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "", allow_abbrev=False)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--float16", action="store_true")
    parser.add_argument("--target", default="params=0.6")
    parser.add_argument("--folder", type=Path, help="where the models go for the time being")
    parser.add_argument("--json", metavar="FILE", type=Path)
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        row = measure(Path(folder), args, options)
    show(row)
    if args.json:
        args.json.write_text(json.dumps(row, indent=2), encoding="utf-8")
    return 0 if row["within"] and row["same"] and row["difference"] < (1e-2 if args.float16 else 1e-4) else 1


if __name__ == "__main__":
    sys.exit(main())
