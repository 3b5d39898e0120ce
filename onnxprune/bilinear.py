"""A bilinear form qᵀk on fewer channels: what they should be, and what makes up for those that are gone.

Everything follows from second moments. They are not about the mean, since means meet as well, and rows are taken to
meet independently: E(qᵀk)² = tr(E[qqᵀ] E[kkᵀ]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.solve import ridges

Array = NDArray[Any]
Floats = NDArray[np.float64]

DAMPING = 1e-5  # of moments that are inverted, in units of the mean square


class Axes(NamedTuple):
    """New channels q̂ = `left` q and k̂ = `right` k, [heads, new channels, channels], and what q and k are by them.

    `back`: for either side [heads, channels, new channels].
    """

    left: Floats
    right: Floats
    back: tuple[Floats, Floats]


def axes(left: Floats, right: Floats, count: int) -> Axes:
    """The `count` channels on either side whose product is nearest to qᵀk of all products of so few.

    With E[qqᵀ] = L Lᵀ and E[kkᵀ] = R Rᵀ these are the first singular vectors of LᵀR = U S Vᵀ (Eckart & Young 1936 in
    the norm of the moments): q̂ = S^½ Uᵀ L^-1 q and k̂ = S^½ Vᵀ R^-1 k. All of them together leave qᵀk as it is.

    Args:
        left, right: E[qqᵀ] and E[kkᵀ], [heads, channels, channels].
        count: of new channels.
    """
    roots = [np.linalg.cholesky(_damped(g)) for g in (left, right)]
    u, s, v = np.linalg.svd(roots[0].swapaxes(1, 2) @ roots[1])
    s = np.sqrt(s[:, :count])
    turned = [t[:, :, :count] for t in (u, v.swapaxes(1, 2))]
    new = [
        s[..., None] * np.linalg.solve(r.swapaxes(1, 2), t).swapaxes(1, 2) for r, t in zip(roots, turned, strict=True)
    ]
    back = [r @ t / s[:, None] for r, t in zip(roots, turned, strict=True)]
    return Axes(new[0], new[1], (back[0], back[1]))


def _damped(gram: Floats) -> Floats:
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / gram.shape[-1]
    return np.asarray(gram + DAMPING * np.where(mean > 0, mean, 1.0) * np.eye(gram.shape[-1]))


@dataclass(eq=False)
class Moments:
    """Sums over rows of z zᵀ, for each head, where z is [q̂, q] on the left and [k̂, k] on the right.

    q̂, k̂ are what there is of q, k. Both sums are [heads, channels of z, the same].
    """

    rows: Any = 0  # [2, heads]
    left: Any = 0.0
    right: Any = 0.0

    def add(self, left: Sequence[Array], right: Sequence[Array]) -> None:
        """More rows: for each head [rows, channels of z]; products in their type, sums in float64."""
        self.rows = self.rows + np.array([[len(z) for z in side] for side in (left, right)])
        self.left, self.right = (
            total + np.stack([(z.T @ z).astype(np.float64) for z in side])
            for total, side in ((self.left, left), (self.right, right))
        )

    def __add__(self, other: Moments) -> Moments:
        """Of all rows."""
        return Moments(self.rows + other.rows, self.left + other.left, self.right + other.right)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not np.any(self.rows)

    @property
    def means(self) -> tuple[Floats, Floats]:
        """E[zzᵀ] of both sides."""
        counts = np.maximum(self.rows, 1)[..., None, None]
        return np.asarray(self.left / counts[0]), np.asarray(self.right / counts[1])

    def maps(self, back: Sequence[Floats], strengths: Sequence[float]) -> list[Floats]:
        """The M of each head for which q̂ᵀ M k̂ is nearest to qᵀk, at several ridges: [heads, channels of q̂, of k̂].

        M = E[q̂q̂ᵀ]^-1 E[q̂qᵀ] E[kk̂ᵀ] E[k̂k̂ᵀ]^-1 (CORP, arXiv 2602.05243, there with q̂, k̂ as parts of q, k): the
        product of both sides' regressions.

        Args:
            back: for either side [..., channels, new channels], what q and k are by q̂ and k̂ alone.
            strengths: of the pull of the regressions to that, in units of the mean square.
        """
        s = back[0].shape[-1]
        q, k = (ridges(g[:, :s, :s], g[:, s:, :s], [b], strengths) for g, b in zip(self.means, back, strict=True))
        return [a.swapaxes(1, 2) @ b for (a,), (b,) in zip(q, k, strict=True)]

    def off(self, m: Floats) -> float:
        """E(qᵀk - q̂ᵀ M k̂)², summed over heads: tr(E[zzᵀ] A E[zzᵀ] Aᵀ), where A holds -M and I.

        Args:
            m: M, [heads, channels of q̂, of k̂].
        """
        (left, right), s = self.means, m.shape[-1]
        a = np.broadcast_to(np.eye(left.shape[-1]), left.shape).copy()
        a[:, :s, :s] = -m
        return max(float(np.sum((left @ a) * (a @ right))), 0.0)
