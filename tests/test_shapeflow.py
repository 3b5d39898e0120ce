"""Where the numbers of shape arithmetic come from, and what a cut may do to them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.graph import load
from onnxprune.number import Leaf, Number, SizeOf
from onnxprune.resolve import resolve
from onnxprune.testing import Builder, prove


def traced(
    make: Callable[[Builder, str], str], *shape: int | str, opset: int = 17, rewritten: bool = False
) -> tuple[Number, ...]:
    """The numbers that reach a Reshape whose target `make` computes from a value of this shape."""
    b = Builder(opset)
    x = b.input("x", *shape)
    b.declare(b.op("Reshape", x, make(b, x), name="end"), *shape)
    graph = load(b.model("end"))
    _, flow = resolve(graph)
    node = graph.producer["end"]
    numbers = flow.numbers(node, 1) if rewritten else flow.original(node, 1)
    assert numbers is not None
    return numbers


def values(numbers: tuple[Number, ...]) -> list[int | float | None]:
    return [n.value for n in numbers]


def test_a_constant() -> None:
    numbers = traced(lambda b, x: b.const([2, -1]), 2, 12)
    assert numbers == (Number(2, Leaf(0, 1, 0)), Number(-1, Leaf(0, 1, 1)))


def test_known_sizes_may_be_rewritten_at_the_node_that_reads_them() -> None:
    numbers = traced(lambda b, x: b.op("Shape", x), 2, 12, rewritten=True)
    assert values(numbers) == [2, 12]
    assert [n.source for n in numbers] == [Leaf(1, 1, 0), Leaf(1, 1, 1)]
    assert numbers[1].sizes == {SizeOf("x", 1)}


def test_open_sizes_are_followed() -> None:
    numbers = traced(lambda b, x: b.op("Shape", x), "N", 12)
    assert values(numbers) == [None, 12]
    assert [n.source for n in numbers] == [SizeOf("x", 0), SizeOf("x", 1)]


def test_a_constant_may_stand_for_open_sizes() -> None:
    """0 copies what is at the same place of the input, -1 is the rest."""
    made = traced(lambda b, x: b.op("Mul", b.op("Shape", x), [1, 1]), "N", 12, rewritten=True)
    assert values(made) == [0, 12]


@pytest.mark.parametrize(("start", "end"), [(1, 3), (-2, None), (0, -1)])
def test_a_part_of_the_shape(start: int, end: int | None) -> None:
    attrs: dict[str, Any] = {"start": start} | ({} if end is None else {"end": end})
    numbers = traced(lambda b, x: b.op("Shape", x, **attrs), 2, 3, 4)
    assert values(numbers) == [2, 3, 4][start:end]


ARITHMETIC: list[tuple[Callable[[Builder, str], str], list[int]]] = [
    (lambda b, s: b.op("Div", s, [2]), [3, 6]),
    (lambda b, s: b.op("Mul", b.op("Add", s, [1]), [2, 1]), [14, 13]),
    (lambda b, s: b.op("Sub", s, b.op("Mod", s, [5])), [5, 10]),
    (lambda b, s: b.op("Max", s, [9]), [9, 12]),
    (lambda b, s: b.op("Min", s, [9]), [6, 9]),
    (lambda b, s: b.op("Neg", b.op("Neg", s)), [6, 12]),
    (lambda b, s: b.op("Concat", b.op("Slice", s, [1], [2]), [-1], axis=0), [12, -1]),
    (lambda b, s: b.op("Slice", s, [1], [-9], [0], [-1]), [12, 6]),
    (lambda b, s: b.op("Gather", s, [1, -2]), [12, 6]),
    (lambda b, s: b.op("Unsqueeze", b.op("Gather", s, np.array(1)), [0]), [12]),
    (lambda b, s: b.op("Unsqueeze", b.op("Squeeze", b.op("Gather", s, [1]), [0]), [0]), [12]),
    (lambda b, s: b.op("Cast", b.op("Floor", b.op("Div", b.op("Cast", s, to=1), 5.0)), to=7), [1, 2]),
    (lambda b, s: b.op("Cast", b.op("Ceil", b.op("Mul", b.op("Cast", s, to=1), 0.3)), to=7), [2, 4]),
    (lambda b, s: b.op("Identity", b.op("Cast", s, to=7)), [6, 12]),
    (lambda b, s: b.op("ReduceProd", s, axes=[0]), [72]),
    (lambda b, s: b.op("Where", b.op("Equal", s, [6]), [1, 1], s), [1, 12]),
]


@pytest.mark.parametrize(("make", "wanted"), ARITHMETIC, ids=range(len(ARITHMETIC)))
def test_arithmetic_on_known_sizes(make: Callable[[Builder, str], str], wanted: list[int]) -> None:
    assert values(traced(lambda b, x: make(b, b.op("Shape", x)), 6, 12)) == wanted


def test_integer_division_truncates_like_onnx() -> None:
    numbers = traced(lambda b, x: b.op("Div", b.op("Sub", b.op("Shape", x), [13]), [2]), 6, 12)
    assert values(numbers) == [-3, 0]


def test_division_by_zero_is_not_known() -> None:
    numbers = traced(lambda b, x: b.op("Div", b.op("Shape", x), b.const([0, 1])), "N", 12)
    assert values(numbers) == [None, 12]


def test_arithmetic_on_open_sizes_keeps_what_they_depend_on() -> None:
    number = traced(lambda b, x: b.op("Mul", b.op("Shape", x), [2]), "N", 12)[0]
    assert number.value is None and number.source is None
    assert number.sizes == {SizeOf("x", 0)}


def test_what_else_computes_with_a_size_pins_it() -> None:
    b = Builder()
    x = b.input("x", 2, 12)
    y = b.op("Div", x, b.op("Cast", b.op("Gather", b.op("Shape", x), np.array(1)), to=1))
    graph = load(b.model(y))
    assert [(used.size, used.node.op) for used in resolve(graph)[1].used] == [(SizeOf("x", 1), "Div")]


def test_a_size_that_is_an_output_is_pinned() -> None:
    b = Builder()
    graph = load(b.model(b.op("Shape", b.input("x", 2, 12))))
    assert {used.size for used in resolve(graph)[1].used} == {SizeOf("x", 0), SizeOf("x", 1)}


# What inference learns


def test_computed_targets_give_shapes() -> None:
    """A chain of halves: ONNX's own propagation stops at each Div."""
    b = Builder()
    y = b.input("x", 2, 16, 6, 6)
    for _ in range(3):
        half = b.op("Div", b.op("Gather", b.op("Shape", y), [1]), [2])
        y = b.op("Slice", y, [0], half, [1])
    b.graph.output.add(name=y, type=b.graph.input[0].type)
    model = b.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph, _ = resolve(load(model))
    assert graph.shapes[y] == (2, 2, 6, 6)


