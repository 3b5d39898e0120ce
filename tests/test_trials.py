"""Answers that are off in trials."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxprune.divergence import distance_of, off
from onnxprune.graph import load
from onnxprune.parts import Engine
from onnxprune.patch import Patch
from onnxprune.testing import Builder
from onnxprune.trials import Trial, distances

ENGINE = Engine(threads=1)


def test_a_head_that_ends_early_is_compared_in_later_trials() -> None:
    """Nothing reads its logits any more where the second trial begins; they are as they were, and count as such."""
    b = Builder()
    x = b.input("x", "N", 8)
    first = b.op("Softmax", b.gemm(x, 5, "early"), axis=1)
    graph = load(b.model(first, b.op("Softmax", b.gemm(b.op("Relu", b.gemm(x, 16, "wide")), 5, "late"), axis=1)))
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}]
    distance = distance_of(graph, feeds, ENGINE)

    patches = [Patch({name: -graph.array(name)}) for name in ("early", "late")]
    starts = [graph.consumers[name][0][0].index for name in ("early", "late")]
    trials = [Trial(start, partial(Patch, patch.weights)) for start, patch in zip(starts, patches, strict=True)]
    found = distances(graph, feeds, trials, distance, ENGINE, lambda text: None)
    np.testing.assert_allclose(found, [off(distance, graph, feeds, ENGINE, patch) for patch in patches])
