"""Concat, Split, Slice, Gather and Pad along the channels and beside them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, close, oracle, prove, sandwich

Middle = Callable[[Builder, str], str]


# Concat


def test_concat_of_branches() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Concat", b.conv(y, 4, name="a"), b.op("Relu", y), b.conv(y, 6, name="b"), axis=1)

    result = prove(sandwich(middle))
    assert [result.choices(name) for name in ("w1", "a", "b")] == [[8], [4], [6]]
    assert sorted(result.choices("w2", 1)) == [4, 6, 8]


def test_concat_of_a_tensor_with_itself() -> None:
    result = prove(sandwich(lambda b, y: b.op("Concat", y, b.op("Relu", y), axis=1)))
    assert result.choices("w1") == result.choices("w2", 1) == [8]


def test_concat_with_a_constant_frees_its_channels_too() -> None:
    """Coordinates that are pasted behind the channels."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Concat", y, b.weight(2, 3, 6, 6, name="grid"), axis=-3)

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert result.choices("grid", 1) == [3]


def test_concat_along_another_axis_ties_the_channels() -> None:
    result = prove(sandwich(lambda b, y: b.op("Concat", y, b.conv(y, 8, name="w"), axis=2)))
    assert result.choices("w1") == result.choices("w") == [8]
    assert len(result.coupling.groups) == 1


def test_dense_connections() -> None:
    """A BatchNormalization after each Concat spans the outputs of all layers before it."""

    def middle(b: Builder, y: str) -> str:
        for i in range(3):
            new = b.conv(b.op("Relu", b.batch_norm(y, f"bn{i}")), 4, name=f"grow{i}")
            y = b.op("Concat", y, new, axis=1)
        return y

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert [result.choices(f"grow{i}") for i in range(3)] == [[4], [4], [4]]
    assert sorted(result.choices("bn2.scale")) == [4, 4, 8]


# Split


