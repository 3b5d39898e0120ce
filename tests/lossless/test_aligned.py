"""Lossless cuts to multiples of a block."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import Checks, prune
from onnxprune.coupling import couple
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.lossless import aligned, lossless
from onnxprune.testing import Builder


def hollow(*gone: int) -> ModelProto:
    """Three convolutions of 24 channels; of each of the first two so many filters are zero, with their biases."""
    b = Builder()
    y = b.input("x", 1, 3, 6, 6)
    for number in range(len(gone)):
        y = b.op("Relu", b.conv(y, 24, name=f"w{number}"))
    model = b.model(b.conv(y, 4, name="last"))
    for tensor in model.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        for number, count in enumerate(gone):
            if tensor.name.startswith(f"w{number}") or (array.ndim == 1 and number == _layer(model, tensor.name)):
                array[:count] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def _layer(model: ModelProto, bias: str) -> int:
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return next((n for n, node in enumerate(convs) if len(node.input) > 2 and node.input[2] == bias), -1)


@pytest.mark.parametrize(("align", "left"), [(1, (19, 11)), (8, (24, 16)), (16, (24, 16))])
def test_widths_are_multiples(align: int, left: tuple[int, int]) -> None:
    result = prune(hollow(5, 13), "lossless", align=align, checks=Checks(seconds=0))
    shapes = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert (shapes["w0"][0], shapes["w1"][0]) == left
    assert result.record["parity"]["exact"]


def test_auto_takes_all_that_can_go() -> None:
    coupling = couple(load(hollow(5, 13)))
    assert aligned(coupling, 1)[0].tolist() == lossless(coupling)[0].tolist()
    result = prune(hollow(5, 13), "lossless", checks=Checks(seconds=0))
    assert {t.name: t.dims[0] for t in result.model.graph.initializer}["w1"] == 11


def test_what_stays_keeps_what_it_is_made_from() -> None:
    """A dead channel that fills a block is computed: so are its inputs, of which a block stays, too."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 6, 6), 16, name="w0"))
    model = b.model(b.conv(b.op("Relu", b.conv(y, 16, name="w1")), 4, name="last"))
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "last"):
            array = np.array(numpy_helper.to_array(tensor))
            if tensor.name == "last":
                array[:, 3:] = 0  # of w1 three are read,
            else:
                array[:3, 5:] = 0  # which read five of w0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    removed, _ = aligned(couple(load(model)), 4)
    assert removed.sum() == 12  # of w1 four stay; the fourth reads all of w0


def test_bad_alignments_are_refused() -> None:
    with pytest.raises(OptionError, match="--align 0"):
        prune(hollow(5, 13), "lossless", align=0)
