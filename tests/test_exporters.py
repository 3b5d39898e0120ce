"""The idioms of exporters other than torch's: tf2onnx and Keras, paddle2onnx, skl2onnx."""

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxprune.testing import Builder, OracleResult, prove


def nchw(b: Builder, y: str) -> str:
    return b.op("Transpose", y, perm=[0, 3, 1, 2])


def nhwc(b: Builder, y: str) -> str:
    return b.op("Transpose", y, perm=[0, 2, 3, 1])


def keras_conv(b: Builder, y: str, count: int, name: str, kernel: int = 3, **attrs: Any) -> str:
    """A layer of a channels-last model: a Conv between two Transposes, its bias an Add at the end."""
    cin = b.shape(y)[-1] // attrs.get("group", 1)
    w = b.weight(count, cin, kernel, kernel, name=f"StatefulPartitionedCall/{name}/Conv2D/ReadVariableOp:0")
    y = nhwc(b, b.op("Conv", nchw(b, y), w, auto_pad="SAME_UPPER", strides=[1, 1], kernel_shape=[kernel] * 2, **attrs))
    return b.op("Add", y, b.weight(count, name=f"{name}/BiasAdd"))


def kernel(name: str) -> str:
    return f"StatefulPartitionedCall/{name}/Conv2D/ReadVariableOp:0"


def test_tensorflow_convolutions() -> None:
    """Channels last: normalisation by hand, a depthwise layer, a gate, a pad, the mean and a Dense."""
    b = Builder(13)
    y = keras_conv(b, b.input("input_1", 2, 6, 6, 3), 8, "stem")
    y = b.op("Mul", y, b.near_one(8, name="stem/bn/mul"))
    y = b.op("Min", b.op("Relu", b.op("Sub", y, b.weight(8, name="stem/bn/sub"))), np.array(6, np.float32))
    z = keras_conv(b, y, 8, "depthwise", group=8)
    y = b.op("Add", y, b.op("Mul", z, b.op("Sigmoid", z)))
    gate = b.op("ReduceMean", y, axes=[1, 2], keepdims=0)
    gate = b.op("Reshape", gate, b.const(np.array([-1, 1, 1, 8])))
    gate = b.op("Sigmoid", keras_conv(b, gate, 8, "gate", 1))
    y = b.op("Pad", b.op("Mul", y, gate), b.const(np.array([0, 0, 0, 0, 0, 1, 1, 0])))
    y = b.op("Relu", keras_conv(b, y, 6, "last"))
    y = b.op("Reshape", b.op("ReduceMean", y, axes=[1, 2], keepdims=0), b.const(np.array([-1, 6])))
    y = b.op("Relu", b.op("Add", b.op("MatMul", y, b.weight(6, 10, name="dense", fan=6)), b.weight(10, name="dense/b")))
    y = b.op("Add", b.op("MatMul", y, b.weight(10, 4, name="head", fan=10)), b.weight(4))
    result = prove(b.model(b.op("Softmax", y, axis=-1)))
    assert result.choices(kernel("stem")) == result.choices("stem/bn/mul") == result.choices(kernel("depthwise")) == [8]
    assert result.choices(kernel("gate")) == [8]
    assert result.choices(kernel("last")) == result.choices("dense") == [6]
    assert result.choices("dense", 1) == result.choices("head") == [10]


