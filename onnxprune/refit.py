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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer
from onnxprune.dual import Near, Weights, dense, scaled
from onnxprune.moments import Moments, Rows, Sums
from onnxprune.patch import NOTHING, Patch
from onnxprune.solve import at_once

Array = NDArray[Any]
Floats = NDArray[np.float64]
Seen: TypeAlias = Moments | Rows

ROWS = 16384  # im2col rows that a layer is fitted to, as far as there are so many
FEATURES = 2560  # with more than these, and more rows than these, the map has to do
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # in units of the mean variance


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


class _Repair(NamedTuple):
    """Weights [groups, O, F] and how they came about."""

    method: str
    ridge: float | None
    w: Weights
    prior: Weights | None = None


def same_but(a: Array, b: Array, axis: int) -> bool:
    """Whether a value has the same shape in two models, but for one axis."""
    return np.delete(a.shape, axis).tolist() == np.delete(b.shape, axis).tolist()


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
        corrected: bool = False,
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
            corrected: results will come that are not quite those of the original.
        """
        self.rescale, self.workers = rescale, workers
        self.whole, self.cut, self.rng = whole, cut, rng
        self.kept_x, self.kept_y = kept
        _, self.outputs, channels, self.taps = cut.shape
        self.features = channels * self.taps
        self.each = max(1, -(-ROWS // max(samples, 1)))
        self.free = cut.bias is not None
        self.maps_too = method in ("channel", "full")
        self.fits_too = method == "full"
        # Results are W x, of which a map is made as well as of the channels x, if there is one tap.
        self.beside = self.maps_too and self.taps == 1 and corrected
        # Whether rows that are no fewer than features are solved for; else they are only there to choose with.
        self.pairs = (self.fits_too and self.features <= FEATURES) or (self.maps_too and self.taps == 1)
        self.fit: Sums | Rows = Rows()
        self.held = Rows()  # to choose with
        self.maps = Sums(workers), Sums(workers)  # of channels alone, where there are several taps

    def add(self, choosing: bool, x: Array, y: Array, thin: Array) -> None:
        """A batch: the original's input and result, and the cut model's input."""
        places, groups = self.cut.places(thin.shape, y.shape, self.each, self.rng), self.cut.groups
        features = self.cut.features(thin, places)
        rows = len(features)
        targets = self.whole.targets(y, places)[:, self.kept_y].reshape(rows, groups, -1)
        if self.beside:  # the channels of the original are targets beside its results
            targets = np.concatenate([targets, self.whole.features(x, places)[..., 0]], axis=2)
        (self.held if choosing else self.fit).add(features.reshape(rows, groups, -1), targets)
        if isinstance(self.fit, Rows) and self._many(self.fit):
            self.fit = self.fit.sums(self.workers)
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
        if not self.fit.count and not self.held.count:
            return NOTHING, Layer(self.cut.node.label, "none", None, 0.0, 0.0)
        mine, both = slice(self.outputs), bool(self.fit.count and self.held.count)  # else too few to hold some out
        rows = self._seen(self.fit if self.fit.count else self.held)
        fit = rows.only(mine)
        check = self.held.only(mine) if both else fit
        maps = self._channels(rows, self.maps[not self.fit.count])
        before = check.error(self._plain(), self.cut.offset.reshape(self.cut.shape[:2]))
        found, least = self._least(fit, check, maps)
        scale = max(check.power(self.free), np.finfo(float).tiny)
        name = self.cut.node.label
        if found is None or not least < before:
            return NOTHING, Layer(name, "none", None, before / scale, before / scale)
        w = self._rescaled(found.w, fit)
        loss, after = at_once(lambda seen: seen.error(w, self._offset(w, fit)), (fit, check), self.workers)
        loss /= max(fit.power(self.free), np.finfo(float).tiny)
        said = Layer(name, found.method, found.ridge, before / scale, after / scale, loss)
        if everything and both:
            rows = rows + self.held.sums(self.workers).moments() if isinstance(rows, Moments) else rows + self.held
            fit, maps = rows.only(mine), self._channels(rows, self.maps[1], maps)
            w = self._rescaled(self._again(found, fit, maps).w, fit)
        offset = self._offset(w, fit).reshape(-1) if self.free else None
        del found  # there is seldom room for more weights than one
        return self.cut.patch(dense(w).reshape(self.cut.shape), offset), said

    def _least(self, fit: Seen, check: Seen, maps: Seen | None) -> tuple[_Repair | None, float]:
        """Of all repairs the one with the least error, and that."""

        def risk(repair: _Repair) -> float:
            return check.error(repair.w, self._offset(repair.w, fit))

        few = fit.count < self.features  # then W may be very large: it stays in its type, whatever it is multiplied by
        tried = [_Repair("bias", None, Near(self._plain(), ()) if few else self._plain())] if self.free else []
        if maps is not None:
            tried += self._mapped(maps, RIDGES)
        risks = at_once(risk, tried, self.workers)
        if self.fits_too and min(fit.count, self.features) <= FEATURES:
            best = tried[int(np.argmin(risks))] if tried else None
            # Of results as they are and one tap, least squares drawn to the weights are the maps.
            priors: list[Weights] = [] if self.taps == 1 and not self.beside else [self._plain()]
            priors += [best.w] if best and best.method == "channel" else []
            fits = self._fitted(fit, priors, RIDGES) if priors else []
            risks += at_once(risk, fits, self.workers)
            tried += fits
        least = min(risks, default=np.inf)
        return tried[risks.index(least)] if tried else None, least

    def _plain(self) -> Array:
        """The weights as they are."""
        return self.cut.matrix.reshape(*self.cut.shape[:2], -1)

    def _many(self, rows: Rows) -> bool:
        """Whether moments of them are what to solve with: they are no fewer than features."""
        return self.pairs and rows.count >= self.features

    def _seen(self, rows: Sums | Rows) -> Seen:
        if isinstance(rows, Rows) and not self._many(rows):
            return rows
        return (rows.sums(self.workers) if isinstance(rows, Rows) else rows).moments()

    def _channels(self, rows: Seen, apart: Sums, before: Seen | None = None) -> Seen | None:
        """What maps are fitted to, if any; several taps have moments `apart` for it, which add to those `before`."""
        if not self.maps_too:
            return None
        if self.taps == 1:
            return rows.only(slice(self.outputs, None) if self.beside else slice(self.outputs))
        return before + apart.moments() if isinstance(before, Moments) else apart.moments()

    def _offset(self, w: Weights, fit: Seen) -> Floats:
        """[groups, outputs]: the bias that makes W right in the mean, where there is one."""
        return fit.offset(w) if self.free else np.zeros(self.cut.shape[:2])

    def _rescaled(self, w: Weights, fit: Seen) -> Weights:
        return scaled(w, fit.faded(w)) if self.rescale and self.free else w

    def _again(self, found: _Repair, fit: Seen, maps: Seen | None) -> _Repair:
        """The same repair with other rows."""
        if found.ridge is None:
            return found
        if found.prior is None and maps is not None:
            return self._mapped(maps, [found.ridge])[0]
        assert found.prior is not None
        return self._fitted(fit, [found.prior], [found.ridge])[0]

    def _mapped(self, maps: Seen, strengths: Sequence[float]) -> list[_Repair]:
        """Every tap of the original's weights written by the channels that the cut model has.

        Its targets are W x; it is drawn to its own weights: a kept channel writes itself.
        """
        channels = self.taps > 1 or self.beside  # are the targets, and else the results
        through, prior = self._written(channels)
        found = maps.ridges([prior], strengths, self.free, through, self.workers)
        return [_Repair("channel", s, self._laid(w)) for s, (w,) in zip(strengths, found, strict=True)]

    def _written(self, channels: bool) -> tuple[Array | None, Array]:
        """[groups, outputs and taps, channels] of the original's weights: all channels, if asked for, and kept ones."""
        whole = self.whole.matrix
        rows = whole.reshape(-1, *whole.shape[2:])[self.kept_y].reshape(len(whole), -1, *whole.shape[2:])
        by_tap = np.moveaxis(rows, 3, 2).reshape(len(whole), -1, whole.shape[2])
        kept = self.kept_x.reshape(len(whole), -1)
        if kept.all():
            return by_tap if channels else None, by_tap
        prior = np.empty((*by_tap.shape[:2], int(kept[0].sum())), by_tap.dtype)
        for own, each, there in zip(prior, by_tap, kept, strict=True):
            np.take(each, np.flatnonzero(there), axis=1, out=own, mode="clip")  # else it makes another copy
        return by_tap if channels else None, prior

    def _laid(self, w: Weights) -> Weights:
        """[groups, outputs, channels and taps] of weights as in `_written`."""
        if self.taps == 1 or isinstance(w, Near):  # it is of rows of one tap
            return w
        groups, outputs, channels, taps = self.cut.shape
        return np.asarray(np.moveaxis(w.reshape(groups, outputs, taps, channels), 3, 2).reshape(groups, outputs, -1))

    def _fitted(self, fit: Seen, priors: Sequence[Weights], strengths: Sequence[float]) -> list[_Repair]:
        """Least squares, drawn to every prior at every strength."""
        found = fit.ridges(priors, strengths, self.free, workers=self.workers)
        return [
            _Repair("full", s, w, prior)
            for s, made in zip(strengths, found, strict=True)
            for w, prior in zip(made, priors, strict=True)
        ]
