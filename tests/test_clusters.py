"""Ward's tree with weights, and k-means from there on."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage

from onnxprune.clusters import Clusters, kmeans, ward


def points(count: int = 40, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((count, 5))


def spread(x: NDArray[np.float64], w: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    """Weighted squares of the distances from centroids."""
    centre = Clusters(labels, w).mean(x)
    return float((w[:, None] * np.square(x - centre)).sum())


def test_without_weights_it_is_the_tree_of_scipy() -> None:
    x = points()
    tree = ward(x @ x.T, np.ones(len(x)))
    heights = linkage(x, "ward")[:, 2]
    np.testing.assert_allclose(tree.added, np.square(heights) / 2, rtol=1e-9)


def test_what_merges_add_is_the_error_of_the_clusters() -> None:
    x, w = points(), np.random.default_rng(1).uniform(0.01, 3, 40)
    tree = ward(x @ x.T, w)
    for merges in (0, 1, 17, 39):
        labels = tree.labels(merges)
        assert len(np.unique(labels)) == 40 - merges
        np.testing.assert_allclose(spread(x, w, labels), tree.added[:merges].sum(), atol=1e-9)


def test_who_is_hardly_read_goes_first() -> None:
    x, w = points(), np.ones(40)
    w[7] = 1e-9
    assert 7 in ward(x @ x.T, w).pairs[0]
    assert (ward(x @ x.T, np.zeros(40)).added >= 0).all()


def test_equal_units_cost_nothing() -> None:
    x = points()
    x[20:] = x[:20]
    tree = ward(x @ x.T, np.ones(40))
    assert tree.added[:20].max() < 1e-12 < tree.added[20]
    labels = tree.labels(20)
    np.testing.assert_array_equal(labels[:20], labels[20:])


def test_kmeans_goes_on_from_the_tree() -> None:
    x, w = points(120), np.random.default_rng(2).uniform(0.1, 1, 120)
    before = ward(x @ x.T, w).labels(90)
    after = kmeans(x @ x.T, w, before)
    assert len(np.unique(after)) == 30
    assert spread(x, w, after) < spread(x, w, before)


def test_one_unit_is_a_tree() -> None:
    tree = ward(np.ones((1, 1)), np.ones(1))
    assert tree.added.size == 0 and tree.labels(0).tolist() == [0]
