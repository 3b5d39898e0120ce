"""Peak memory of every recipe of the zoo on a model, in sizes of the model's file.

Usage: python tools/bench_pass_memory.py [--data inputs.npz] [--only TEXT] [--timeout 3600] MODEL [-- OPTION...]

Each `onnxprune run` is a process of its own, `--no-validate`: what it and its children hold is the passes' own. The
bound is four times the file, and a quarter of a gigabyte for Python and its libraries. For recipes with data the batch
comes on top: the inputs, and twice (of the model as it was and as it is so far) what crosses the widest cut through the
model for all of them, as far as that waits in memory. Recipes that need data are left out where there are none. Options
after `--` go to `onnxprune run`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from math import prod
from pathlib import Path

import numpy as np
from onnx import helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.data import read  # noqa: E402
from onnxprune.graph import file_bytes, load  # noqa: E402
from onnxprune.opening import read_model  # noqa: E402
from onnxprune.parts import IN_MEMORY, Parts  # noqa: E402
from tools.bench_accuracy import Bench, Failed  # noqa: E402
from tools.zoo import RUN, recipes  # noqa: E402

TIMES = 4
LIBRARIES = 250e6


def batch(model: Path, data: str) -> float:
    """Bytes of inputs, and of what crosses the widest cut through the model, twice; see above."""
    feeds = list(read(data, read_model(model)).samples())
    graph = load(model, {name: value.shape for name, value in feeds[0].items()})  # sizes that are open, too
    given = sum(value.nbytes for feed in feeds for value in feed.values())
    parts, sizes = Parts(graph), dict[str, int]()
    for name, kind in graph.types.items():
        known = [s for s in graph.shapes.get(name) or () if isinstance(s, int)]
        if len(known) == len(graph.shapes.get(name) or "?"):
            sizes[name] = prod(known) * np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
    cuts = (parts.crossing(stop) for stop in range(1, len(graph.nodes)))
    widest = max((sum(sizes.get(n, 0) for n in cut) for cut in cuts), default=0)
    return given + 2 * min(widest * len(feeds), IN_MEMORY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", help="inputs, as for `onnxprune run`")
    parser.add_argument("--only", default="", help="recipes whose title has this in it")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one recipe")
    parser.add_argument("options", nargs="*", help="options of `onnxprune run`, after --")
    args = parser.parse_args()
    graph = load(args.model)
    size, more = file_bytes(graph), batch(args.model, args.data) if args.data else 0.0
    bound, failed = TIMES * size + LIBRARIES, False
    print(f"{args.model.name}: {size / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB, with data {more / 1e6:.0f} MB more")
    del graph
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.timeout)
        recipe, out = bench.folder / "recipe.toml", bench.folder / "made.onnx"
        for each in recipes().values():
            if (each.data and args.data is None) or args.only not in each.title:
                continue
            recipe.write_text(each.recipe, encoding="utf-8")
            data = ["--data", args.data] if each.data else []
            command = [*RUN, str(recipe), str(args.model), "-o", str(out), "--no-validate", "--quiet", *data]
            try:
                done = bench.call("run", [*command, *args.options])
                over = done.megabytes * 1e6 > bound + (more if each.data else 0.0)
                times = done.megabytes * 1e6 / size
                said = f"{done.megabytes:7.0f} MB {times:5.1f}x {done.seconds:7.1f} s{'  OVER' if over else ''}"
                failed |= over
            except Failed as error:
                said = f"FAILED  {error}"
            print(f"{each.title[:56]:56} {said}", flush=True)
            for file in bench.folder.glob("made.onnx*"):
                file.unlink()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
