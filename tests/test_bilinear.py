"""Closed forms for products on fewer channels, against brute force over all pairs of rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.bilinear import Moments, axes

Array = NDArray[Any]
KEPT = [0, 2, 3, 5]


def rows(count: int, seed: int) -> Array:
    """[1, count, 6] rows whose channels know of each other and have means."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6))[None]


def moments(q: Array, k: Array, thin_q: Array, thin_k: Array) -> Moments:
    found = Moments()
    for part in (slice(0, 7), slice(7, None)):  # in two batches
        left, right = (np.concatenate(z, axis=-1)[:, part] for z in ((thin_q, q), (thin_k, k)))
        found.add(list(left), list(right))
    return found


def test_the_map_is_least_squares_over_all_pairs() -> None:
    q, k = rows(30, 0), rows(20, 1)
    thin_q, thin_k = q[..., KEPT] + rows(30, 2)[..., :4] / 3, k[..., KEPT] + rows(20, 3)[..., :4] / 3
    prior = np.eye(6)[:, KEPT]
    seen = moments(q, k, thin_q, thin_k)
    (m,) = seen.maps((prior, prior), [1e-12])
    pairs = np.einsum("ia,jb->ijab", thin_q[0], thin_k[0]).reshape(600, 16)
    scores = (q[0] @ k[0].T).reshape(600)
    np.testing.assert_allclose(m[0].reshape(16), np.linalg.lstsq(pairs, scores, rcond=None)[0], atol=1e-7)
    left = scores - pairs @ m[0].reshape(16)
    np.testing.assert_allclose(seen.off(m), np.square(left).mean(), rtol=1e-6)
    np.testing.assert_allclose(seen.off(0 * m), np.square(scores).mean(), rtol=1e-6)


def test_a_strong_ridge_leaves_things_as_they_are() -> None:
    q, k = rows(30, 0), rows(20, 1)
    prior = np.eye(6)[:, KEPT]
    (m,) = moments(q, k, q[..., KEPT], k[..., KEPT]).maps((prior, prior), [1e9])
    np.testing.assert_allclose(m[0], np.eye(4), atol=1e-6)


def test_axes_are_the_best_product_of_so_few_channels() -> None:
    q, k = rows(40, 0), rows(40, 1)
    left, right = (z.swapaxes(1, 2) @ z / 40 for z in (q, k))
    found = axes(left, right, 4)
    thin_q, thin_k = q @ found.left.swapaxes(1, 2), k @ found.right.swapaxes(1, 2)
    scores = q[0] @ k[0].T
    singular = np.linalg.svd(scores, compute_uv=False)  # no four channels leave less than its tail
    left_over = np.square(scores - thin_q[0] @ thin_k[0].T).sum()
    np.testing.assert_allclose(left_over, np.square(singular[4:]).sum(), rtol=1e-3)
    (m,) = moments(q, k, thin_q, thin_k).maps(found.back, [1e-9])
    np.testing.assert_allclose(m[0], np.eye(4), atol=1e-3)


def test_all_axes_leave_the_product_as_it_is() -> None:
    q, k = rows(40, 0), rows(40, 1)
    k[..., 5] = k[..., 4]  # channels that say the same
    left, right = (z.swapaxes(1, 2) @ z / 40 for z in (q, k))
    found = axes(left, right, 6)
    np.testing.assert_allclose(found.left.swapaxes(1, 2) @ found.right, np.eye(6)[None], atol=1e-6)
    np.testing.assert_allclose(found.back[0], np.linalg.inv(found.left), atol=1e-6)


def test_channels_that_are_silent() -> None:
    found = axes(np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), 2)
    assert all(np.isfinite(part).all() for part in (found.left, found.right, *found.back))
