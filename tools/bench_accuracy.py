"""Accuracy against MACs kept: prune models to several shares in several ways, and evaluate every result.

Usage: python tools/bench_accuracy.py MODELS.toml --out rows.jsonl [--shares 0.75,0.5] [--seeds 0,1,2]
       [--variants default,none | all] [--models NAME,NAME] [--timeout 3600] [--retry]

MODELS.toml (or .json, with the same keys) says what the models are and how they are measured:

    [[model]]
    name = "classifier"
    path = "classifier.onnx"
    calibrate = "python calibrate.py {out} --seed {seed}"  # writes inputs, an .npz; or data = "inputs.npz"
    evaluate = "python evaluate.py {model}"  # its last line: a number, or a JSON object with "value"
    measure = "top-1 of 4000 labelled images"  # for the page; may be left out, as may the next
    options = ["--threads", "1"]  # for `onnxprune prune`

Paths count, and commands run, from the folder of that file. Every `onnxprune prune` is a process of its own. A run is
a row of JSON in the file of `--out`; one that is there is not done again, nor is the evaluation of its dense model. A
command that fails is a row, too: the last line of its standard error. tools/accuracy_page.py makes a page of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from math import isfinite
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.accuracy_page import VARIANTS, Key, Row, key, read  # noqa: E402

PRUNE = (sys.executable, "-m", "onnxprune", "prune")
POLL = 0.02  # seconds
WHOLE = {"ONNXPRUNE_CACHE": "off"}  # what a run takes must not depend on the runs before it


@dataclass(frozen=True)
class Model:
    """An entry of the file of models; `folder` is where its paths and commands count from."""

    name: str
    path: str
    evaluate: str
    folder: Path
    calibrate: str | None = None
    data: str | None = None
    measure: str = ""
    options: Sequence[str] = ()

    def place(self, path: str) -> Path:
        return self.folder / Path(path).expanduser()


@dataclass(frozen=True)
class Run:
    """One row to be."""

    model: Model
    variant: str
    seed: int
    share: float

    @property
    def options(self) -> list[str]:
        return [*VARIANTS[self.variant].options, *self.model.options, "--seed", str(self.seed)]

    @property
    def about(self) -> Row:
        """The part of its row that is known before."""
        row = {"model": self.model.name, "variant": self.variant, "seed": self.seed, "share": self.share}
        return row | {"measure": self.model.measure, "options": self.options, "processors": os.cpu_count()}


class Failed(Exception):
    """A command did not do what it is for; the message is one line."""


@dataclass(frozen=True)
class Done:
    """What a command said last, how long it took, and the most memory that it and its children held."""

    said: str
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Bench:
    """Where files go, how long a command may take, and what is made once for many runs."""

    folder: Path
    timeout: float
    made: dict[Key, Any] = field(default_factory=dict)

    def once(self, what: Key, make: Callable[[Path], Any]) -> Any:
        """What `make`, given a new file name, returned or raised when it was first asked."""
        if what not in self.made:
            try:
                self.made[what] = make(self.folder / f"data-{len(self.made)}.npz")
            except Failed as error:
                self.made[what] = error
        if isinstance(self.made[what], Failed):
            raise self.made[what]
        return self.made[what]

    def call(self, step: str, command: Sequence[str], folder: Path = ROOT) -> Done:
        """Run a command to its end; `Failed`, with the last line of its standard error, if that is not a good one."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            start = time.perf_counter()
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=os.environ | WHOLE
                )
            except OSError as error:
                raise Failed(f"{step}: {error}") from None
            code, peak = _end(process, self.timeout)
            seconds = time.perf_counter() - start
            if code:
                late = f"no result within {self.timeout:g} s" if seconds >= self.timeout else ""
                raise Failed(f"{step}: {late or _last(err) or f'ended with code {code}'}")
            return Done(_last(out), seconds, peak / 1e6)


def _end(process: subprocess.Popen[bytes], timeout: float) -> tuple[int, int]:
    """The exit code of a process, and the most bytes that it and what it started held together."""
    limit, most, ended = time.perf_counter() + timeout, 0, 0
    while not ended:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)  # of this one; `getrusage` is of all that have ended
        if not ended:
            most = max(most, _held(process.pid))
            if time.perf_counter() > limit:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(POLL)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, max(most, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _held(pid: int) -> int:
    """Bytes of a process and its children, and theirs, now; 0 where the system does not tell."""
    with suppress(OSError):  # it has ended meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") + sum(_held(int(child)) for child in children)
    return 0


def _last(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def filled(template: str, **words: str) -> list[str]:
    """A command from a template: `{out}` and the like are replaced, whatever their words contain."""
    parts = (os.path.expanduser(part) for part in shlex.split(template))
    return [re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), part) for part in parts]


def number(text: str) -> float:
    """The value that an evaluation printed: `0.93`, or `{"value": 0.93}`."""
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(text)
        if isfinite(value := float(found["value"] if isinstance(found, dict) else found)):
            return value
    raise Failed(f"evaluate: the last line is no number: {text[:200] or '(empty)'}")


def evaluated(bench: Bench, model: Model, path: Path) -> float:
    return number(bench.call("evaluate", filled(model.evaluate, model=str(path)), model.folder).said)


