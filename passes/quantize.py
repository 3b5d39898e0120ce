"""Fewer bits after pruning: int8 or float16, by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import ModelProto

from onnxprune.errors import DataError, ModelError, OptionError, at_least, expressions, one_of
from onnxprune.feeds import Feed, rows
from onnxprune.graph import Graph, is_big, load
from onnxprune.passes import register
from onnxprune.problem import each
from onnxprune.quantized import account, halves, integers
from onnxprune.quantized.bodies import bodies
from onnxprune.quantized.choice import KEPT, UNFIT, Choice, check_float, choose, kept_by
from onnxprune.quantized.processor import saturates
from onnxprune.quantized.quiet import called, quiet, refusals
from onnxprune.quantized.restore import restore
from onnxprune.quantized.survival import check_survival
from onnxprune.quantized.working import Working, prepared, raised, working
from onnxprune.rules.base import Options
from onnxprune.runtime import LEAN, session
from onnxprune.steps import Context, Outcome
from onnxprune.tensors import copied

EVERY = {"mode", "keep", "ops"}
INTEGER = EVERY | {"weights", "per_channel", "reduce_range"}
USED = {
    "static": INTEGER | {"activations", "calibration", "samples", "symmetric"},
    "dynamic": INTEGER,
    "float16": EVERY | {"keep_io"},
}
DOUBTFUL = {"static": {}, "dynamic": integers.SLOW, "float16": halves.RECURRENT}  # what changes only on demand, and why


@register("quantize")
@dataclass(frozen=True)
class Quantize:
    """Fewer bits for weights and activations, by ONNX Runtime's own tools: int8 (static or dynamic) or float16.

    Attributes:
        mode: "static" takes the ranges of activations from data, "dynamic" from every run, "float16" needs none.
        weights: int8 or uint8.
        activations: of static: uint8 or int8, or uint16 or int16, which few processors are fast with.
        per_channel: a scale for each output channel of a weight, not one for all.
        reduce_range: weights of seven bits, for x86 processors without VNNI, where sums of products of eight bits do
            not fit; without it: as this processor needs it, where the provider is the CPU.
        symmetric: of static: zero points of activations in the middle, as TensorRT wants them.
        calibration: of static: how ranges are chosen: minmax, entropy or percentile.
        samples: of static: how many samples ranges are taken from, in whole batches; fewer, where there are fewer.
        keep: regular expression or several; nodes that match by name or by a tensor's name stay float.
        ops: operator types that may change; none: all that ONNX Runtime has a form for, without
            the convolutions of dynamic, which are many times slower so, and the LSTM, GRU and RNN of float16.
        keep_io: of float16: inputs and outputs stay float32.
    """

    settles: ClassVar[bool] = True

    mode: str = "static"
    weights: str = "int8"
    activations: str = "uint8"
    per_channel: bool = True
    reduce_range: bool | None = None
    symmetric: bool = False
    calibration: str = "minmax"
    samples: int = 128
    keep: str | Sequence[str] = ()
    ops: Sequence[str] = ()
    keep_io: bool = True

    def __post_init__(self) -> None:
        """Refuse what is wrong by itself.

        Raises:
            OptionError: an unknown word, a number out of range, an option of another mode.
        """
        words = {
            "mode": USED,
            "weights": ("int8", "uint8"),
            "activations": integers.TYPES,
            "calibration": integers.METHODS,
        }
        for name, known in words.items():
            one_of(f"quantize: {name} =", getattr(self, name), known)
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if unused := [name for name in given if name not in USED[self.mode]]:
            raise OptionError(f"quantize: {unused[0]} does nothing with mode = {self.mode!r}; leave it out")
        at_least("quantize: samples =", self.samples, 1)
        if self.weights == "uint8" and self.activations.startswith("int"):
            raise OptionError(
                f"quantize: weights = 'uint8' with activations = {self.activations!r}: ONNX Runtime has no such "
                "kernels; write weights = 'int8'"
            )
        expressions("quantize: keep =", self.keep)

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Write a copy, let the tools do their work on it, and put back what is the user's.

        Raises:
            ModelError: there is nothing to do, or ONNX Runtime's tools cannot.
            DataError: static quantization needs inputs.
            OptionError: `keep` or `ops` do not fit the model or ONNX Runtime.
        """
        check_float(graph)
        if self.mode == "static" and context.data is None:
            raise DataError(
                f"{graph.name}: quantize takes the ranges of activations from inputs; give --data, or mode = 'dynamic'"
            )
        if self.mode == "static" and is_big(graph):
            raise ModelError(f"{graph.name}: too big for static quantization; use mode = 'dynamic' or 'float16'")
        place = None if context.file is None else context.file.parent
        with context.stage("quantization"), tempfile.TemporaryDirectory(dir=place) as name:
            folder = Path(name)
            with quiet():
                first = working(graph, folder)
                work = first if self.mode == "float16" else prepared(raised(first, graph, self._opset()), graph.name)
                seen = load(work.path)
                keep = halves.staying(seen) if self.mode == "float16" else {}
                if self.mode == "dynamic" and self.per_channel:
                    keep |= dict.fromkeys(integers.vectors(seen), UNFIT)
                keep |= dict.fromkeys(kept_by(each(self.keep), [load(first.path), seen]), KEPT)
                choice = choose(seen, graph.name, keep, self.ops, self._fit(seen), DOUBTFUL[self.mode])
            feeds = self._feeds(graph, context) if self.mode == "static" else []
            with quiet():
                made, notes = self._made(work, choice, feeds, context, graph.name)
            restore(made, graph, work.names)
            notes |= account.versions(graph, made)
            notes["weight_bytes"] = {"before": account.weight_bytes(graph.proto), "after": account.weight_bytes(made)}
            trial = folder / "made.onnx"
            trial.write_bytes(made.SerializeToString())
            with called(graph.name, trial):
                session(trial, context.provider, context.threads, optimize=False, arena=False, config=LEAN)
            if self.mode == "float16" and context.provider == "cpu":
                check_survival(trial, graph.name)
            model = context.make(lambda store: copied(made, folder, store))
        return Outcome(model, {"quantize": notes}, said=account.said(notes))

    def _opset(self) -> int:
        """The operator set in which what is asked for can be said: scales for channels, integers of 16 bits."""
        if self.mode == "dynamic":
            return 11
        return 21 if self.activations in integers.BITS_16 else 13

    def _feeds(self, graph: Graph, context: Context) -> list[Feed]:
        """Batches with about so many samples in all, evenly spread over the data."""
        fit = context.samples(context.couple(context.before or graph, Options())).last.fit
        count = min(len(fit), max(1, self.samples // rows(fit[0])))
        return [fit[i] for i in np.unique(np.linspace(0, len(fit) - 1, count).round().astype(int))]

    def _fit(self, seen: Graph) -> set[str]:
        """Operators that the tools have a form for.

        Raises:
            OptionError: `ops` has another.
        """
        if self.mode == "float16":
            fit = {node.op for node in seen.nodes if not bodies(node.proto)} - halves.unfit_ops()
        else:
            fit = set(integers.static_ops() if self.mode == "static" else integers.dynamic_ops())
        if unknown := sorted(set(self.ops) - fit):
            raise OptionError(f"quantize: ops: {unknown[0]}: mode = {self.mode!r} has {', '.join(sorted(fit))}")
        return fit

    def _made(
        self, work: Working, choice: Choice, feeds: list[Feed], context: Context, name: str
    ) -> tuple[ModelProto, dict[str, Any]]:
        """The new model, its weights still in the folder of the copy, and what the record says of it."""
        notes: dict[str, Any] = {"mode": self.mode}
        stays = list(choice.stays)
        if self.mode == "float16":
            with refusals(name):
                made = halves.half(work.path, stays, self.keep_io)
            notes["keep_io"] = self.keep_io
            return made, notes | account.nodes(choice, choice.wanted, (), work.names)
        reduce = self.reduce_range
        if reduce is None:
            reduce = self.weights == "int8" and context.provider == "cpu" and saturates()
        grid = integers.Grid(self.weights, self.activations, self.per_channel, reduce, self.symmetric)
        ops, target = set(choice.wanted.values()), work.path.with_name("integers.onnx")
        with refusals(name):
            if self.mode == "static":
                integers.static(work.path, target, feeds, grid, ops, stays, self.calibration, context.provider)
                made = onnx.load(target, load_external_data=False)
            else:
                made = integers.dynamic(work.path, target, grid, ops, stays)
        notes |= {"weights": self.weights, "activations": self.activations, "reduce_range": reduce}
        if self.mode == "static":
            notes["calibration"] = {"method": self.calibration, "samples": sum(map(rows, feeds))}
        notes |= account.nodes(choice, *account.integers(choice, made), work.names)
        if not notes["quantized"]:
            raise ModelError(f"{name}: quantize finds nothing to do ({account.LEFT}); leave it out")
        return made, notes | {"scales": account.scales(made)}