def test_a_flatten_by_shape_arithmetic() -> None:
    """tf2onnx casts sizes to floats and back, and multiplies what follows the batch."""
    b = Builder(13)
    y = b.op("Relu", keras_conv(b, b.input("x", "N", 4, 4, 3), 6, "a"))
    batch = b.op("Slice", b.op("Cast", b.op("Shape", y), to=6), [0], [1], [0])
    shape = b.op("Concat", batch, b.const(np.array([4 * 4 * 6], np.int32)), axis=0)
    y = b.declare(b.op("Reshape", y, b.op("Cast", shape, to=7)), "N", 96)
    y = b.op("Tanh", b.op("MatMul", y, b.weight(96, 5, name="dense", fan=96)))
    result = prove(b.model(b.op("MatMul", y, b.weight(5, 3, name="head"))))
    assert result.choices("dense", 1) == result.choices("head") == [5]
    assert result.choices(kernel("a")) == [6]
    assert result.shape("dense") == (48, 3)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_keras_recurrent(kind: str) -> None:
    """Two layers: the first returns its sequence, the second its last state; batch first around each."""
    b = Builder(15)
    gates = {"LSTM": 4, "GRU": 3}[kind]
    y = b.input("x", 2, 5, 3)
    for name, size, cin in (("first", 6, 3), ("second", 4, 6)):
        w, r = (
            b.weight(1, gates * size, cin, name=f"{name}/w", fan=cin),
            b.weight(1, gates * size, size, name=f"{name}/r", fan=size),
        )
        bias = b.weight(1, 2 * gates * size, name=f"{name}/b")
        attrs = {"linear_before_reset": 1} if kind == "GRU" else {}
        x = b.op("Transpose", y, perm=[1, 0, 2])
        out, state = b.ops(kind, x, w, r, bias, hidden_size=size, outputs=2, direction="forward", **attrs)
        y = (
            b.op("Transpose", b.op("Squeeze", out, [1]), perm=[1, 0, 2])
            if name == "first"
            else b.op("Squeeze", state, [0])
        )
    result = prove(b.model(b.op("MatMul", y, b.weight(4, 3, name="dense"))))
    assert result.choices("first/r", 2) == result.choices("second/w", 2) == [6]
    assert result.choices("second/r", 2) == result.choices("dense") == [4]


def constant(b: Builder, values: Any, name: str) -> str:
    """paddle2onnx keeps weights and shapes in Constant nodes."""
    b.graph.node.append(
        helper.make_node(
            "Constant",
            [],
            [name],
            value=helper.make_tensor(
                name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, values.tobytes(), raw=True
            ),
        )
    )
    b._shapes.clear()
    return name