@pytest.mark.parametrize("rest", [[-1], [8, -1], [-1, 36], [2, 4, -1]], ids=str)
def test_the_rest_of_an_open_batch(rest: list[int]) -> None:
    """y.view(y.size(0), ..., -1) with an open batch: the open size is on both sides."""
    b = Builder()
    x = b.input("x", "N", 8, 6, 6)
    batch = b.op("Unsqueeze", b.op("Gather", b.op("Shape", x), np.array(0)), [0])
    b.op("Reshape", x, b.op("Concat", batch, rest, axis=0), name="end")
    b.declare("end", *["?"] * (1 + len(rest)))
    graph, _ = resolve(load(b.model("end")))
    known = [size for size in rest if size > 0]
    full = [288 // int(np.prod(known)) if size == -1 else size for size in rest]
    assert graph.shapes["end"] == ("N", *full)


def test_the_rest_of_two_open_sizes_is_open() -> None:
    b = Builder()
    x = b.input("x", "N", 8, "H")
    batch = b.op("Gather", b.op("Shape", x), [0])
    b.declare(b.op("Reshape", x, b.op("Concat", batch, [-1], axis=0), name="end"), "N", "?")
    graph, _ = resolve(load(b.model("end")))
    shape = graph.shapes["end"]
    assert shape is not None and not isinstance(shape[1], int)


def test_a_flattened_open_batch_can_be_cut() -> None:
    b = Builder()
    y = b.conv(b.input("x", "N", 3, 6, 6), 8, name="w1")
    batch = b.op("Unsqueeze", b.op("Gather", b.op("Shape", y), np.array(0)), [0])
    y = b.op("Reshape", y, b.op("Concat", batch, [-1], axis=0))
    result = prove(b.model(b.op("Gemm", y, b.weight(4, 288, name="w2"), transB=1)))
    assert result.choices("w1") == [8]


def test_computed_pads() -> None:
    """torch's F.pad: zeros, interleaved and reversed by Reshape, Slice and Transpose."""
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    pads = b.op("Concat", [1, 2, 0, 1], b.op("ConstantOfShape", b.const([4]), value=zeros()), axis=0)
    pads = b.op("Slice", b.op("Reshape", pads, [-1, 2]), [-1], [-(2**62)], [0], [-1])
    pads = b.op("Cast", b.op("Reshape", b.op("Transpose", pads, perm=[1, 0]), [-1]), to=7)
    y = b.declare(b.op("Pad", y, pads, 0.0), 2, 8, 7, 9)
    result = prove(b.model(b.conv(y, 4, name="w2")))
    assert result.choices("w1") == [8]


def zeros() -> object:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.zeros(1, np.int64))


def test_arithmetic_that_leaves_the_numbers() -> None:
    """Logarithms of positions, as relative position buckets have them, are infinite at zero."""
    b = Builder()
    x = b.input("x", 2, 12)
    steps = b.op("Log", b.op("Cast", b.op("Sub", b.op("Shape", x), [2]), to=1))
    y = b.op("Add", x, b.op("ReduceMax", b.op("Cast", b.op("Floor", steps), to=7), keepdims=0))
    graph = load(b.model(b.op("Identity", b.op("Cast", y, to=1))))
    assert resolve(graph)[0].shapes["x"] == (2, 12)
