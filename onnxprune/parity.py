"""How two models compare.

*Parity* compares a pruned model with the masked original, which must be equal up to rounding. *Fidelity* compares it
with the untouched original, and says how much was lost. Both stream: one feed's outputs at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, random_feeds, read_header, rows
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
    left, right = dict(_flat(a)), dict(_flat(b))
    names = [*left, *(name for name in right if name not in left)]
    return Parity(tuple(_compare(name, left.get(name), right.get(name)) for name in names), tolerance)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Arrays by name, with the items of sequences and maps spelled out (`scores[0][label]`)."""
    for key, value in values.items():
        name = f"{prefix}[{key}]" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, list | tuple):
            yield from _flat(dict(enumerate(value)), name)
        elif value is not None:
            yield name, np.asarray(value)


def _compare(name: str, a: Array | None, b: Array | None) -> OutputParity:
    if a is None or b is None:
        return OutputParity(name, note=f"missing in the {'first' if a is None else 'second'} model")
    if a.shape != b.shape:
        return OutputParity(name, note=f"shape {list(b.shape)} instead of {list(a.shape)}")
    if a.dtype.kind in "OUS":
        return OutputParity(name, note="" if np.array_equal(a, b) else "texts differ")
    x, y, agree = _aligned(a, b)
    size, apart = float(np.abs(x).max(initial=0.0)), float(np.abs(x - y).max(initial=0.0))
    return OutputParity(name, apart, size, "" if agree else "NaN or infinity at other places")


def _aligned(a: Array, b: Array) -> tuple[Array, Array, bool]:
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
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    types = {t.data_type for t in proto.graph.initializer} | {v.type.tensor_type.elem_type for v in values}
    limits = [EXACT]
    for node in _nodes([*proto.graph.node, *(n for function in proto.functions for n in function.node)]):
        types |= {a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
        if re.search("QLinear|Quantize|Integer$", node.op_type):
            limits.append(EXACT_QUANTISED)
    formats = {onnx.TensorProto.FLOAT16: EXACT_FLOAT16, onnx.TensorProto.BFLOAT16: EXACT_BFLOAT16}
    return max(limits + [limit for kind, limit in formats.items() if kind in types])


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            yield from (inner for graph in attribute.graphs for inner in _nodes(graph.node))


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
    wanted = [run(ready, feed) for feed in given]
    del ready
    ready = session(pruned, provider, threads, optimize=False, arena=False, config=LEAN)
    worst: dict[str, OutputParity] = {}
    for feed, reference in zip(given, wanted, strict=True):
        for found in compare(reference, run(ready, feed)).outputs:
            worst[found.name] = worst.get(found.name, found) | found
    return Parity(tuple(worst.values()), tolerance(masked), len(given))


def rounding(
    masked: Model, feeds: Iterable[Feed], provider: str = "cpu", threads: int | None = None
) -> dict[str, OutputParity]:
    """How far a model is from itself, output by output, when ONNX Runtime's optimisations sum in another order.

    Raises:
        ModelError, ProviderError: the model does not load or run.
    """
    given = list(feeds)
    plainly = [run(session(masked, provider, threads, optimize=False, arena=False, config=LEAN), f) for f in given]
    ready = session(masked, provider, threads, arena=False, config=LEAN)
    found: dict[str, OutputParity] = {}
    for feed, reference in zip(given, plainly, strict=True):
        for output in compare(reference, run(ready, feed)).outputs:
            found[output.name] = found.get(output.name, output) | output
    return found


# Fidelity


@dataclass(frozen=True)
class Fidelity:
    """What a pruned model's outputs kept of the original's, over all samples, for the worst output.

    Integer outputs count only where no output is a float. All is NaN where no output could be compared.

    Attributes:
        max_abs: largest difference; infinite if NaN or infinity turn up at other places.
        cosine: similarity of direction; 0 in that case.
        sqnr_db: signal to noise in decibels; infinite if nothing differs, minus infinity in that case.
        top1_agreement: share of rows with the same largest class, where the first output is [N, classes].
        samples: rows of the first input.
        skipped: outputs whose shape differed between the models (after a NonMaxSuppression, say).
    """

    max_abs: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is infinite or not a number is None."""
        result: dict[str, Any] = plain(self)
        return result


@dataclass
class _Sums:
    """Running sums over one output, in float64."""

    is_float: bool
    dot: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0

    def add(self, a: Array, b: Array) -> None:
        x, y, agree = _aligned(a, b)
        x, y = x.ravel(), y.ravel()
        error = x - y
        self.dot += float(x @ y)
        self.aa += float(x @ x)
        self.bb += float(y @ y)
        self.noise += float(error @ error) if agree else math.inf
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)) if agree else math.inf)

    @property
    def cosine(self) -> float:
        if not self.aa or not self.bb or self.noise == math.inf:
            return float(self.aa == self.bb and self.noise < math.inf)
        return self.dot / math.sqrt(self.aa) / math.sqrt(self.bb)

    @property
    def sqnr_db(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.aa / self.noise) if self.aa and self.noise < math.inf else -math.inf


def fidelity(
    original: Model | InferenceSession,
    pruned: Model | InferenceSession,
    feeds: Iterable[Feed],
    provider: str = "cpu",
    threads: int | None = None,
) -> Fidelity:
    """Compare two models on `feeds`, one at a time; sessions may be passed instead of models.

    Raises:
        ModelError, ProviderError: a model does not load or run.
        DataError: `feeds` is empty.
    """
    models: tuple[Any, Any] = (original, pruned)
    a, b = (m if hasattr(m, "run") else session(m, provider, threads, arena=False, config=LEAN) for m in models)
    sums: dict[str, _Sums] = {}
    samples = skipped = same = ranked = 0
    first = a.get_outputs()[0].name
    for feed in feeds:
        samples += rows(feed)
        left, right = dict(_flat(run(a, feed))), dict(_flat(run(b, feed)))
        for name, x in left.items():
            y = right.get(name)
            if y is None or y.shape != x.shape:
                skipped += 1
            elif x.dtype.kind not in "OUS":
                sums.setdefault(name, _Sums(x.dtype.kind not in "iub")).add(x, y)
                if name == first and x.ndim == 2 and x.shape[1] > 1 and sums[name].is_float:
                    ranked += len(x)
                    same += int((x.argmax(1) == y.argmax(1)).sum())
    if not samples:
        raise DataError("fidelity needs at least one feed and got none; check the data")
    counted = [s for s in sums.values() if s.is_float] or list(sums.values())
    return Fidelity(
        max_abs=max((s.max_abs for s in counted), default=math.nan),
        cosine=min((s.cosine for s in counted), default=math.nan),
        sqnr_db=min((s.sqnr_db for s in counted), default=math.nan),
        top1_agreement=same / ranked if ranked else None,
        samples=samples,
        skipped=skipped,
    )
