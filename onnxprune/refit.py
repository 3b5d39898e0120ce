"""One layer of a cut model: the repairs that are tried, and the one that is best on samples it was not fitted to.

- none: the weights as they are;
- bias: a new bias alone;
- channel: the C x C map of lost channels onto kept ones, folded into every tap;
- full: least squares on sampled im2col rows, drawn to the weights or to the map.

Maps and least squares are tried at several ridges: between them lies everything from interpolation of a few samples to
hardly a change. What is fitted varies less than its targets do, by what it cannot explain; over many layers signals
fade. Results may be given their variance back (`rescale`), which no error of a single layer would ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer
from onnxprune.patch import NOTHING, Patch
from onnxprune.solve import at_once, error, ridges

Array = NDArray[Any]
Floats = NDArray[np.float64]
Centred = tuple[Floats, Floats, float]

ROWS = 16384  # im2col rows that a layer is fitted to, as far as there are so many
FEATURES = 2560  # with more than these, the map has to do
GROWTH = 4.0  # the most that a result grows to vary as the original's; one that nearly stands still stays as it is
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # in units of the features' variances


@dataclass(frozen=True)
class Layer:
    """What became of a layer: the repair that was chosen, and the error of its result before and after.

    Errors are relative to the variance of the original's result; `before` and `after` on samples that it was not fitted
    to, `fit` on those that it was: the calibration loss, which lies where samples are few. None: nothing was fitted.
    """

    node: str
    method: str
    ridge: float | None
    before: float
    after: float
    fit: float | None = None


@dataclass(eq=False)
class Moments:
    """Sums over rows of features [groups, F] and targets [groups, O], and of their products: yy is [groups, O]."""

    count: int = 0
    f: Any = 0.0
    ff: Any = 0.0
    y: Any = 0.0
    yf: Any = 0.0
    yy: Any = 0.0

    def add(self, features: Array, targets: Array) -> None:
        """More rows: [rows, groups, F] and [rows, groups, O]; products in their type, sums in float64."""
        self.count += len(features)
        x, y = (np.ascontiguousarray(np.moveaxis(a, 0, 1)) for a in (features, targets))
        self.f = self.f + x.sum(axis=1, dtype=np.float64)
        self.y = self.y + y.sum(axis=1, dtype=np.float64)
        self.ff = self.ff + x.swapaxes(1, 2) @ x
        self.yf = self.yf + y.swapaxes(1, 2) @ x
        self.yy = self.yy + np.square(y, dtype=np.float64).sum(axis=1)

    def __add__(self, other: Moments) -> Moments:
        """Of all rows."""
        return Moments(*(getattr(self, n) + getattr(other, n) for n in ("count", "f", "ff", "y", "yf", "yy")))

    def only(self, targets: slice) -> Moments:
        """With some of the targets."""
        if not self.count:
            return self
        return replace(self, y=self.y[:, targets], yf=self.yf[:, targets], yy=self.yy[:, targets])

    def centred(self, free: bool) -> Centred:
        """Means of f fᵀ, y fᵀ and yᵀ y; about the means of f and y where a bias is free."""
        n = max(self.count, 1)
        gram, cross, power = (np.asarray(a, dtype=np.float64) / n for a in (self.ff, self.yf, self.yy))
        if free:
            f, y = self.f / n, self.y / n
            gram = gram - f[:, :, None] * f[:, None, :]
            cross = cross - y[:, :, None] * f[:, None, :]
            power = power - np.square(y)
        return gram, cross, float(np.sum(power))

    def offset(self, w: Floats) -> Floats:
        """[groups, O]: the bias with which W is right in the mean."""
        n = max(self.count, 1)
        return np.asarray((self.y - np.einsum("gof,gf->go", w, self.f)) / n)

    def faded(self, w: Floats) -> Floats:
        """[groups, O]: by what W x has to grow to vary as much as the targets do (Jordan et al. 2023, REPAIR)."""
        n = max(self.count, 1)
        gram, _, _ = self.centred(True)
        made = np.einsum("gof,gof->go", w @ gram, w)
        wanted = np.maximum(self.yy / n - np.square(self.y / n), 0.0)
        ratio = np.divide(wanted, made, out=np.ones_like(made), where=made > wanted / GROWTH**2)
        return np.asarray(np.sqrt(np.maximum(ratio, 1.0)))


class _Repair(NamedTuple):
    """Weights [groups, O, F] and how they came about."""

    method: str
    ridge: float | None
    w: Floats
    prior: Floats | None = None


class Refit:
    """Collects rows of one layer, then repairs it."""

    def __init__(
        self,
        whole: Consumer,
        cut: Consumer,
        kept: tuple[Any, Any],
        samples: int,
        method: str,
        rng: np.random.Generator,
        rescale: bool = False,
        workers: int = 1,
    ) -> None:
        """Nothing is collected yet.

        Args:
            whole: the layer in the original.
            cut: the same layer in the cut model.
            kept: the channels of its input and of its result that the cut model has.
            samples: that will come.
            method: the most that is tried.
            rng: draws places.
            rescale: give every result the variance that the original's has.
            workers: repairs that are tried at once.
        """
        self.rescale, self.workers = rescale, workers
        self.whole, self.cut, self.rng = whole, cut, rng
        self.kept_x, self.kept_y = kept
        groups, self.outputs, channels, self.taps = cut.weights.shape
        features = channels * self.taps
        self.each = max(1, -(-ROWS // max(samples, 1)))
        self.free = cut.bias is not None
        self.rows = Moments(), Moments()  # to fit to, to choose with
        self.maps = Moments(), Moments()  # of channels alone, where there are several taps
        self.maps_too = method in ("channel", "full")
        self.fits_too = method == "full" and features <= FEATURES
        self.plain = cut.weights.reshape(groups, self.outputs, -1)

    def add(self, choosing: bool, x: Array, y: Array, thin: Array) -> None:
        """A batch: the original's input and result, and the cut model's input."""
        places, groups = self.cut.places(thin.shape, y.shape, self.each, self.rng), self.cut.groups
        features = self.cut.features(thin, places)
        rows = len(features)
        targets = self.whole.targets(y, places)[:, self.kept_y].reshape(rows, groups, -1)
        if self.maps_too and self.taps == 1:  # the channels of the original are targets beside its results
            targets = np.concatenate([targets, self.whole.features(x, places)[..., 0]], axis=2)
        self.rows[choosing].add(features.reshape(rows, groups, -1), targets)
        if self.maps_too and self.taps > 1:
            wide, narrow = (np.moveaxis(v, self.whole.x.axis, -1) for v in (x, thin))
            wide, narrow = wide.reshape(-1, wide.shape[-1]), narrow.reshape(-1, narrow.shape[-1])
            drawn = np.sort(self.rng.permutation(len(wide))[: self.each * max(1, x.shape[0])])
            wide, narrow = (v[drawn].astype(np.float32, copy=False) for v in (wide, narrow))
            self.maps[choosing].add(narrow.reshape(len(drawn), groups, -1), wide.reshape(len(drawn), groups, -1))

    def best(self, everything: bool) -> tuple[Patch, Layer]:
        """The best repair, and what is said about it.

        Args:
            everything: fit the chosen repair once more, to all rows.
        """
        mine, others = slice(self.outputs), slice(self.outputs, None)
        fit, check = (m.only(mine) for m in self.rows)
        maps = self.maps if self.taps > 1 else tuple(m.only(others) for m in self.rows)
        fit_map = maps[0]
        if not check.count or not fit.count:  # too few samples to hold some out
            fit = check = fit + check
            fit_map = maps[0] + maps[1]
        centred, test = fit.centred(self.free), check.centred(self.free)

        def risk(w: Floats, offset: Floats) -> float:
            lean = np.square(check.offset(w) - offset).sum() if self.free else 0.0
            return error(w, *test) + float(lean)

        before = risk(self.plain, self.cut.offset.reshape(self.plain.shape[:2]))
        tried = [_Repair("bias", None, self.plain)] if self.free else []
        if self.maps_too:
            tried += self._mapped(fit_map, RIDGES)
        risks = self._each(lambda repair: risk(repair.w, fit.offset(repair.w)), tried)
        if self.fits_too:
            best = tried[int(np.argmin(risks))] if tried else None
            priors = [self.plain] + ([best.w] if best and best.method == "channel" else [])
            fits = _fitted(centred, priors, RIDGES, self.workers)
            risks += self._each(lambda repair: risk(repair.w, fit.offset(repair.w)), fits)
            tried += fits
        least = min(risks, default=np.inf)
        scale = max(test[2], np.finfo(float).tiny)
        name = self.cut.node.label
        if not least < before:
            return NOTHING, Layer(name, "none", None, before / scale, before / scale)
        found = tried[risks.index(least)]
        w = self._rescaled(found.w, fit)
        loss = error(w, *centred) / max(centred[2], np.finfo(float).tiny)
        said = Layer(name, found.method, found.ridge, before / scale, risk(w, fit.offset(w)) / scale, loss)
        if everything and fit is not check:
            fit = fit + check
            w = self._rescaled(self._again(found, fit, maps[0] + maps[1]).w, fit)
        offset = fit.offset(w).reshape(-1) if self.free else None
        return self.cut.patch(w.reshape(self.cut.weights.shape), offset), said

    def _each(self, judge: Callable[[_Repair], float], repairs: Sequence[_Repair]) -> list[float]:
        return at_once(judge, repairs, self.workers)

    def _rescaled(self, w: Floats, fit: Moments) -> Floats:
        return w * fit.faded(w)[:, :, None] if self.rescale and self.free else w

    def _again(self, found: _Repair, fit: Moments, maps: Moments) -> _Repair:
        """The same repair with other rows."""
        if found.ridge is None:
            return found
        if found.prior is None:
            return self._mapped(maps, [found.ridge])[0]
        return _fitted(fit.centred(self.free), [found.prior], [found.ridge])[0]

    def _mapped(self, maps: Moments, strengths: Sequence[float]) -> list[_Repair]:
        """Every tap of the original's weights written by the channels that the cut model has.

        Its targets are W x; it is drawn to its own weights: a kept channel writes itself.
        """
        gram, cross, _ = maps.centred(self.free)
        whole = self.whole.weights
        rows = whole.reshape(-1, *whole.shape[2:])[self.kept_y].reshape(len(whole), -1, *whole.shape[2:])
        by_tap = np.moveaxis(rows, 3, 2).reshape(len(whole), -1, whole.shape[2])  # groups, outputs and taps, channels
        kept = self.kept_x.reshape(len(whole), -1)
        prior = np.stack([r[:, k] for r, k in zip(by_tap, kept, strict=True)])
        found = ridges(gram, by_tap @ cross, [prior], strengths, self.workers)

        def laid(w: Floats) -> Floats:
            return np.asarray(np.moveaxis(w.reshape(*rows.shape[:2], self.taps, -1), 3, 2).reshape(self.plain.shape))

        return [_Repair("channel", s, laid(w)) for s, (w,) in zip(strengths, found, strict=True)]


def _fitted(centred: Centred, priors: Sequence[Floats], strengths: Sequence[float], workers: int = 1) -> list[_Repair]:
    gram, cross, _ = centred
    found = ridges(gram, cross, priors, strengths, workers)
    return [
        _Repair("full", s, w, prior)
        for s, made in zip(strengths, found, strict=True)
        for w, prior in zip(made, priors, strict=True)
    ]
