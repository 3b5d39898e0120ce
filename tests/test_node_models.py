"""ONNX's own models of single operators: none crashes the analysis, and what can be cut of them is exact."""

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from onnxprune import couple, load
from onnxprune.errors import OnnxPruneError
from onnxprune.testing import VacuousError, oracle

FEW = 2  # models of each set of operators that are proved; the rest differ in numbers
# Cut or masked, these divide zero by zero.
NOT_A_NUMBER = {"MeanVarianceNormalization", "ReduceLogSum", "ReduceLogSumExp"}


@cache
def cases() -> Sequence[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases(None))


def test_no_model_of_an_operator_crashes_the_analysis() -> None:
    assert len(cases()) > 1000
    for number, case in enumerate(cases()):
        if "_expanded" in case.name and number % 5:
            continue  # the same again as a function's body
        try:
            couple(load(case.model))
        except OnnxPruneError:
            continue  # refused in a sentence


def ops(model: ModelProto) -> str:
    return "/".join(sorted({n.op_type for n in model.graph.node}))


def few() -> Iterator[Any]:
    seen: dict[str, int] = {}
    for case in cases():
        key = ops(case.model)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= FEW and "_expanded" not in case.name and not NOT_A_NUMBER & set(key.split("/")):
            yield case


def is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim > 0


def matmul(name: str, made: str, rank: int, axis: int, weight: str) -> list[Any]:
    """A product with a matrix along one axis."""
    perm = [a for a in range(rank) if a != axis] + [axis]
    return [
        helper.make_node("Transpose", [name], [f"{name}/last"], perm=perm),
        helper.make_node("MatMul", [f"{name}/last", weight], [f"{name}/mixed"]),
        helper.make_node("Transpose", [f"{name}/mixed"], [made], perm=np.argsort(perm).tolist()),
    ]


def between(case: Any, place: int, axis: int, out: int) -> tuple[ModelProto, dict[str, NDArray[Any]]] | None:
    """The model between two matrices: along `axis` of float input `place`, and along `out` of its outputs."""
    values = dict(zip((i.name for i in case.model.graph.input), case.data_sets[0][0], strict=False))
    floats = [name for name, value in values.items() if is_floats(value)]
    made = case.data_sets[0][1]
    if place >= len(floats) or not all(isinstance(v, np.ndarray) for v in values.values()):
        return None
    x, rng = floats[place], np.random.default_rng(0)
    if axis >= values[x].ndim or values[x].shape[axis] < 2 or not all(is_floats(v) and out < v.ndim for v in made):
        return None
    model = ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    size = values[x].shape[axis]
    near = (np.eye(size) + 0.05 * rng.standard_normal((size, size))).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(near, "before"))
    nodes = [*matmul("the input", x, values[x].ndim, axis, "before"), *graph.node]
    for info in list(graph.input):
        if info.name == x:
            info.name = "the input"
        else:
            graph.initializer.append(numpy_helper.from_array(values[info.name], info.name))
            graph.input.remove(info)
    outputs = [o.name for o in graph.output]
    del graph.output[:], graph.node[:]
    for name, value in zip(outputs, made, strict=True):
        weight = rng.standard_normal((value.shape[out], 3)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"after {name}"))
        nodes += matmul(name, f"{name}/out", value.ndim, out, f"after {name}")
        graph.output.append(helper.make_tensor_value_info(f"{name}/out", 1, None))
    graph.node.extend(nodes)
    return model, {"the input": values[x]}


def runs(model: ModelProto, feed: dict[str, NDArray[Any]]) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return all(bool(np.isfinite(y).all()) for y in session.run(None, feed))
    except Exception:
        return False  # ONNX Runtime has no such kernel


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first input", "second input", "third input"])
def test_single_operators_are_cut_exactly(place: int) -> None:
    proved, cut, wrong = 0, 0, list[str]()
    for case in few():
        for axis in range(4):
            made = between(case, place, axis, axis)
            if made is None or not runs(*made):
                continue
            model, feed = made
            try:
                result = oracle(model, 0.5, feeds=[feed], tolerance=1e-4)
            except VacuousError:
                continue
            except AssertionError as error:
                wrong.append(f"{case.name}, axis {axis}: {error}")
                continue
            proved, cut = proved + 1, cut + result.can_cut("before", 1)
    assert not wrong, "\n".join(wrong)
    assert proved > 20 and cut > 5
