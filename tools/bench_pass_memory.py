"""Peak memory of every recipe of the zoo on a model, in sizes of the model's file.

Usage: python tools/bench_pass_memory.py MODEL [--data inputs.npz] [--timeout 3600] [-- OPTION...]

Each `onnxprune run` is a process of its own, `--no-validate`: what it needs is the passes' own. The bound is four times
the file, and a quarter of a gigabyte for Python and its libraries; a batch of data comes on top. Recipes that need data
are left out where there are none. Options after `--` go to `onnxprune run`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.graph import file_bytes, load  # noqa: E402
from tools.bench_accuracy import Bench, Failed  # noqa: E402
from tools.zoo import RUN, recipes  # noqa: E402

TIMES = 4
LIBRARIES = 250e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", help="inputs, as for `onnxprune run`")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one recipe")
    parser.add_argument("options", nargs="*", help="options of `onnxprune run`, after --")
    args = parser.parse_args()
    size = file_bytes(load(args.model))
    bound, failed = TIMES * size + LIBRARIES, False
    print(f"{args.model.name}: {size / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.timeout)
        recipe, out = bench.folder / "recipe.toml", bench.folder / "made.onnx"
        for each in recipes().values():
            if each.data and args.data is None:
                continue
            recipe.write_text(each.recipe, encoding="utf-8")
            data = ["--data", args.data] if each.data else []
            command = [*RUN, str(recipe), str(args.model), "-o", str(out), "--no-validate", "--quiet", *data]
            try:
                done = bench.call("run", [*command, *args.options])
                over = done.megabytes * 1e6 > bound
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
