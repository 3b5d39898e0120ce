"""Numbers through operators that work element by element: what ONNX says of them, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy import special

from onnxprune.tensors import FLOATS

Numbers = NDArray[np.float64]
Attrs = Mapping[str, Any]

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _elu(x: Numbers, alpha: float) -> Numbers:
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _hard_sigmoid(x: Numbers, alpha: float, beta: float) -> Numbers:
    return np.asarray(np.clip(alpha * x + beta, 0, 1))


def _gelu(x: Numbers, a: Attrs) -> Numbers:
    if a.get("approximate", "none") == "tanh":
        gate = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    else:
        gate = special.erf(x / np.sqrt(2))
    return np.asarray(0.5 * x * (1 + gate))


def _shrink(x: Numbers, a: Attrs) -> Numbers:
    bias, limit = a.get("bias", 0.0), a.get("lambd", 0.5)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0.0))


def _cast(x: Numbers, a: Attrs) -> Numbers:
    if a["to"] in FLOATS:
        return np.asarray(x.astype(helper.tensor_dtype_to_np_dtype(a["to"])), dtype=np.float64)
    if a["to"] == TensorProto.BOOL:
        return np.asarray(x != 0, dtype=np.float64)
    return np.where(np.abs(x) < 127, np.trunc(x), np.nan)  # what overflows is another matter


UNARY: dict[str, Callable[[Numbers, Attrs], Any]] = {
    "Abs": lambda x, a: np.abs(x),
    "Acos": lambda x, a: np.arccos(x),
    "Acosh": lambda x, a: np.arccosh(x),
    "Asin": lambda x, a: np.arcsin(x),
    "Asinh": lambda x, a: np.arcsinh(x),
    "Atan": lambda x, a: np.arctan(x),
    "Atanh": lambda x, a: np.arctanh(x),
    "Cast": _cast,
    "Ceil": lambda x, a: np.ceil(x),
    "Celu": lambda x, a: _elu(x / a.get("alpha", 1.0), 1.0) * a.get("alpha", 1.0),
    "Cos": lambda x, a: np.cos(x),
    "Cosh": lambda x, a: np.cosh(x),
    "Elu": lambda x, a: _elu(x, a.get("alpha", 1.0)),
    "Erf": lambda x, a: special.erf(x),
    "Exp": lambda x, a: np.exp(x),
    "Floor": lambda x, a: np.floor(x),
    "Gelu": _gelu,
    "HardSigmoid": lambda x, a: _hard_sigmoid(x, a.get("alpha", 0.2), a.get("beta", 0.5)),
    "HardSwish": lambda x, a: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "Identity": lambda x, a: x,
    "LeakyRelu": lambda x, a: np.where(x < 0, a.get("alpha", 0.01) * x, x),
    "Log": lambda x, a: np.log(x),
    "Mish": lambda x, a: x * np.tanh(np.logaddexp(0, x)),
    "Neg": lambda x, a: -x,
    "Not": lambda x, a: x == 0,
    "Reciprocal": lambda x, a: 1 / x,
    "Relu": lambda x, a: np.maximum(x, 0),
    "Round": lambda x, a: np.rint(x),
    "Selu": lambda x, a: a.get("gamma", SELU_GAMMA) * _elu(x, a.get("alpha", SELU_ALPHA)),
    "Shrink": _shrink,
    "Sigmoid": lambda x, a: special.expit(x),
    "Sign": lambda x, a: np.sign(x),
    "Sin": lambda x, a: np.sin(x),
    "Sinh": lambda x, a: np.sinh(x),
    "Softplus": lambda x, a: np.logaddexp(0, x),
    "Softsign": lambda x, a: x / (1 + np.abs(x)),
    "Sqrt": lambda x, a: np.sqrt(x),
    "Swish": lambda x, a: x * special.expit(a.get("alpha", 1.0) * x),
    "Tan": lambda x, a: np.tan(x),
    "Tanh": lambda x, a: np.tanh(x),
    "ThresholdedRelu": lambda x, a: np.where(x > a.get("alpha", 1.0), x, 0.0),
}

_FOLDS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "And": np.logical_and,
    "Div": np.divide,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Max": np.maximum,
    "Mean": np.add,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Or": np.logical_or,
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "Pow": np.power,
    "Sub": np.subtract,
    "Sum": np.add,
    "Xor": np.logical_xor,
}
NARY = frozenset(_FOLDS)


def unary(op: str, x: Numbers, attrs: Attrs) -> Numbers:
    """The numbers after an operator with one input; NaN where there was none."""
    with np.errstate(all="ignore"):
        return _strict(UNARY[op](x, attrs), x)


def nary(op: str, parts: list[Numbers]) -> Numbers:
    """The numbers after a broadcasting operator; NaN where any operand has none, but 0 * x = 0."""
    with np.errstate(all="ignore"):
        result: Any = parts[0]
        for part in parts[1:]:
            result = _FOLDS[op](result, part)
        result = _strict(result / len(parts) if op == "Mean" else result, *parts)
        if op in ("Mul", "And"):
            zero, finite = np.zeros(result.shape, dtype=bool), np.ones(result.shape, dtype=bool)
            for part in parts:
                zero |= part == 0
                finite &= ~np.isinf(part)
            result = np.where(zero & finite, 0.0, result)
        return np.asarray(result)


def where(condition: Numbers, yes: Numbers, no: Numbers) -> Numbers:
    """The numbers of Where: both branches may say the same."""
    known = np.where(condition != 0, yes, no)
    same = np.where(yes == no, yes, np.nan)
    return _strict(np.where(np.isnan(condition), same, known))


def _strict(result: Any, *parts: Numbers) -> Numbers:
    """No number where an operand has none, or where the result is not finite."""
    numbers = np.asarray(result, dtype=np.float64)
    for part in parts:
        numbers = np.where(np.isnan(part), np.nan, numbers)
    return np.where(np.isfinite(numbers), numbers, np.nan)
