"""Generated images in the range that a model was trained on."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import prune
from onnxprune.calibrate import calibrate
from onnxprune.data import read
from onnxprune.graph import load
from onnxprune.instrument import Want
from onnxprune.matching import matched
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder
from tests.trained import trained

ENGINE = Engine(threads=1)


def range_of(model: ModelProto) -> tuple[float, float]:
    """Mean and deviation of the pixels that are made for a model."""
    graph = load(model)
    feeds = matched(graph, read("synthetic", graph.proto), ENGINE)
    pixels = np.concatenate([f["x"] for f in islice(feeds.samples(), 16)])
    return float(pixels.mean()), float(pixels.std())


def of_pixels(offset: float, scale: float) -> ModelProto:
    """A net whose norm was trained on pixels of that mean and deviation."""
    b = Builder(seed=0)
    y = b.conv(b.input("x", "N", 3, 32, 32), 8, name="stem")
    parts = [b.near_one(8, name="gamma"), b.near_one(8, name="beta")]
    moments = [b.const(np.full(8, v, np.float32), n) for n, v in (("mean", 0.0), ("var", 1.0))]
    y = b.op("Relu", b.op("BatchNormalization", y, *parts, *moments))
    model = b.model(b.conv(y, 4, name="head"))
    graph = load(model)
    images = [{"x": f["x"] * scale + offset} for f in islice(read("synthetic", graph.proto).samples(), 32)]
    dim = Dim(graph.nodes[1].inputs[0], 1)
    seen = calibrate(graph, [{"x": i["x"].astype(np.float32)} for i in images], {dim: Want.SUMS}, ENGINE)[dim]
    for tensor in model.graph.initializer:
        if tensor.name in ("mean", "var"):
            value = seen.mean if tensor.name == "mean" else seen.variance
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (127.0, 64.0), (0.5, 0.25)])
def test_the_range_is_found(offset: float, scale: float) -> None:
    mean, deviation = range_of(of_pixels(offset, scale))
    assert mean == pytest.approx(offset, abs=0.3 * scale)
    assert deviation == pytest.approx(scale, rel=0.3)


def test_a_model_that_does_not_tell_gets_what_is_made() -> None:
    b = Builder()
    model = b.model(b.conv(b.op("Relu", b.conv(b.input("x", "N", 3, 16, 16), 8)), 4))
    graph = load(model)
    feeds = read("synthetic", graph.proto)
    assert matched(graph, feeds, ENGINE) is feeds


def test_it_repeats() -> None:
    assert range_of(trained()) == range_of(trained())


def test_pruned_with_them() -> None:
    result = prune(trained(), "macs=0.8", data="synthetic", align=4, validate=False, threads=1)
    assert result.record["recovery"]["source"] == "synthetic"
