"""Int8 by `onnxruntime.quantization`: static, with ranges of activations from data, and dynamic, without."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from onnxprune.feeds import Feed
from onnxprune.graph import Graph
from onnxprune.quantized.extremes import reduced, restored
from onnxprune.runtime import resolve

BITS_16 = ("uint16", "int16")
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
OF_GEMM = "_MatMul"  # is added to the name of a Gemm that dynamic quantization makes a MatMul of
SLOW = {"Conv": "slow on integers; name it in ops"}  # in dynamic quantization: ConvInteger has no fast kernel
TYPES = {"int8": "QInt8", "uint8": "QUInt8", "int16": "QInt16", "uint16": "QUInt16"}


@dataclass(frozen=True)
class Grid:
    """How numbers become integers.

    Attributes:
        weights, activations: a key of `TYPES`; dynamic quantization always has uint8 activations.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of seven bits.
        symmetric: zero points of activations in the middle.
    """

    weights: str
    activations: str
    per_channel: bool
    reduce_range: bool
    symmetric: bool = False


class Reader:
    """Feeds one after the other, as ONNX Runtime's `CalibrationDataReader` has them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        """`feeds`: read as often as is asked for."""
        self.feeds = feeds
        self._left: Iterator[Feed] = iter(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these."""
        self._left = iter(self.feeds[start_index:end_index])

    def get_next(self) -> Feed | None:
        """The next feed; None: there are no more."""
        return next(self._left, None)


def static_ops() -> frozenset[str]:
    """Operators that static quantization knows."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset(QDQRegistry) | frozenset(QLinearOpsRegistry)


def dynamic_ops() -> frozenset[str]:
    """Operators that dynamic quantization knows; a Gemm becomes a MatMul and an Add first."""
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    return frozenset(IntegerOpsRegistry) | {"Gemm"}


def vectors(graph: Graph) -> list[str]:
    """MatMuls by a vector: the tool would give each of its elements a scale, behind a result that lacks them."""
    matmuls = (n for n in graph.nodes if n.op == "MatMul" and n.inputs[1] in graph.constants)
    return [node.label for node in matmuls if len(graph.constants[node.inputs[1]].dims) == 1]


def static(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    grid: Grid,
    ops: Collection[str],
    excluded: Sequence[str],
    method: str,
    provider: str,
) -> None:
    """Write a model with QuantizeLinear and DequantizeLinear around what runs on integers.

    Args:
        source: the model, prepared.
        target: the new model's file, with its larger weights beside it.
        feeds: what ranges of activations are taken from; one is run at a time.
        grid: how numbers become integers.
        ops: operator types.
        excluded: names of nodes that stay.
        method: how ranges are chosen, a key of `METHODS`.
        provider: what the float model is run on, by its short name.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=sorted(ops),
        per_channel=grid.per_channel,
        reduce_range=grid.reduce_range,
        activation_type=getattr(QuantType, TYPES[grid.activations]),
        weight_type=getattr(QuantType, TYPES[grid.weights]),
        nodes_to_exclude=list(excluded),
        use_external_data_format=True,
        calibrate_method=getattr(CalibrationMethod, METHODS[method]),
        calibration_providers=list(dict.fromkeys([resolve(provider), resolve("cpu")])),
        extra_options={
            "ActivationSymmetric": grid.symmetric,
            "CalibTensorRangeSymmetric": grid.symmetric,
            "CalibStridedMinMax": 1,  # else the values of all feeds are kept till the end
        },
    )


def dynamic(source: Path, target: Path, grid: Grid, ops: Collection[str], excluded: Sequence[str]) -> ModelProto:
    """A model that takes the ranges of activations anew in every run; its larger weights are beside `target`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

    small = source.with_name("reduced.onnx")
    wholes = reduced(source, small)
    quantize_dynamic(
        str(small),
        str(target),
        op_types_to_quantize=sorted((set(ops) - {"Gemm"}) | ({"MatMul"} if "Gemm" in ops else set())),
        per_channel=grid.per_channel,
        reduce_range=grid.reduce_range,
        weight_type=getattr(QuantType, TYPES[grid.weights]),
        nodes_to_exclude=[*excluded, *(f"{name}{OF_GEMM}" for name in excluded)],
        use_external_data_format=True,
        extra_options={
            "DefaultTensorType": TensorProto.FLOAT
        },  # of results whose shapes contradict the reduced weights
    )
    made = onnx.load(target, load_external_data=False)
    restored(made, wholes, source.parent, TENSOR_NAME_QUANT_SUFFIX)
    return made