def inputs(bench: Bench, run: Run) -> Path:
    """The calibration inputs of a run; made once for each seed, and once more for each number of samples."""
    model, samples, seed = run.model, VARIANTS[run.variant].samples, str(run.seed)

    def made(out: Path) -> Path:
        if model.calibrate is None:
            return model.place(model.data or "")
        bench.call("calibrate", filled(model.calibrate, out=str(out), seed=seed), model.folder)
        return out

    def thinned(out: Path) -> Path:  # in a process: what this one ever held would count for those that it starts
        bench.call("samples", [sys.executable, __file__, "--thin", str(whole), str(out), str(samples), seed])
        return out

    whole: Path = bench.once((model.name, seed), made)
    return whole if samples is None else bench.once((model.name, seed, samples), thinned)


def thin(source: str, out: str, samples: str, seed: str) -> None:
    """Write some of the samples of an .npz, drawn by the seed."""
    import numpy as np

    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    order = np.random.default_rng(int(seed)).permutation(min(map(len, arrays.values())))
    if len(order) < int(samples):
        raise SystemExit(f"{samples} samples are wanted, and there are {len(order)}")
    chosen = np.sort(order[: int(samples)])
    np.savez(out, **{name: array[chosen] for name, array in arrays.items()})


def measured(bench: Bench, run: Run) -> Row:
    """One run, from calibration to evaluation; what went wrong is under "error"."""
    row, model = run.about, run.model
    source, out, record = model.place(model.path), bench.folder / "pruned.onnx", bench.folder / "record.json"
    try:
        row["dense"] = bench.once((model.name,), lambda _: evaluated(bench, model, source))
        files = ["-o", str(out), "--data", str(inputs(bench, run)), "--json", str(record), "--quiet"]
        options = ["--target", f"macs={run.share}", "--bench-seconds", "0", *run.options]
        done = bench.call("prune", [*PRUNE, str(source), *files, *options])
        row |= {"seconds": round(done.seconds, 2), "megabytes": round(done.megabytes, 1)}
        found = json.loads(record.read_text(encoding="utf-8"))
        row |= {"kept": found["macs"]["after"] / found["macs"]["before"], "recover": found["recover"]}
        row["distance"] = found.get("recovery", {}).get("distance")
        row["value"] = evaluated(bench, model, out)
    except Failed as error:
        row["error"] = str(error)[:300]
    for file in bench.folder.glob("pruned.onnx*"):
        file.unlink()
    return row


def models(path: Path) -> dict[str, Model]:
    """The models of a .toml or .json file, by name; the last of those that are called alike."""
    text, found = path.read_text(encoding="utf-8"), dict[str, Model]()
    for entry in (json.loads(text) if path.suffix == ".json" else tomllib.loads(text))["model"]:
        model = Model(**entry, folder=path.resolve().parent)
        if (model.calibrate is None) == (model.data is None):
            raise SystemExit(f"{model.name}: give either `calibrate`, a command, or `data`, a file")
        found[model.name] = model
    return found


def line(row: Row) -> str:
    """A run in one line."""
    name = f"{row['model'][:28]:28} {row['variant']:15} seed {row['seed']} macs {row['share']:<5g}"
    if "error" in row:
        return f"{name} FAILED  {row['error'][:120]}"
    cost = f"{row['seconds']:7.1f} s" + (f" {row['megabytes']:7.0f} MB" if "megabytes" in row else "")
    return f"{name} kept {row['kept']:.3f}  {row['dense']:.4f} -> {row['value']:.4f} {cost}"


def sweep(
    bench: Bench, runs: Sequence[Run], out: Path, retry: bool, measure: Callable[[Bench, Run], Row] = measured
) -> list[Row]:
    """Do the runs that are not in the file, and add them to it."""
    rows = read([out]) if out.exists() else []
    there = {key(row): row for row in rows if not (retry and "error" in row)}
    bench.made.update({(row["model"],): row["dense"] for row in rows if "dense" in row})
    for place, run in enumerate(runs, 1):
        if key(run.about) in there:
            continue
        row = there[key(run.about)] = measure(bench, run)
        print(f"{place}/{len(runs)} {line(row)}", flush=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return [there[key(run.about)] for run in runs]


def chosen(text: str, among: Collection[str]) -> list[str]:
    """Names of a list with commas; `all` of them."""
    wanted = list(among) if text == "all" else text.split(",")
    if unknown := [name for name in wanted if name not in among]:
        raise SystemExit(f"{', '.join(unknown)}: unknown; there are {', '.join(among)}")
    return wanted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="the models, .toml or .json; see the head of this tool")
    parser.add_argument("--out", type=Path, required=True, help="rows, a JSON object a line: read, and added to")
    parser.add_argument("--shares", default="0.9,0.75,0.6,0.5,0.35", help="of the MACs that may remain")
    parser.add_argument("--seeds", default="0,1,2", help="of calibration inputs, and of what `prune` draws")
    parser.add_argument("--variants", default="default,channel,bias,none,uniform", help=", ".join(["all", *VARIANTS]))
    parser.add_argument("--models", default="all", help="all, or some of the names in the file")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one command")
    parser.add_argument("--retry", action="store_true", help="also do again what failed")
    return parser.parse_args()


def main() -> int:
    if sys.argv[1:2] == ["--thin"]:
        thin(*sys.argv[2:])
        return 0
    args = arguments()
    there = models(args.file)
    seeds, shares = map(int, args.seeds.split(",")), map(float, args.shares.split(","))
    picked = chosen(args.models, there), shares, chosen(args.variants, VARIANTS)
    # Seed after seed: where it is stopped, every model has something.
    runs = [Run(there[name], way, seed, share) for seed, name, share, way in product(seeds, *picked)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(Bench(Path(folder), args.timeout), runs, args.out, args.retry)
    print(f"{len(rows)} runs, {sum('error' in row for row in rows)} failed")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