def split_attrs(opset: int, sizes: list[int] | None, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Inputs and attributes that say how to split, in each opset's own way."""
    if sizes is None:
        return [], {"num_outputs": count} if opset >= 18 else {}
    return ([], {"split": sizes}) if opset < 13 else ([sizes], {})


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [None, [4, 4], [3, 5]], ids=str)
def test_split_into_branches_of_their_own(opset: int, sizes: list[int] | None) -> None:
    def middle(b: Builder, y: str) -> str:
        extra, attrs = split_attrs(opset, sizes, 2)
        left, right = b.ops("Split", y, *extra, axis=1, outputs=2, **attrs)
        return b.op("Add", b.conv(left, 6, name="a"), b.conv(b.op("Relu", right), 6, name="b"))

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == (sizes or [4, 4])
    assert result.choices("a", 1) == [(sizes or [4, 4])[0]]


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_becomes_uneven_where_its_parts_are_cut_differently(opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        left, right = b.ops("Split", y, axis=1, outputs=2, **split_attrs(opset, None, 2)[1])
        return b.op("Concat", right, left, axis=1)

    model = sandwich(middle, opset=opset)
    removed = np.zeros(8, dtype=bool)
    removed[[0, 1, 2, 6]] = True
    result = oracle(model, removed)
    split = result.model.graph.node[1]
    if opset < 13:
        assert list(next(a.ints for a in split.attribute if a.name == "split")) == [1, 3]
    else:
        assert result.sizes("Split", 1) == [[1, 3]]
        assert not any(a.name == "num_outputs" for a in split.attribute)


def test_split_in_halves_that_meet_again() -> None:
    """A gated unit: both halves lose the same channels."""

    def middle(b: Builder, y: str) -> str:
        left, right = b.ops("Split", y, axis=1, outputs=2)
        return b.op("Mul", left, b.op("Sigmoid", right))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w2", 1) == [4]


def test_split_with_an_uneven_last_part() -> None:
    def middle(b: Builder, y: str) -> str:
        parts = b.ops("Split", y, axis=1, outputs=3, num_outputs=3)  # 3, 3, 2
        return b.op("Concat", *reversed(parts), axis=1)

    result = prove(sandwich(middle, opset=18))
    assert sorted(result.choices("w1")) == [2, 3, 3]


def test_split_along_another_axis() -> None:
    def middle(b: Builder, y: str) -> str:
        top, bottom = b.ops("Split", y, axis=2, outputs=2)
        return b.op("Add", top, b.conv(bottom, 8, name="w"))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w") == [8]


def test_split_parts_that_nobody_reads() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.ops("Split", y, [3, 5], axis=1, outputs=2)[1]

    result = prove(sandwich(middle))
    assert sorted(result.choices("w1")) == [3, 5]


def test_split_of_a_weight() -> None:
    """One stored matrix serves two layers."""

    def middle(b: Builder, y: str) -> str:
        first, second = b.ops("Split", b.weight(14, 8, 1, 1, name="w"), [8, 6], axis=0, outputs=2)
        return b.op("Conv", b.op("Relu", b.op("Conv", y, first)), second)

    result = prove(sandwich(middle))
    assert result.can_cut("w1")
    assert sorted(result.choices("w")) == [6, 8]


# Slice

SLICES: list[tuple[list[int], list[int], list[int] | None, list[int] | None]] = [
    ([0], [3], [1], None),
    ([2], [7], [1], [1]),
    ([-5], [-1], [-3], None),
    ([3], [2**63 - 1], [1], [1]),
    ([-100], [4], [1], None),
    ([0, 1, 2], [2, 6, 5], None, None),
    ([1, 1], [7, 5], [1, 3], None),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice(starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> None:
    result = prove(sandwich(lambda b, y: b.op("Relu", b.op("Slice", y, starts, ends, axes, steps))), rounds=4)
    taken = result.coupling.graph.shapes["w2"]
    assert taken is not None
    inside = taken[1]
    assert isinstance(inside, int)
    assert sorted(result.choices("w1")) == sorted(n for n in (inside, 8 - inside) if n > 1)


@pytest.mark.parametrize("axes", [[1], None])
def test_slice_by_attributes(axes: list[int] | None) -> None:
    def middle(b: Builder, y: str) -> str:
        if axes is None:
            return b.op("Slice", y, starts=[0, 1], ends=[2, 6])
        return b.op("Slice", y, starts=[1], ends=[6], axes=axes)

    result = prove(sandwich(middle, opset=9), rounds=4)
    assert sorted(result.choices("w1")) == [3, 5]


def test_slices_that_take_an_axis_apart() -> None:
    """How older exporters write a split, and CSPNet's partial dense block."""

    def middle(b: Builder, y: str) -> str:
        left, right = b.op("Slice", y, [0], [4], [1]), b.op("Slice", y, [4], [8], [1])
        return b.op("Concat", left, b.conv(right, 4, name="w"), axis=1)

    result = prove(sandwich(middle), rounds=4)
    assert result.choices("w1") == [4, 4]


def test_overlapping_slices() -> None:
    def middle(b: Builder, y: str) -> str:
        left, right = b.op("Slice", y, [0], [6], [1]), b.op("Slice", y, [2], [8], [1])
        return b.op("Concat", left, right, axis=1)

    result = prove(sandwich(middle), rounds=4)
    assert sorted(result.choices("w1")) == [2, 2, 4]


@pytest.mark.parametrize(
    ("start", "end", "step"), [(0, 8, 2), (1, 2**62, 2), (-7, 8, 2), (0, 7, 2), (2, 7, 4), (3, 8, 4)]
)
def test_slice_with_steps_loses_whole_runs(start: int, end: int, step: int) -> None:
    result = prove(sandwich(lambda b, y: b.op("Slice", y, [start], [end], [1], [step])), rounds=4)
    assert result.choices("w1") == result.choices("w2", 1) == [8 // step]


def test_halves_that_are_interleaved() -> None:
    """A gated unit whose gates and values take turns."""

    def middle(b: Builder, y: str) -> str:
        gate, value = (b.op("Slice", y, [start], [2**31], [1], [2]) for start in (0, 1))
        return b.op("Mul", b.op("Sigmoid", gate), b.op("Add", value, 1.0))

    result = prove(sandwich(middle), rounds=4)
    assert result.choices("w1") == result.choices("w2", 1) == [4]


@pytest.mark.parametrize(("start", "end", "step"), [(2, 8, 2), (0, 6, 2), (0, 8, 3), (0, 4, 4)])
def test_slice_with_other_steps_keeps_every_index_in_its_place(start: int, end: int, step: int) -> None:
    result = prove(sandwich(lambda b, y: b.op("Slice", y, [start], [end], [1], [step])))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "a slice with steps needs every index in its place"


def test_reversed_slice() -> None:
    result = prove(sandwich(lambda b, y: b.op("Slice", y, [-1], [-(2**62)], [1], [-1])))
    assert not result.can_cut("w1")


def test_slice_of_other_axes_with_steps() -> None:
    """Space to depth as YOLOv5 writes it: strided slices of the positions."""

    def middle(b: Builder, y: str) -> str:
        parts = [
            b.op("Slice", b.op("Slice", y, [i], [2**31], [2], [2]), [j], [2**31], [3], [2])
            for i in (0, 1)
            for j in (0, 1)
        ]
        return b.op("Concat", *parts, axis=1)

    assert prove(sandwich(middle)).choices("w1") == [8]


# Gather


@pytest.mark.parametrize(
    ("indices", "freedom"),
    [
        ([3, 1, 6, 0], [4, 4]),
        ([-1, -2, -8], [3, 5]),
        ([7, 6, 5, 4, 3, 2, 1, 0], [8]),
        ([0, 0, 1, 1, 2, 2], [3, 5]),
    ],
    ids=["pick", "negative", "reverse", "repeat"],
)
def test_gather(indices: list[int], freedom: list[int]) -> None:
    result = prove(sandwich(lambda b, y: b.op("Gather", y, indices, axis=1)), rounds=4)
    assert sorted(result.choices("w1")) == freedom


def test_indices_are_no_parameters() -> None:
    """Indices in int32 look like quantised biases; they are rewritten, not cut."""
    indices = np.array([3, -1, 0, 4], dtype=np.int32)
    result = prove(sandwich(lambda b, y: b.op("Gather", y, b.const(indices, "indices"), axis=1)), rounds=4)
    assert sorted(result.choices("w1")) == [4, 4]
    assert not result.can_cut("indices")
    assert "indices" not in result.plan.kept


def test_gather_of_one_index_drops_the_axis() -> None:
    """The class token: the index itself stays, the other axes pass."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("Gather", b.op("Transpose", y, perm=[0, 2, 3, 1]), np.array(2), axis=1)  # [N, W, C]
        return b.op("Gather", y, np.array(-1), axis=1)

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]


def test_gather_of_one_channel_locks_it_alone() -> None:
    def middle(b: Builder, y: str) -> str:
        one = b.op("Unsqueeze", b.op("Gather", y, np.array(5), axis=1), [1])
        return b.op("Concat", y, one, axis=1)

    result = prove(sandwich(middle), rounds=4)
    assert result.choices("w1") == [7]
    assert result.reason("w1") == "this index is read alone"


def test_gather_by_data() -> None:
    """An embedding: its rows stay, its width is free."""
    b = Builder()
    y = b.op("Gather", b.weight(10, 8, name="table", fan=1), b.input("ids", 2, 5, dtype=np.int64))
    y = b.op("MatMul", b.op("Relu", y), b.weight(8, 4, name="w2", fan=8))
    result = prove(b.model(y))
    assert result.choices("table", 1) == [8]
    assert result.reason("table") == "it is indexed by data"


def test_gather_with_indices_from_another_layer() -> None:
    def middle(b: Builder, y: str) -> str:
        best = b.op("ArgMax", b.op("GlobalAveragePool", y), axis=1, keepdims=0)  # [N, 1, 1]
        picked = b.op("Gather", b.weight(8, 5, name="table"), b.op("Squeeze", best, [1, 2]))
        return b.op("Unsqueeze", picked, [2, 3])

    result = prove(sandwich(middle))
    assert result.choices("table", 1) == [5]
    assert not result.can_cut("w1")


# Pad


def test_pad_around_the_positions() -> None:
    result = prove(sandwich(lambda b, y: b.op("Pad", y, [0, 0, 1, 2, 0, 0, 2, 1])))
    assert result.choices("w1") == [8]


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_paddings_of_the_positions(mode: str) -> None:
    result = prove(sandwich(lambda b, y: b.op("Pad", y, [0, 0, 1, 2, 0, 0, 2, 1], mode=mode)))
    assert result.choices("w1") == [8]


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_pad_with_channels(opset: int, value: float) -> None:
    """The shortcut of a ResNet without projection: padded channels are channels of their own."""

    def middle(b: Builder, y: str) -> str:
        pads = [0, 2, 0, 0, 0, 6, 0, 0]
        padded = b.op("Pad", y, pads, value) if opset >= 11 else b.op("Pad", y, pads=pads, value=value)
        return b.op("Add", padded, b.conv(y, 16, name="wide"))

    result = prove(sandwich(middle, opset=opset), rounds=4)
    assert result.choices("w1") == [8]
    assert sorted(result.choices("wide")) == [8, 8]


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_channels_padded_with_channels_stay(mode: str) -> None:
    result = prove(sandwich(lambda b, y: b.op("Pad", y, [0, 1, 0, 0, 0, 1, 0, 0], mode=mode), opset=19))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "the axis is padded with its own values, or cropped"


def test_cropped_channels_stay() -> None:
    result = prove(sandwich(lambda b, y: b.op("Pad", y, [0, -1, 0, 0, 0, -2, 0, 0])))
    assert not result.can_cut("w1")


def test_pad_with_axes() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Pad", b.op("Pad", y, [1, 2], None, [-1]), [0, 4], None, [1])

    result = prove(sandwich(middle, opset=18), rounds=4)
    assert result.choices("w1") == [8]


def test_two_layers_read_one_slice_constant() -> None:
    """A shared bound is rewritten for the node that was cut, not for the other."""

    def middle(b: Builder, y: str) -> str:
        start, end = b.const([0], "start"), b.const([4], "end")
        axis = b.const([1], "axis")
        z = b.conv(y, 8, name="w")
        return b.op("Concat", b.op("Slice", y, start, end, axis), b.op("Slice", z, start, end, axis), axis=1)

    model = sandwich(middle)
    result = prove(model, rounds=4)
    assert result.can_cut("w1") and result.can_cut("w")


def test_an_expert_reads_a_row_of_a_shared_matrix() -> None:
    b = Builder()
    y = b.gemm(b.input("x", 5, 3), 8, name="w1")
    row = b.op("Gather", b.weight(3, 8, name="scales"), np.array(1))
    result = prove(b.model(close(b, b.op("Mul", y, row))))
    assert result.choices("w1") == result.choices("scales", 1) == [8]


def test_a_table_of_indices_locks_what_it_reads_and_nothing_else() -> None:
    """Relative position biases: [heads, offsets] read by a matrix of offsets; the heads pass."""

    def middle(b: Builder, y: str) -> str:
        table = b.weight(8, 5, name="table")
        bias = b.op("Gather", table, np.arange(36).reshape(6, 6) % 5, axis=1)
        return b.op("Add", y, b.op("Unsqueeze", bias, [0]))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("table") == [8]
    assert not result.can_cut("table", 1)
