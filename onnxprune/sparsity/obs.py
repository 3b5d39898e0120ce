"""SparseGPT (Frantar & Alistarh 2023): weights go column by column, and those to the right make up for it.

Of the layer's squared error, tr(D H Dᵀ) for a change D of its weights, this is the optimal brain surgeon (Hassibi &
Stork 1993) with the order of the columns fixed: a weight w at column j costs w² / [H⁻¹]jj among the columns from j on,
and takes w / [H⁻¹]jj times the row of that inverse from its neighbours. With H⁻¹ = Uᵀ U, U upper triangular, row j of U
is that row over √[H⁻¹]jj, for every j at once.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dtrtri

from onnxprune.sparsity.patterns import Choose, Floats, Grid, Mask

BLOCK = 128  # columns after which the rest follows: matrix products instead of updates one by one
STEPS = 20  # of conjugate gradients: more bring a few per cent at most
CLOSE = 1e-8  # of the squared slope at the start: it is left then


def factor(gram: Floats, damping: float | Floats) -> Floats:
    """U with Uᵀ U = (H + damping · mean diagonal · I)⁻¹, [groups, F, F].

    Args:
        gram: H, [groups, F, F], positive semidefinite.
        damping: in units of the mean diagonal; positive; one for all groups or [groups].

    Raises:
        LinAlgError: what is damped so is not positive definite.
    """
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2) / size
    damped = gram + (damping * np.where(mean > 0, mean, 1.0))[:, None, None] * np.eye(size)
    # A factor of the flipped matrix, flipped back, is H = R Rᵀ with R upper triangular: U is its inverse.
    lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return np.stack([dtrtri(r, lower=0)[0] for r in lower[:, ::-1, ::-1]])


def prune(weights: Floats, u: Floats, grid: Grid, choose: Choose) -> tuple[Floats, Mask]:
    """Set weights to zero and let the others make up for it.

    Args:
        weights: [groups, outputs, F]; not changed.
        u: [groups, F, F], see `factor`.
        grid: the pattern.
        choose: says which tiles go, by what they add to the squared error (the mean of their weights).

    Returns:
        The new weights, and which of them went.
    """
    w, gone = weights.copy(), np.zeros(weights.shape, dtype=bool)
    power = np.square(np.diagonal(u, axis1=1, axis2=2))[:, None, :]
    size = w.shape[2]
    # N:M is chosen as late as can be, when its neighbours are up to date.
    step = grid.columns if grid.most else grid.columns * max(1, BLOCK // grid.columns)
    block = step * max(1, BLOCK // step)
    for start in range(0, size, block):
        stop = min(start + block, size)
        errors = np.zeros((*w.shape[:2], stop - start))
        for j in range(start, stop):
            if (j - start) % step == 0:
                now = slice(j, min(j + step, stop))
                gone[..., now] = grid.spread(choose(grid.scores(np.square(w[..., now]) / power[..., now])))
            e = np.where(gone[..., j], w[..., j], 0.0) / u[:, j, j, None]
            w[..., j:stop] -= e[..., None] * u[:, None, j, j:stop]
            errors[..., j - start] = e
        w[..., stop:] -= errors @ u[:, start:stop, stop:]
    w[gone] = 0.0
    return w, gone


def settle(
    weights: Floats, start: Floats, gone: Mask, gram: Floats, damping: float | Floats, steps: int = STEPS
) -> Floats:
    """Least squares with the zeros where they are: what went column by column did not know of those that went later.

    Conjugate gradients for all rows at once (Boža 2024 solves the same problem with ADMM).

    Args:
        weights: [groups, outputs, F], of the dense layer.
        start: the weights to begin with, zero where they went.
        gone: which went.
        gram: H, [groups, F, F].
        damping: draws weights to the dense ones, as in `factor`.
        steps: at most; the error falls with each.
    """
    mean = np.trace(gram, axis1=1, axis2=2) / gram.shape[-1]
    pull = (damping * np.where(mean > 0, mean, 1.0))[:, None, None]
    scale = np.where(gone, 0.0, 1.0 / (np.diagonal(gram, axis1=1, axis2=2)[:, None] + pull))

    def slope(change: Floats) -> Floats:
        return np.asarray(change @ gram + pull * change)

    found, left = start, -slope(start - weights)
    step = scale * left
    power = (left * step).sum(axis=2, keepdims=True)
    enough = power * CLOSE
    for _ in range(steps):
        if (power <= enough).all():
            break
        bent = slope(step)
        curve = (step * bent).sum(axis=2, keepdims=True)
        far = np.divide(power, curve, out=np.zeros_like(power), where=curve > 0)
        found, left = found + far * step, left - far * bent
        before, power = power, (left * scale * left).sum(axis=2, keepdims=True)
        step = scale * left + np.divide(power, before, out=np.zeros_like(power), where=before > 0) * step
    return found
