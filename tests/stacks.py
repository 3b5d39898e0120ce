"""Small deep networks: transformers, residual and dense networks, chains."""

import numpy as np
from onnx import ModelProto

from onnxprune.testing import Builder


def attention(b: Builder, x: str, width: int, name: str, mask: str | None = None) -> str:
    """One head, with a bias behind its last layer."""
    q, k, v = (b.op("MatMul", x, b.weight(width, width, name=f"{name}.{part}", fan=width)) for part in "qkv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    scores = scores if mask is None else b.op("Add", scores, mask)
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return linear(b, mixed, width, f"{name}.out")


def linear(b: Builder, x: str, out: int, name: str) -> str:
    """MatMul and its bias."""
    width = b.shape(x)[-1]
    made = b.op("MatMul", x, b.weight(width, out, name=name, fan=width))
    return b.op("Add", made, b.weight(out, name=f"{name}.bias"))


def norm(b: Builder, x: str, name: str) -> str:
    """LayerNormalization over the last axis."""
    width = b.shape(x)[-1]
    return b.op("LayerNormalization", x, b.near_one(width, name=f"{name}.scale"), b.weight(width, name=f"{name}.shift"))


def transformer(layers: int = 2, width: int = 8, mask: bool = False, before: bool = True) -> ModelProto:
    """`before`: norms stand in front of attention and MLP, else behind the sums. Named layer.attn, layer.mlp."""
    b = Builder()
    x = linear(b, b.input("x", "N", 5, 6), width, "embed")
    hidden = b.op("Unsqueeze", b.input("mask", "N", 5), np.array([1])) if mask else None
    for layer in range(layers):
        for part in ("attn", "mlp"):
            name = f"{layer}.{part}"
            y = norm(b, x, f"{name}.norm") if before else x
            if part == "attn":
                y = attention(b, y, width, name, hidden)
            else:
                y = linear(b, b.op("Relu", linear(b, y, 2 * width, f"{name}.up")), width, f"{name}.down")
            x = b.op("Add", x, y, name=f"{name}.sum")
            x = x if before else norm(b, x, f"{name}.norm")
    return b.model(linear(b, norm(b, x, "last"), 4, "head"))


def residual(blocks: int = 3, width: int = 8, batch_norm: bool = True, relu: bool = True, seed: int = 0) -> ModelProto:
    """Convolutions; ReLU behind the sums (or none). Sums are named sum0, sum1...; in the middle the size changes."""
    b = Builder(seed=seed)

    def conv(x: str, out: int, name: str, kernel: int = 3, **attrs: int) -> str:
        y = b.conv(x, out, kernel, name, bias=not batch_norm, **attrs)
        return b.batch_norm(y, f"{name}.bn") if batch_norm else y

    x = b.op("Relu", conv(b.input("x", "N", 3, 8, 8), width, "stem"))
    for number in range(blocks):
        if number == blocks // 2:
            x = b.op("Relu", conv(x, width + 4, "wider"))
            width += 4
        y = conv(b.op("Relu", conv(x, width, f"{number}.a")), width, f"{number}.b")
        x = b.op("Add", x, y, name=f"sum{number}")
        x = b.op("Relu", x) if relu else x
    return b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", x)), 5, "head"))


def dense(layers: int = 3) -> ModelProto:
    """Every layer adds channels."""
    b = Builder()
    x = b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem")
    for layer in range(layers):
        y = b.conv(b.op("Relu", b.batch_norm(x)), 4, name=f"layer{layer}")
        x = b.op("Concat", x, y, axis=1)
    return b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", x)), 5))


def chain(layers: int = 3, width: int = 8) -> ModelProto:
    """Convolutions one after the other; ReLUs are named relu0, relu1..."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), width, name="stem"), name="start")
    for layer in range(layers):
        x = b.op("Relu", b.conv(x, width, name=f"conv{layer}"), name=f"relu{layer}")
    return b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", x)), 5))
