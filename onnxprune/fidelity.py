"""Fidelity: what a pruned model's outputs kept of the untouched original's. One feed's outputs are there at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, input_specs, rows, suited
from onnxprune.runtime import LEAN, Model, plain, run, session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
from onnxprune.parity import aligned, flat


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
        x, y, agree = aligned(a, b)
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
    specs = input_specs(b)
    sums: dict[str, _Sums] = {}
    samples = skipped = same = ranked = 0
    first = a.get_outputs()[0].name
    for feed in feeds:
        samples += rows(feed)
        left, right = dict(flat(run(a, feed))), dict(flat(run(b, suited(feed, specs))))
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