def paddle_conv(b: Builder, y: str, count: int, name: str, size: int = 3, **attrs: Any) -> str:
    """A Conv without bias, then a BatchNormalization, all weights in Constant nodes."""
    cin = b.shape(y)[1] // attrs.get("group", 1)
    w = constant(b, (b.rng.standard_normal((count, cin, size, size)) / (cin * size)).astype(np.float32), f"{name}.w_0")
    y = b.op("Conv", y, w, pads=[size // 2] * 4, kernel_shape=[size] * 2, **attrs)
    parts = [constant(b, b.rng.uniform(0.5, 1.5, count).astype(np.float32), f"{name}.bn_{i}") for i in range(4)]
    return b.op("BatchNormalization", y, *parts)


def hard_swish(b: Builder, y: str) -> str:
    """x * clip(x + 3, 0, 6) / 6, spelled out."""
    bounds = np.array(0, np.float32), np.array(6, np.float32)
    return b.op("Div", b.op("Mul", y, b.op("Clip", b.op("Add", y, 3.0), *bounds)), 6.0)


def squeeze_and_excite(b: Builder, y: str, name: str) -> str:
    z = paddle_conv(b, b.op("GlobalAveragePool", y), 4, f"{name}.squeeze", 1)
    z = b.op("Conv", b.op("Relu", z), b.weight(b.shape(y)[1], 4, 1, 1, name=f"{name}.excite"))
    return b.op("Mul", y, b.op("HardSigmoid", z, alpha=0.2, beta=0.5))


def test_paddle_detector() -> None:
    """PP-OCR: hard swish, squeeze and excite, depthwise layers, a neck that resizes to the size of its partner."""
    b = Builder(11)
    y = hard_swish(b, paddle_conv(b, b.input("x", 1, 3, 8, 8), 8, "stem"))
    y = hard_swish(b, paddle_conv(b, y, 8, "depthwise", group=8))
    y = squeeze_and_excite(b, y, "se")
    y = b.op("Add", b.op("Mul", y, b.near_one(1, name="scale")), b.weight(1, name="shift"))
    low = b.op("Relu", paddle_conv(b, b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 8, "low"))
    head = b.op("Slice", b.op("Shape", low), [0], [2], [0])
    tail = b.op("Slice", b.op("Shape", y), [2], [4], [0])
    none = b.const(np.zeros(0, np.float32))
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    up = b.op("Resize", low, none, none, b.op("Concat", head, tail, axis=0), **attrs)
    y = b.op("Concat", y, b.declare(up, 1, 8, 8, 8), axis=1)
    result = prove(b.model(b.op("Sigmoid", paddle_conv(b, y, 1, "out", 1))))
    assert result.choices("stem.w_0") == result.choices("depthwise.w_0") == result.choices("se.excite") == [8]
    assert result.choices("se.squeeze.w_0") == [4]
    assert sorted(result.choices("out.w_0", 1)) == [8, 8]


def test_paddle_recogniser() -> None:
    """SVTR: height squeezed away, heads by Slice and Squeeze of one packed product, a CTC head."""
    b = Builder(11)
    y = b.op("Relu", paddle_conv(b, b.input("x", 2, 3, 1, 6), 8, "a", 1))
    y = b.op("Transpose", b.op("Squeeze", y, axes=[2]), perm=[0, 2, 1])
    y = b.op("Add", b.op("MatMul", y, b.weight(8, 24, name="qkv", fan=8)), b.weight(24, name="qkv.b"))
    y = b.op("Transpose", b.op("Reshape", y, constant(b, np.array([0, 6, 3, 2, 4]), "shape")), perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Squeeze", b.op("Slice", y, [i], [i + 1], [0]), axes=[0]) for i in range(3))
    scores = b.op("MatMul", b.op("Mul", q, 0.5), b.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=3), v), perm=[0, 2, 1, 3])
    y = b.op("Reshape", y, b.const(np.array([0, 6, 8])))
    y = b.op("Relu", b.op("MatMul", y, b.weight(8, 10, name="mid", fan=8)))
    result = prove(b.model(b.op("Softmax", b.op("MatMul", y, b.weight(10, 7, name="ctc", fan=10)), axis=2)))
    assert result.choices("qkv", 1) == result.choices("mid") == [2]
    assert result.choices("a.w_0") == result.choices("qkv") == [8]
    assert result.choices("mid", 1) == result.choices("ctc") == [10]


def classifier(hidden: tuple[int, ...] = (10, 6)) -> tuple[Builder, str]:
    """skl2onnx's MLPClassifier up to its probabilities, behind a StandardScaler."""
    b = Builder(15, **{"ai.onnx.ml": 1})
    y = b.op("ai.onnx.ml::Scaler", b.input("X", 4, 5), offset=[0.1] * 5, scale=[0.9] * 5)
    y = b.op("Cast", b.declare(y, 4, 5), to=1)
    cin = 5
    for i, size in enumerate((*hidden, 3)):
        w = b.weight(cin, size, name=f"coefficient{i}", fan=cin)
        y = b.op("Add", b.op("MatMul", y, w), b.weight(1, size, name=f"intercepts{i}"))
        y = b.op("Relu", y) if i < len(hidden) else b.op("Softmax", y, axis=-1)
        cin = size
    return b, y


def check(result: OracleResult) -> None:
    assert (
        result.choices("coefficient0", 1) == result.choices("intercepts0", 1) == result.choices("coefficient1") == [10]
    )
    assert result.choices("coefficient1", 1) == result.choices("coefficient2") == [6]


def test_a_classifier_of_scikit_learn() -> None:
    """The label by ArgMax and ArrayFeatureExtractor, the probabilities normalised."""
    b, y = classifier()
    classes = b.const(np.array([10, 20, 30], np.int32), "classes")
    label = b.op("ai.onnx.ml::ArrayFeatureExtractor", classes, b.op("ArgMax", y, axis=1))
    label = b.op("Reshape", b.op("Cast", b.declare(label, 1, 4, dtype=np.int32), to=7), [-1])
    sure = b.declare(b.op("ai.onnx.ml::Normalizer", y, norm="L1"), 4, 3)
    check(prove(b.model(label, sure)))


def test_features_that_are_picked() -> None:
    """A ColumnTransformer in front: columns by ArrayFeatureExtractor, glued together again."""
    b = Builder(15, **{"ai.onnx.ml": 1})
    x = b.input("X", 4, 5)
    kind = "ai.onnx.ml::ArrayFeatureExtractor"
    left, right = (b.declare(b.op(kind, x, np.array(c, np.int64)), 4, len(c)) for c in ([0, 2], [1, 3, 4]))
    y = b.op("Relu", b.op("MatMul", b.op("Concat", left, right, axis=1), b.weight(5, 8, name="a", fan=5)))
    assert prove(b.model(b.op("MatMul", y, b.weight(8, 2, name="b")))).choices("a", 1) == [8]
