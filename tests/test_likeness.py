"""Data that a model was not made for are noticed, others are not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import load, prune
from onnxprune.likeness import likeness
from onnxprune.parts import Engine
from onnxprune.testing import Builder, close
from onnxprune.validate import Checks
from tests.trained import pictures, trained

Array = NDArray[Any]
STRANGE = "the data do not look like what the model was trained on"
CONSTANT = "all layers read the same, whatever the input: the inputs do not differ, or the model is dead"


def said(x: Array, model: ModelProto | None = None) -> list[str]:
    feeds = ({"x": each[None].astype(np.float32)} for each in x)
    return likeness(load(model or trained()), feeds, Engine(threads=1))


def stroke(count: int) -> Array:
    """Grey figures on black, as in Fashion-MNIST."""
    x = np.full((count, 3, 16, 16), -1.0)
    for number, shade in enumerate(np.linspace(-0.5, 1, count)):
        x[number, :, 3 + number % 3 : 13, 4 : 12 - number % 4] = shade
    return x


def test_data_that_fit() -> None:
    x = pictures(8, seed=5)["x"]
    for fine in (x, x[:1], -x, x[:, :, ::-1], stroke(8), np.clip(1.5 * x, -1, 1)):
        assert said(fine) == []


@pytest.mark.parametrize(
    ("pixels", "here"),
    [(lambda x: 127.5 * x + 127.5, "0 to 255"), (lambda x: x / 2 + 0.5, "0 to 1")],
    ids=["0 to 255", "0 to 1"],
)
def test_pixels_in_another_range(pixels: Any, here: str) -> None:
    (line,) = said(pixels(pictures(8, seed=5)["x"]))
    assert line == f"{STRANGE}: as {here} brought to -1 to 1 they would; check --preprocess, or the inputs"


@pytest.mark.parametrize("shade", [-1.0, 0.0, 1.0])
def test_images_without_anything_on_them(shade: float) -> None:
    found = said(np.full((8, 3, 16, 16), shade))
    assert found and found[0] == f"{STRANGE}; check --preprocess, or the inputs"


def plain(shift: float = 0.0) -> ModelProto:
    """Convolutions and ReLUs without normalisation."""
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 16, 16), b.weight(8, 3, 3, 3), np.full(8, shift, np.float32))
    y = b.op("Relu", b.conv(b.op("Relu", y), 8))
    return b.model(close(b, b.op("Flatten", b.op("GlobalAveragePool", y))))


def test_without_normalisation_only_constants_are_noticed() -> None:
    x = pictures(8)["x"]
    assert said(x, plain()) == said(255 * x, plain()) == said(x[:1], plain()) == []
    assert said(x, plain(-1000.0)) == [CONSTANT]  # dead after the first layer
    assert said(x[[0] * 4], plain()) == [CONSTANT]
    b = Builder()
    flat = b.model(b.gemm(b.op("Relu", b.gemm(b.input("x", "N", 4), 8)), 3))
    assert said(np.ones((8, 4)), flat) == [CONSTANT]
    assert said(np.ones((1, 4)), flat) == []  # of one input nothing can be said
    assert said(np.eye(4), flat) == []


def test_values_that_are_not_finite() -> None:
    (line,) = said(pictures(2)["x"], plain(3e38))
    assert "NaN or infinite" in line


def test_too_few_places_and_models_that_do_not_run() -> None:
    b = Builder()
    y = b.op("Relu", b.batch_norm(b.gemm(b.input("x", "N", 4), 8)))
    assert said(100 * np.eye(4), b.model(b.gemm(y, 3))) == []
    b = Builder(acme=1)
    y = b.declare(b.op("acme::Odd", b.input("x", 1, 3, 8, 8)), 1, 3, 8, 8)
    assert said(np.ones((2, 3, 8, 8)), b.model(close(b, b.op("Relu", b.conv(y, 4, name="w1"))))) == []


def test_few_inputs_are_looked_at() -> None:
    def endless() -> Iterator[dict[str, Array]]:
        while True:
            yield pictures(1)

    likeness(load(plain()), endless(), Engine(threads=1))


def test_the_record_has_it_before_other_warnings() -> None:
    data = {"x": 127.5 * pictures(16)["x"] + 127.5}
    record = prune(trained(), data=data, criterion="l2", recover="none", align=1, checks=Checks(seconds=0)).record
    assert record["warnings"][0].startswith(STRANGE)
    fine = prune(trained(), data=pictures(16), criterion="l2", recover="none", align=1, checks=Checks(seconds=0))
    assert fine.record["warnings"] == []
    unseen = prune(trained(), data=data, criterion="l2", recover="none", align=1, validate=False)
    assert unseen.record["warnings"][0].startswith(STRANGE)
