"""Parity: a pruned model must be equal to the masked original, up to rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, input_specs, random_feeds, read_header, suited
from onnxprune.formats import every_node, formats
from onnxprune.runtime import LEAN, Model, plain, run, session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Largest relative difference of two models that compute the same function in float32; rounding stays far
# below.
EXACT = 1e-4
# Rounding to 11 or 8 bits at every node, or a rounding that tips over in a quantised model, moves outputs
# further.
EXACT_FLOAT16, EXACT_BFLOAT16, EXACT_QUANTISED = 1e-2, 5e-2, 5e-2
# Differences up to this say nothing: sigmoids and exponentials are approximated to about 1e-7.
NOISE = 2.0**-20


@dataclass(frozen=True)
class OutputParity:
    """The largest difference of one output and the largest magnitude of its reference, over finite entries.

    A `note` says what cannot be put in numbers: another shape, NaN or infinity at other places.
    """

    name: str
    max_abs: float = 0.0
    max_ref: float = 0.0
    note: str = ""

    @property
    def relative(self) -> float:
        """Difference over magnitude: infinite if there is a note, 1 where a reference of zeros is missed."""
        if self.note:
            return math.inf
        return self.max_abs / self.max_ref if self.max_ref else float(self.max_abs > 0)

    @property
    def is_noise(self) -> bool:
        """Whether the difference is below what approximations of functions differ by."""
        return not self.note and self.max_abs <= NOISE

    def __or__(self, other: OutputParity) -> OutputParity:
        """The worse of two runs."""
        worst = max(self.max_abs, other.max_abs), max(self.max_ref, other.max_ref)
        return OutputParity(self.name, *worst, self.note or other.note)


@dataclass(frozen=True)
class Parity:
    """How far two models differ that should compute the same function; each output on its own scale."""

    outputs: tuple[OutputParity, ...]
    tolerance: float = EXACT
    feeds: int = 1

    @property
    def max_abs(self) -> float:
        """Largest difference of any output."""
        return max((o.max_abs for o in self.outputs), default=0.0)

    @property
    def max_ref(self) -> float:
        """Largest magnitude of any reference output."""
        return max((o.max_ref for o in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        """Largest relative difference of any output."""
        return max((o.relative for o in self.outputs), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every output's relative difference is within the tolerance, or lost in the noise."""
        return all(o.relative <= self.tolerance or o.is_noise for o in self.outputs)

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Outputs that say nothing: their reference was (nearly) zero, empty or not finite throughout."""
        silent = (
            o for o in self.outputs if (not o.note and not o.max_ref) or (o.relative > self.tolerance and o.is_noise)
        )
        return tuple(o.name for o in silent)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an infinite difference is None, and `exact` is then false."""
        names = ("max_abs", "max_ref", "relative", "exact", "vacuous")
        outputs = [plain(o) | {"relative": plain(o.relative)} for o in self.outputs]
        values: dict[str, Any] = plain({name: getattr(self, name) for name in names})
        return values | {"tolerance": self.tolerance, "feeds": self.feeds, "outputs": outputs}


def compare(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float = EXACT) -> Parity:
    """Compare the outputs of one run with those of the reference run `a`, by name."""
    left, right = dict(flat(a)), dict(flat(b))
    names = [*left, *(name for name in right if name not in left)]
    return Parity(tuple(_compare(name, left.get(name), right.get(name)) for name in names), tolerance)


def flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Arrays by name, with the items of sequences and maps spelled out (`scores[0][label]`)."""
    for key, value in values.items():
        name = f"{prefix}[{key}]" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif isinstance(value, list | tuple):
            yield from flat(dict(enumerate(value)), name)
        elif value is not None:
            yield name, np.asarray(value)


def _compare(name: str, a: Array | None, b: Array | None) -> OutputParity:
    if a is None or b is None:
        return OutputParity(name, note=f"missing in the {'first' if a is None else 'second'} model")
    if a.shape != b.shape:
        return OutputParity(name, note=f"shape {list(b.shape)} instead of {list(a.shape)}")
    if a.dtype.kind in "OUS":
        return OutputParity(name, note="" if np.array_equal(a, b) else "texts differ")
    x, y, agree = aligned(a, b)
    size, apart = float(np.abs(x).max(initial=0.0)), float(np.abs(x - y).max(initial=0.0))
    return OutputParity(name, apart, size, "" if agree else "NaN or infinity at other places")


def aligned(a: Array, b: Array) -> tuple[Array, Array, bool]:
    """The entries that are finite in both, in float64, and whether the other entries agree."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.all():
        return x, y, True
    agree = np.array_equal(x[~finite], y[~finite], equal_nan=True)
    return x[finite], y[finite], agree


def tolerance(model: Model) -> float:
    """The relative difference below which two runs of one function in this model's number formats are equal.

    `EXACT` for float32 and float64. Float16, bfloat16 and quantised models need more (`EXACT_FLOAT16`, ...),
    because two orders of summation round to different neighbours at every node. For a sharp verdict check the
    float32 model.
    """
    proto = read_header(model)
    kinds, limits = formats(proto), [EXACT]
    if any(re.search("QLinear|Quantize|Integer$", node.op_type) for node in every_node(proto)):
        limits.append(EXACT_QUANTISED)
    rough = {onnx.TensorProto.FLOAT16: EXACT_FLOAT16, onnx.TensorProto.BFLOAT16: EXACT_BFLOAT16}
    return max(limits + [limit for kind, limit in rough.items() if kind in kinds])


def parity(
    masked: Model,
    pruned: Model,
    feeds: Iterable[Feed] | None = None,
    provider: str = "cpu",
    threads: int | None = None,
) -> Parity:
    """Compare a pruned model with the original whose removed weights are zero; the worst over all feeds.

    Graph optimisations are off, so that both models run node by node and only the order of summation differs. One model
    is in memory at a time; the outputs of the first wait for those of the second, so give few feeds.

    Raises:
        ModelError, ProviderError: a model does not load or run.
        DataError: `feeds` is empty, or left out and an input cannot be made up (see `random_feeds`).
    """
    ready = session(masked, provider, threads, optimize=False, arena=False, config=LEAN)
    given = random_feeds(ready) if feeds is None else list(feeds)
    if not given:
        raise DataError("parity needs at least one feed and got none; leave `feeds` out for a random one")
    wanted = list(_answers(ready, given))
    del ready
    ready = session(pruned, provider, threads, optimize=False, arena=False, config=LEAN)
    return Parity(tuple(_worst(wanted, _answers(ready, given)).values()), tolerance(masked), len(given))


def rounding(
    masked: Model, feeds: Iterable[Feed], provider: str = "cpu", threads: int | None = None
) -> dict[str, OutputParity]:
    """How far a model is from itself, output by output, when ONNX Runtime's optimisations sum in another order.

    Raises:
        ModelError, ProviderError: the model does not load or run.
    """
    given = list(feeds)
    ready = session(masked, provider, threads, optimize=False, arena=False, config=LEAN)
    plainly = list(_answers(ready, given))
    del ready
    return _worst(plainly, _answers(session(masked, provider, threads, arena=False, config=LEAN), given))


def _answers(ready: InferenceSession, feeds: Iterable[Feed]) -> Iterator[dict[str, Any]]:
    """What a model makes of each feed, with floats in the format that it takes: a pass may have changed that."""
    specs = input_specs(ready)
    return (run(ready, suited(feed, specs)) for feed in feeds)


def _worst(references: Iterable[Mapping[str, Any]], answers: Iterable[Mapping[str, Any]]) -> dict[str, OutputParity]:
    """The largest difference of each output over all runs."""
    found: dict[str, OutputParity] = {}
    for reference, answer in zip(references, answers, strict=True):
        for output in compare(reference, answer).outputs:
            found[output.name] = found.get(output.name, output) | output
    return found
