"""Statistics of BatchNormalization follow what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import prune
from onnxprune.graph import Graph, load
from onnxprune.patch import patched
from onnxprune.renorm import Norm
from onnxprune.runtime import run, session
from onnxprune.testing import Builder
from tests.trained import pictures, trained

Array = NDArray[Any]


def norm_alone() -> Graph:
    b = Builder(seed=2)
    parts = [b.near_one(4), b.near_one(4), b.const(b.rng.standard_normal(4).astype(np.float32), "mean")]
    variance = b.const(b.rng.uniform(0.5, 2, 4).astype(np.float32), "variance")
    return load(b.model(b.op("BatchNormalization", b.input("x", "N", 4, 3, 3), *parts, variance)))


def seen(seed: int, noise: float) -> tuple[Array, Array]:
    """What a norm reads in the original, and what it reads in a model where that is moved, faded and noisy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((64, 4, 3, 3)) * np.array([1.0, 2, 0.5, 1])[:, None, None] + 1
    z = 0.5 * x - np.array([3.0, 0, 1, -1])[:, None, None] + noise * rng.standard_normal(x.shape)
    return x.astype(np.float32), z.astype(np.float32)


@pytest.mark.parametrize("rescale", [False, True])
def test_what_follows_sees_what_it_saw(rescale: bool) -> None:
    graph = norm_alone()
    (node,) = graph.nodes
    step = Norm(graph, node, node, slice(None), rescale)
    for seed in range(4):
        x, z = seen(seed, noise=0.1)
        step.add(seed == 3, {"x": x}, {"x": z})
    patch, layer = step.best(everything=False)
    assert layer.method == "batchnorm" and layer.after < layer.before
    before, after = graph.proto, patched(graph, patch)
    x, z = seen(9, noise=0.1)
    wanted, got = (next(iter(run(session(m, threads=1), {"x": v}).values())) for m, v in ((before, x), (after, z)))
    np.testing.assert_allclose(got.mean(axis=(0, 2, 3)), wanted.mean(axis=(0, 2, 3)), atol=0.15)
    ratio = got.std(axis=(0, 2, 3)) / wanted.std(axis=(0, 2, 3))
    np.testing.assert_allclose(ratio, 1.0 if rescale else 0.5, rtol=0.15)


def test_what_has_not_changed_stays() -> None:
    graph = norm_alone()
    (node,) = graph.nodes
    step = Norm(graph, node, node, slice(None), True)
    for seed in range(2):
        x, _ = seen(seed, noise=0.0)
        step.add(seed == 1, {"x": x}, {"x": x})
    patch, layer = step.best(everything=False)
    assert layer.method == "none" and not patch.weights


def test_only_kept_channels_are_compared() -> None:
    whole, kept = norm_alone(), np.array([1, 3])
    b = Builder(seed=2)
    node_whole = whole.nodes[0]
    small = load(
        b.model(
            b.op(
                "BatchNormalization",
                b.input("x", "N", 2, 3, 3),
                *(b.const(whole.array(n)[kept], n) for n in node_whole.inputs[1:]),
            )
        )
    )
    step = Norm(small, node_whole, small.nodes[0], kept, False)
    for seed in range(2):
        x, z = seen(seed, noise=0.0)
        step.add(seed == 1, {"x": x}, {"x": z[:, kept]})
    patch, _ = step.best(everything=True)
    assert patch.weights["mean"].shape == (2,)


def test_a_cut_model_is_renormed() -> None:
    """The norm behind the depthwise convolution reads what was not fitted: its statistics move."""
    model = trained()
    result = prune(
        model, "macs=0.6", criterion="l2", scope="local", align=4, recover="bias", data=pictures(64), validate=False
    )
    methods = {layer["node"]: layer["method"] for layer in result.record["recovery"]["layers"]}
    assert "batchnorm" in methods.values()
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer if t.name.endswith((".mean", ".var"))}
        for m in (model, result.model)
    )
    assert any(after[n].shape != before[n].shape or (after[n] != before[n]).any() for n in before)
    assert all((after[n] >= 0).all() for n in after if n.endswith(".var"))
