"""MatMul and Gemm in all their forms."""

import numpy as np
import pytest

from onnxprune.cost import macs
from onnxprune.rules.base import Options
from onnxprune.rules.matmul import COMPUTED, INSIDE
from onnxprune.testing import Builder, close, prove, sandwich


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [(6,), (1, 6), (5, 6), (5, 1), (1,), (), None], ids=str)
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    b = Builder()
    y = b.gemm(b.input("x", 5, 3), 8, name="w1")
    y = b.op("Transpose", y) if trans_a else y
    c = [b.const(b.rng.standard_normal(bias).astype(np.float32), "c")] if bias is not None else []
    w = b.weight(*((6, 8) if trans_b else (8, 6)), name="w")
    y = b.op("Gemm", y, w, *c, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    result = prove(b.model(b.gemm(b.op("Relu", y), 4, name="w2")))
    assert result.choices("w1") == result.choices("w", trans_b) == [8]
    assert result.choices("w", 1 - trans_b) == result.choices("w2", 1) == [6]
    assert result.params[1] < result.params[0]
    if bias and bias[-1] == 6:
        assert result.shape("c") == (*bias[:-1], 3)


def test_gemm_with_the_weight_on_the_left() -> None:
    b = Builder()
    x = b.op("Transpose", b.gemm(b.input("x", 5, 3), 8, name="w1"))  # [8, 5]
    y = b.op("Gemm", b.weight(6, 8, name="w"), x)
    result = prove(b.model(b.gemm(b.op("Transpose", y), 4, name="w2")))
    assert result.choices("w1") == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2", 1) == [6]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_matmul_with_the_weight_on_the_right(batch: tuple[int, ...]) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", *batch, 5, 3), b.weight(3, 8, name="w1"))
    y = b.op("Add", b.op("MatMul", y, b.weight(8, 6, name="w")), b.weight(6, name="bias"))
    result = prove(b.model(b.op("MatMul", b.op("Relu", y), b.weight(6, 4, name="w2"))))
    assert result.choices("w1", 1) == result.choices("w") == [8]
    assert result.choices("w", 1) == result.choices("bias") == result.choices("w2") == [6]
    assert result.reason("w2", 1) == "a graph output"


def test_matmul_with_the_weight_on_the_left() -> None:
    """Token mixing: the weight acts on the axis before the last."""
    b = Builder()
    y = b.op("MatMul", b.weight(8, 5, name="w1"), b.input("x", 2, 5, 3))
    y = b.op("MatMul", b.weight(6, 8, name="w"), b.op("Relu", y))
    result = prove(b.model(b.op("MatMul", b.weight(4, 6, name="w2"), b.op("Relu", y))))
    assert result.choices("w1") == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2", 1) == [6]


def test_matmul_with_a_batch_of_weights() -> None:
    """A mixture of experts: each expert has its own matrix; the experts themselves are tied to the batch."""
    b = Builder()
    y = b.op("MatMul", b.input("x", 4, 5, 3), b.weight(4, 3, 8, name="w1", fan=3))
    result = prove(b.model(b.op("MatMul", b.op("Relu", y), b.weight(4, 8, 2, name="w2", fan=8))))
    assert result.choices("w1", 2) == result.choices("w2", 1) == [8]
    assert not result.can_cut("w1", 0)


def test_matmul_broadcasts_a_batch_of_weights() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 5, 3), b.weight(4, 3, 8, name="w1", fan=3))
    y = b.op("MatMul", b.op("Relu", y), b.weight(1, 8, 2, name="w2", fan=8))
    result = prove(b.model(y))
    assert result.choices("w1", 2) == result.choices("w2", 1) == [8]


def test_matmul_with_vectors() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 3), b.weight(3, 8, name="w1"))  # [8]
    y = b.op("MatMul", b.op("Relu", y), b.weight(8, 6, name="w"))
    result = prove(b.model(b.op("MatMul", b.op("Relu", y), b.weight(6, name="w2"))))  # scalar
    assert result.choices("w1", 1) == result.choices("w") == [8]
    assert result.choices("w", 1) == result.choices("w2") == [6]


def test_matmul_of_a_matrix_with_a_vector() -> None:
    b = Builder()
    y = b.op("MatMul", b.weight(8, 3, name="w1"), b.input("x", 3))
    result = prove(b.model(b.op("MatMul", b.weight(4, 8, name="w2"), b.op("Relu", y))))
    assert result.choices("w1") == result.choices("w2", 1) == [8]


def attention(b: Builder, act: str | None = None) -> str:
    """One head: softmax(Q K^T) V with 8 dimensions, and an activation on Q and K."""
    x = b.input("x", 5, 3)
    q, k, v = (b.gemm(x, 8, name=name) for name in "qkv")
    if act:
        q, k = b.op(act, q), b.op(act, k)
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k)))
    return b.gemm(b.op("MatMul", scores, v), 4, name="out")


def test_the_inside_of_a_head_stays_unless_asked_for() -> None:
    b = Builder()
    model = b.model(attention(b))
    result = prove(model)
    assert result.reason("q") == result.reason("k") == INSIDE
    assert result.choices("v") == result.choices("out", 1) == [8]
    opened = prove(model, options=Options(head_dims=True))
    assert opened.choices("q") == opened.choices("k") == [8]


def test_a_product_of_tensors_that_are_not_zero_where_cut_locks() -> None:
    b = Builder()
    result = prove(b.model(attention(b, "Sigmoid")), options=Options(head_dims=True))
    assert result.reason("q") == result.reason("k") == COMPUTED
    assert result.choices("v") == [8]


def test_one_side_of_a_product_that_is_zero_where_cut_is_enough() -> None:
    b = Builder()
    x = b.input("x", 5, 3)
    q, k = b.gemm(x, 8, name="q"), b.op("Exp", b.gemm(x, 8, name="k"))
    result = prove(b.model(b.op("Gemm", q, k, transB=1)), options=Options(head_dims=True))
    assert result.choices("q") == result.choices("k") == [8]


def test_flatten_into_a_gemm() -> None:
    result = prove(sandwich(lambda b, y: b.op("Flatten", b.op("Relu", y))))
    assert result.choices("w1") == [8]
    assert result.shape("w2") == (4, 4 * 36)


def test_cost_counts_what_a_product_multiplies() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1"))  # 2 * 5 * 3 * 8 = 240
    y = close(b, b.op("Reshape", y, [10, 8]), 4)  # 10 * 8 * 4 = 320
    result = prove(b.model(y))
    cost = macs(result.coupling)
    assert cost.before == 240 + 320
    assert cost(np.array([4])) == (240 + 320) / 2
