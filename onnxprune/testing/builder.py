"""Tiny graph builders: nodes and seeded random weights, collected into a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import GraphProto, ModelProto, helper, numpy_helper

from onnxprune.shapes import shell_of

Operand: TypeAlias = ArrayLike | None  # a value's name; an array or number (an initializer is made); None: left out


class Builder:
    """Collects nodes and initializers with seeded random weights."""

    def __init__(self, opset: int = 17, seed: int = 0, ir_version: int | None = None, **domains: int) -> None:
        """`domains`: versions of further operator sets. Before IR version 4 initializers are inputs, too."""
        self.rng = np.random.default_rng(seed)
        self.imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
        self.ir_version = ir_version or max(8, helper.find_min_ir_version_for(self.imports[:1]))
        self.graph = GraphProto(name="tiny")
        self.functions: list[onnx.FunctionProto] = []
        self._types: dict[str, onnx.TypeProto] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def input(self, name: str, *shape: int | str, dtype: Any = np.float32) -> str:
        """A graph input; strings are open sizes."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, value: ArrayLike, name: str | None = None) -> str:
        """An initializer; Python numbers become float32 or int64."""
        array = np.asarray(value)
        if array.dtype == np.float64 and not isinstance(value, np.ndarray):
            array = array.astype(np.float32)
        name = name or f"c{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, name: str | None = None, fan: int | None = None) -> str:
        """A random initializer that keeps the scale of what it is multiplied with; `fan`: how many are summed up."""
        fan = fan or max(1, int(np.prod(shape[1:])))
        return self.const((self.rng.standard_normal(shape) / fan**0.5).astype(np.float32), name)

    def near_one(self, *shape: int, name: str | None = None) -> str:
        """A random initializer between 0.5 and 1.5: a scale, a variance, a divisor."""
        return self.const(self.rng.uniform(0.5, 1.5, shape).astype(np.float32), name)

    def ops(self, kind: str, *inputs: Operand, outputs: int | Sequence[str] = 1, **attrs: Any) -> list[str]:
        """A node with several outputs; its operator may be written `domain::Kind`."""
        domain, _, op = kind.rpartition("::")
        index = len(self.graph.node)
        names = [f"{op}_{index}_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        read = ["" if x is None else x if isinstance(x, str) else self.const(x) for x in inputs]
        node = helper.make_node(op, read, names, name=f"{op}_{index}", domain=domain, **attrs)
        self.graph.node.append(node)
        self._shapes.clear()
        return names

    def op(self, kind: str, *inputs: Operand, name: str | None = None, **attrs: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, outputs=1 if name is None else [name], **attrs)[0]

    def declare(self, value: str, *shape: int | str, dtype: Any = np.float32) -> str:
        """Say the shape of a value that inference cannot find."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.graph.value_info.append(helper.make_tensor_value_info(value, kind, shape))
        return value

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value, by inference; an open size is 0."""
        if value not in self._shapes:
            shell = shell_of(self._proto(self._whole()), {}, "tiny").graph
            infos = [*shell.value_info, *shell.input]
            self._shapes = {t.name: tuple(t.dims) for t in shell.initializer}
            self._shapes |= {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in infos}
            self._types = {i.name: i.type for i in infos}
        return self._shapes[value]

    def conv(self, x: str, out: int, kernel: int = 3, name: str | None = None, bias: bool = True, **attrs: Any) -> str:
        """A convolution over all axes from 2 on; padded to keep the size unless told otherwise."""
        rank, cin = len(self.shape(x)) - 2, self.shape(x)[1]
        if "auto_pad" not in attrs:
            attrs.setdefault("pads", [kernel // 2] * (2 * rank))
        w = self.weight(out, cin // attrs.get("group", 1), *[kernel] * rank, name=name)
        return self.op("Conv", x, w, *([self.weight(out, name=name and f"{name}.bias")] if bias else []), **attrs)

    def gemm(self, x: str, out: int, name: str | None = None, bias: bool = True) -> str:
        """A Gemm with the weight [out, in], as torch exports linear layers."""
        w = self.weight(out, self.shape(x)[1], name=name)
        b = [self.weight(out, name=name and f"{name}.bias")] if bias else []
        return self.op("Gemm", x, w, *b, transB=1)

    def batch_norm(self, x: str, name: str | None = None) -> str:
        """A BatchNormalization with random statistics, named `name.scale`, `.bias`, `.mean` and `.var`."""
        c = self.shape(x)[1]
        scale, bias, mean, var = (name and f"{name}.{part}" for part in ("scale", "bias", "mean", "var"))
        shifts = self.weight(c, name=bias), self.weight(c, name=mean)
        return self.op("BatchNormalization", x, self.near_one(c, name=scale), *shifts, self.near_one(c, name=var))

    def model(self, *outputs: str) -> ModelProto:
        """The model with these outputs."""
        graph = self._whole()
        for name in outputs:
            self.shape(name)
            graph.output.add(name=name, type=self._types[name])
        return self._proto(graph)

    def _whole(self) -> GraphProto:
        graph = GraphProto()
        graph.CopyFrom(self.graph)
        if self.ir_version < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer)
        return graph

    def _proto(self, graph: GraphProto) -> ModelProto:
        return helper.make_model(
            graph, opset_imports=self.imports, functions=self.functions, ir_version=self.ir_version
        )


def sandwich(
    middle: Callable[[Builder, str], str], channels: int = 8, opset: int = 17, spatial: Sequence[int | str] = (6, 6)
) -> ModelProto:
    """x -> conv `w1` -> `middle` -> conv `w2` (a Gemm where `middle` leaves a matrix) -> y; no biases."""
    b = Builder(opset)
    y = middle(b, b.conv(b.input("x", 2, 3, *spatial), channels, name="w1", bias=False))
    return b.model(close(b, y))


def close(b: Builder, y: str, out: int = 4, name: str = "w2") -> str:
    """A last layer that contracts axis 1."""
    return b.gemm(y, out, name, bias=False) if len(b.shape(y)) == 2 else b.conv(y, out, 1, name, bias=False)
