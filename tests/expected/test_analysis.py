"""Expected values of every kind of operator, against samples."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import couple, load
from onnxprune.calibrate import calibrate
from onnxprune.consumers import consumers
from onnxprune.expected.analysis import expectations
from onnxprune.expected.law import Law
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close
from tests.trained import pictures, trained

Middle = Callable[[Builder, str], str]


def after_norm(middle: Middle) -> ModelProto:
    """x, standard normal -> BatchNormalization that knows it -> `middle` -> y."""
    b = Builder()
    x = b.input("x", "N", 4, 4, 4)
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    beta = np.array([-1, -0.25, 0.5, 1.5], np.float32)
    y = middle(b, b.op("BatchNormalization", x, b.near_one(4), beta, zero, one))
    return b.model(b.op("Identity", y, name="y"))


def law_of(model: ModelProto, name: str = "y") -> Law:
    return expectations(couple(load(model))).of(name)


def swish(b: Builder, y: str) -> str:
    return b.op("Mul", y, b.op("Sigmoid", y))


def gate(b: Builder, y: str) -> str:
    """Squeeze and excite."""
    z = b.op("Relu", b.conv(b.op("GlobalAveragePool", b.op("Relu", y)), 8, 1))
    return b.op("Mul", y, b.op("Sigmoid", b.conv(z, 4, 1)))


def shuffle(b: Builder, y: str) -> str:
    y = b.op("Transpose", b.op("Reshape", y, np.array([-1, 2, 2, 4, 4])), perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", y, np.array([-1, 4, 4, 4]))


def branches(b: Builder, y: str) -> str:
    """Two sums of the same channels count as independent, which does not matter to a mean."""
    return b.op("Concat", b.op("Sub", b.conv(y, 4, 1), b.conv(y, 4, 1)), b.op("Relu", y), axis=1)


def parts(b: Builder, y: str) -> str:
    first, second = b.ops("Split", y, np.array([1, 3]), outputs=2, axis=1)
    return b.op("Concat", b.op("Neg", second), first, axis=1)


MIDDLES: dict[str, Middle] = {
    "relu": lambda b, y: b.op("Relu", y),
    "clip": lambda b, y: b.op("Clip", y, np.float32(-0.5), np.float32(1)),
    "hard swish": lambda b, y: b.op("HardSwish", y),
    "swish": swish,
    "leaky": lambda b, y: b.op("LeakyRelu", y, alpha=0.3),
    "slopes": lambda b, y: b.op("PRelu", y, b.near_one(4, 1, 1)),
    "mean": lambda b, y: b.op("Mean", y, b.op("Relu", y)),
    "scaled": lambda b, y: b.op("Div", b.op("Mul", y, b.near_one(4, 1, 1)), np.float32(3)),
    "twice": lambda b, y: b.op("Dropout", b.op("Exp", b.op("Neg", b.op("Abs", y)))),
    "gate": gate,
    "convolution": lambda b, y: b.op("Relu", b.conv(b.op("Relu", y), 6, 3, pads=[0] * 4)),
    "depthwise": lambda b, y: b.op("Relu", b.conv(b.op("Relu", y), 4, 3, pads=[0] * 4, group=4)),
    "groups": lambda b, y: b.conv(b.op("Relu", y), 6, 1, group=2, bias=False),
    "transposed": lambda b, y: b.op("ConvTranspose", b.op("Relu", y), b.weight(4, 5, 2, 2), strides=[2, 2]),
    "instance": lambda b, y: b.op("InstanceNormalization", y, b.near_one(4), b.weight(4)),
    "pool": lambda b, y: b.op("AveragePool", b.op("Relu", y), kernel_shape=[2, 2]),
    "resize": lambda b, y: b.op("Resize", b.op("Relu", y), "", np.array([1, 1, 2, 2], np.float32), mode="nearest"),
    "global": lambda b, y: b.gemm(b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", y))), 3),
    "reduced": lambda b, y: b.op("ReduceMean", b.op("Relu", y), axes=[2, 3], keepdims=0),
    "flat": lambda b, y: b.gemm(b.op("Flatten", b.op("Relu", y)), 3),
    "tokens": lambda b, y: b.op("MatMul", b.op("Transpose", b.op("Relu", y), perm=[0, 2, 3, 1]), b.weight(4, 5)),
    "shuffle": shuffle,
    "branches": branches,
    "parts": parts,
    "slice": lambda b, y: b.op("Slice", y, np.array([1]), np.array([4]), np.array([1]), np.array([2])),
    "gather": lambda b, y: b.op("Gather", y, np.array([3, 0]), axis=1),
    "expand": lambda b, y: b.op("Expand", b.op("Unsqueeze", y, np.array([1])), np.array([1, 2, 1, 1, 1])),
    "squeezed": lambda b, y: b.op("Squeeze", b.op("GlobalAveragePool", y), np.array([2, 3])),
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_the_mean_is_that_of_samples(middle: Middle) -> None:
    model = after_norm(middle)
    x = np.random.default_rng(0).standard_normal((4000, 4, 4, 4)).astype(np.float32)
    y = run(session(model, threads=1), {"x": x})["y"].astype(np.float64)
    mean = law_of(model).mean
    assert mean.ndim == y.ndim and not np.isnan(mean).any()
    axes = tuple(a for a in range(y.ndim) if mean.shape[a] == 1)
    np.testing.assert_allclose(mean, y.mean(axis=axes, keepdims=True), atol=0.04)


def test_padding_is_not_seen() -> None:
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    padded = law_of(after_norm(lambda b, y: b.op("Pad", b.op("Relu", y), pads))).mean
    np.testing.assert_array_equal(padded, law_of(after_norm(lambda b, y: b.op("Relu", y))).mean)


@pytest.mark.parametrize(
    "middle",
    [
        lambda b, y: b.op("Softmax", y, axis=1),
        lambda b, y: b.op("Add", y, b.input("other", 4, 1, 1)),
        lambda b, y: b.op("Log", y),
        lambda b, y: b.op("Gather", y, b.input("index", 2, dtype=np.int64), axis=1),
        lambda b, y: b.op("Pad", y, np.array([0, 1, 0, 0, 0, 1, 0, 0])),
        lambda b, y: b.op("MaxPool", b.op("Add", y, b.weight(1, 4, 4, 4)), kernel_shape=[2, 2]),
    ],
    ids=["operator", "input", "undefined", "indices", "channels", "places"],
)
def test_what_is_not_known(middle: Middle) -> None:
    assert np.isnan(law_of(after_norm(middle)).mean).all()


def test_a_constant_is_exact_even_before_a_norm() -> None:
    """Filters that are zero leave the bias, whatever is read; a BatchNormalization computes with it."""
    b = Builder()
    w = b.rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[1] = 0
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), w, np.array([1, -2, 3, 4], np.float32))
    model = b.model(close(b, b.op("Relu", b.batch_norm(y, "norm")), name="w2"))
    law = law_of(model, model.graph.node[1].output[0])
    assert law.variance[0, 1] == 0 < law.variance[0, 0]
    named = {t.name: numpy_helper.to_array(t)[1] for t in model.graph.initializer if t.name.startswith("norm")}
    scale, beta, mean, var = (named[f"norm.{part}"] for part in ("scale", "bias", "mean", "var"))
    assert law.mean[0, 1, 0, 0] == pytest.approx((-2 - mean) * scale / np.sqrt(var + 1e-5) + beta, rel=1e-5)


def test_a_trained_network() -> None:
    """What its layers read has the means and the variances that the weights alone say."""
    coupling = couple(load(trained()))
    laws, dims = expectations(coupling), [r.x for r in consumers(coupling)]
    seen = calibrate(coupling.graph, [pictures()], dict.fromkeys(dims, Want.SUMS), Engine(threads=1))
    assert np.isnan(laws.of("x").mean).all()
    for dim in dims[1:]:
        mean, variance = laws.of(dim.value).along(dim.axis, seen[dim].mean.size)
        assert np.square(mean - seen[dim].mean).sum() < 0.02 * np.square(seen[dim].mean).sum()
        if dim.value != dims[-1].value:  # places of a picture are not independent
            assert 0.6 < np.median(variance / seen[dim].variance) < 1.6
