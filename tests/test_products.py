"""Products of computed tensors: what meets what."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.cost import macs
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.products import products
from onnxprune.testing import Builder

Case = tuple[tuple[int, ...], tuple[int, ...], Callable[[Builder, str, str], str]]

CASES: dict[str, Case] = {
    "matmul": ((2, 3, 5, 4), (2, 3, 4, 7), lambda b, q, k: b.op("MatMul", q, k)),
    "matmul-broadcast": ((2, 3, 5, 4), (2, 1, 4, 7), lambda b, q, k: b.op("MatMul", q, k)),
    "matmul-ranks": ((2, 3, 5, 4), (4, 7), lambda b, q, k: b.op("MatMul", q, k)),
    "matmul-vector": ((2, 5, 4), (4,), lambda b, q, k: b.op("MatMul", q, k)),
    "gemm": ((5, 4), (4, 7), lambda b, q, k: b.op("Gemm", q, k)),
    "gemm-trans": ((4, 5), (7, 4), lambda b, q, k: b.op("Gemm", q, k, transA=1, transB=1)),
    "einsum": ((2, 5, 3, 4), (2, 7, 3, 4), lambda b, q, k: b.op("Einsum", q, k, equation="bqhd,bkhd->bhqk")),
    "einsum-groups": (
        (2, 5, 3, 2, 4),
        (2, 7, 3, 4),
        lambda b, q, k: b.op("Einsum", q, k, equation="...ihgd,...jhd->...hgij"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_meets_every_row_of_its_pair(case: str) -> None:
    left, right, make = CASES[case]
    b = Builder()
    y = make(b, b.op("Relu", b.input("q", *left)), b.op("Relu", b.input("k", *right)))
    (found,) = products(couple(load(b.model(y))))
    q, k = (np.random.default_rng(n).standard_normal(shape) for n, shape in enumerate((left, right)))
    x, z = found.laid(q, k)
    assert x.shape[0] == z.shape[0] and x.shape[2] == z.shape[2] == 4
    whole = np.concatenate([(a @ c.T).ravel() for a, c in zip(x, z, strict=True)])
    out = {"gemm": "mk,kn", "gemm-trans": "km,nk"}.get(case)
    direct = np.einsum(out, q, k) if out else _direct(case, q, k)
    np.testing.assert_allclose(np.sort(whole), np.sort(direct.ravel()))
    for slot, shape in enumerate((left, right)):
        assert shape[found.summed(slot).axis] == 4


def _direct(case: str, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    equations = {"einsum": "bqhd,bkhd->bhqk", "einsum-groups": "bihgd,bjhd->bhgij"}
    return np.asarray(np.einsum(equations[case], q, k) if case in equations else q @ k)


def test_what_is_none() -> None:
    b = Builder()
    x = b.op("Relu", b.input("x", 2, 5, 4))
    w = b.op("MatMul", x, b.weight(4, 4, name="w"))
    two = b.op("Einsum", x, w, equation="bid,bid->b")
    model = b.model(two, b.op("Einsum", x, w, equation="bid,bjd->bd"), b.op("Mul", x, w))
    assert not list(products(couple(load(model))))


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "expected"),
    [
        ("MatMul", [(2, 4, 5, 3), (2, 4, 3, 6)], {}, 2 * 4 * 5 * 3 * 6),
        ("MatMul", [(1, 5, 3), (4, 3, 6)], {}, 4 * 5 * 3 * 6),
        ("MatMul", [(5, 3), (3,)], {}, 5 * 3),
        ("Einsum", [(2, 5, 4, 3), (2, 6, 4, 3)], {"equation": "bqhd,bkhd->bhqk"}, 2 * 5 * 6 * 4 * 3),
        ("Gemm", [(5, 3), (6, 3)], {"transB": 1}, 5 * 3 * 6),
    ],
)
def test_multiply_accumulates(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any], expected: int) -> None:
    b = Builder()
    operands = [b.op("Relu", b.input(f"x{n}", *shape)) for n, shape in enumerate(shapes)]
    assert macs(couple(load(b.model(b.op(op, *operands, **attrs))))).before == expected


def test_weights_of_heads_count() -> None:
    """A product with weights of several axes is no layer, but it counts."""
    b = Builder()
    y = b.op("Einsum", b.input("x", 2, 5, 6), b.weight(6, 4, 3), equation="bsi,ihd->bshd")
    assert macs(couple(load(b.model(y)))).before == 2 * 5 * 6 * 4 * 3
