"""Einsum: labels pass, are contracted, or are summed over."""

from typing import Any

import numpy as np
import pytest

from onnxprune import couple, prune
from onnxprune.feeds import Feed
from onnxprune.graph import load
from onnxprune.rules.base import Options
from onnxprune.testing import Builder, prove


@pytest.mark.parametrize(
    ("equation", "shape", "axes"),
    [
        ("bsi,io->bso", (8, 6), (0, 1)),
        ("bsi,oi->bso", (6, 8), (1, 0)),
        ("...i,oi->...o", (6, 8), (1, 0)),
        ("bsi, io", (8, 6), (0, 1)),
    ],
)
def test_a_linear_layer(equation: str, shape: tuple[int, ...], axes: tuple[int, int]) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3))
    y = b.op("Einsum", b.op("Relu", y), b.weight(*shape, name="w"), equation=equation)
    y = b.op("Transpose", y, perm=[0, 2, 1]) if b.shape(y)[1] == 6 else y
    result = prove(b.model(b.op("MatMul", y, b.weight(6, 4, name="w2"))))
    assert result.choices("w1", 1) == result.choices("w", axes[0]) == [8]
    assert result.choices("w", axes[1]) == result.choices("w2") == [6]


@pytest.mark.parametrize("equation", ["bsi,io->bso", "...i,oi->...o", "io,bsi->bso"])
def test_a_linear_layer_counts_and_is_refitted(equation: str) -> None:
    """As a MatMul with the same weights is."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((16, 6)).astype(np.float32)
    data: list[Feed] = [{"x": rng.standard_normal((1, 5, 3)).astype(np.float32)} for _ in range(32)]

    def record(einsum: bool) -> dict[str, Any]:
        b = Builder(seed=1)
        y = b.op("Relu", b.op("MatMul", b.input("x", "N", 5, 3), b.weight(3, 16)))
        w = b.const(weights.T if einsum and "oi" in equation else weights, "w")
        operands = (w, y) if equation.startswith("io") else (y, w)
        y = b.op("Einsum", *operands, equation=equation) if einsum else b.op("MatMul", y, w)
        y = b.op("Add", b.declare(y, "N", 5, 6), b.const(np.ones(6, np.float32)))
        return prune(b.model(b.declare(y, "N", 5, 6)), "macs=0.5", data=data, align=1, validate=False).record

    mine, other = record(True), record(False)
    assert mine["macs"] == other["macs"] and mine["recover"] == other["recover"] == "full"
    assert mine["recovery"]["distance"]["after"] == pytest.approx(other["recovery"]["distance"]["after"], rel=1e-3)


def test_weights_of_several_axes_are_no_layer() -> None:
    """Heads: nothing is fitted to them."""
    b = Builder()
    y = b.op("Einsum", b.input("x", 2, 5, 6), b.weight(6, 4, 3, name="w"), equation="bsi,ihd->bshd")
    assert not couple(load(b.model(y))).linears


def test_heads() -> None:
    """bshd: whole heads go; with the option, dimensions inside them as well."""
    b = Builder()
    x = b.input("x", 2, 5, 6)

    def heads(name: str) -> str:
        return b.op("Einsum", x, b.weight(6, 4, 3, name=name, fan=6), equation="bsi,ihd->bshd")

    scores = b.op("Einsum", heads("q"), heads("k"), equation="bqhd,bkhd->bhqk")
    y = b.op("Einsum", b.op("Softmax", scores), heads("v"), equation="bhqk,bkhd->bqhd")
    model = b.model(b.op("Einsum", y, b.weight(4, 3, 6, name="out", fan=12), equation="bshd,hdo->bso"))
    result = prove(model)
    assert result.choices("q", 1) == result.choices("k", 1) == result.choices("v", 1) == [4]
    assert result.choices("out") == [4]
    assert not result.can_cut("q", 2)
    assert result.choices("v", 2) == result.choices("out", 1) == [3]
    assert prove(model, options=Options(head_dims=True)).choices("q", 2) == [3]


def test_a_gate_for_each_channel() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    y = b.op("Einsum", y, b.near_one(8, name="gate"), equation="bchw,c->bchw")
    result = prove(b.model(b.conv(y, 4, name="w2")))
    assert result.choices("w1") == result.choices("gate") == [8]


def test_an_outer_product() -> None:
    b = Builder()
    left, right = (b.gemm(b.input(n, 5, 3), 8, name=n + "w") for n in ("a", "b"))
    y = b.op("Einsum", left, right, equation="ni,nj->nij")
    y = b.op("Einsum", b.op("Tanh", y), b.weight(8, 8, 3, name="w"), equation="nij,ijo->no")
    result = prove(b.model(y))
    assert result.choices("aw") == result.choices("w") == [8]
    assert result.choices("bw") == result.choices("w", 1) == [8]


def test_a_sum_over_one_operand_locks() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    result = prove(b.model(b.op("Einsum", b.op("Sigmoid", y), equation="bchw->bhw")))
    assert result.reason("w1") == "Einsum sums over the axis"


def test_a_diagonal_locks() -> None:
    b = Builder()
    y = b.op("MatMul", b.weight(8, 5, name="w1"), b.input("x", 5, 8))
    result = prove(b.model(b.op("Einsum", y, equation="ii->i")))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "Einsum takes a diagonal"


def test_a_size_of_one_is_stretched() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3))
    y = b.op("Einsum", y, b.near_one(1, 8, name="scale"), equation="bsi,si->bsi")
    result = prove(b.model(b.op("MatMul", y, b.weight(8, 4, name="w2"))))
    assert result.choices("w1", 1) == result.choices("scale", 1) == [8]


def test_three_operands() -> None:
    """A bilinear layer: x W z."""
    b = Builder()
    x, z = (b.gemm(b.input(n, 5, 3), 8, name=n + "w") for n in ("x", "z"))
    y = b.op("Einsum", x, b.weight(6, 8, 8, name="w"), z, equation="ni,oij,nj->no")
    result = prove(b.model(b.gemm(y, 4, name="w2")))
    assert result.choices("w") == result.choices("w2", 1) == [6]
