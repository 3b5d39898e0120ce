"""Convolutions: dense, grouped, depthwise, transposed; weights that are computed."""

from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, OracleResult, close, oracle, prove, sandwich


def group_of(result: OracleResult, op: str) -> int:
    """The `group` attribute of the only node of a kind that has one."""
    nodes = [n for n in result.model.graph.node if n.op_type == op]
    return int(next(a.i for n in nodes for a in n.attribute if a.name == "group"))


@pytest.mark.parametrize("spatial", [(6,), (6, 6), (4, 4, 4)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("bias", [True, False])
def test_dense(spatial: tuple[int, ...], bias: bool) -> None:
    result = prove(sandwich(lambda b, y: b.conv(b.op("Relu", y), 6, name="w", bias=bias), spatial=spatial))
    assert result.choices("w1") == [8]
    assert result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2", 1) == [6]
    assert result.reason("w2") == "a graph output"
    assert result.reason("w1", 1) == "a graph input"
    assert result.shape("w") == (3, 4, *[3] * len(spatial))
    if bias:
        assert result.shape("w.bias") == (3,)


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2, 2], "pads": [0, 1, 2, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "VALID"},
    ],
    ids=["strides", "dilations", "same", "valid"],
)
def test_windows_do_not_matter(attrs: dict[str, Any]) -> None:
    result = prove(sandwich(lambda b, y: b.conv(y, 6, name="w", **attrs)))
    assert result.choices("w") == [6]


@pytest.mark.parametrize("spatial", [(6,), (6, 6), (4, 4, 4)], ids=["1d", "2d", "3d"])
def test_depthwise(spatial: tuple[int, ...]) -> None:
    result = prove(sandwich(lambda b, y: b.conv(y, 8, name="w", group=8), spatial=spatial))
    assert result.choices("w1") == result.choices("w") == result.choices("w2", 1) == [8]
    assert group_of(result, "Conv") == 4


def test_depthwise_with_multiplier_keeps_the_multiples_of_a_channel_together() -> None:
    result = prove(sandwich(lambda b, y: b.conv(y, 16, name="w", group=8)))
    assert result.choices("w1") == result.choices("w") == [8]
    assert result.shape("w") == (8, 1, 3, 3)
    assert group_of(result, "Conv") == 4


def test_grouped_loses_the_same_offsets_of_every_group_where_they_are_more() -> None:
    result = prove(sandwich(lambda b, y: b.conv(y, 12, name="w", group=2)))
    assert result.choices("w1") == [4]  # 8 channels in 2 groups
    assert result.choices("w") == [6]
    assert result.shape("w") == (6, 2, 3, 3)
    assert group_of(result, "Conv") == 2


def test_grouped_loses_whole_groups_where_offsets_are_tied() -> None:
    """A normalisation over the same groups needs all channels of a group."""

    def middle(b: Builder, y: str) -> str:
        y = b.conv(y, 8, name="w", group=4)
        return b.op("GroupNormalization", y, b.near_one(8), b.weight(8), num_groups=4)

    result = prove(sandwich(middle, opset=21))
    assert result.choices("w") == [4]
    assert result.choices("w", 1) == []
    assert result.reason("w", 1) == "whole groups are cut"
    assert group_of(result, "Conv") == 2


def test_alignment_chooses_between_the_ways_to_cut_a_grouped_convolution() -> None:
    """32 channels in 8 groups of 4: widths that are multiples of 8 exist for whole groups only."""
    model = sandwich(lambda b, y: b.conv(y, 32, name="w", group=8), channels=32)
    assert prove(model).shape("w") == (16, 2, 3, 3)
    assert prove(model, align=8).shape("w") == (16, 4, 3, 3)


def test_grouped_with_one_channel_out_of_each_group() -> None:
    """12 channels in, 4 groups of 3, one channel out of each: whole groups cut both sides."""
    result = prove(sandwich(lambda b, y: b.conv(y, 4, name="w", group=4), channels=12))
    assert result.choices("w1") == result.choices("w") == [4]


def test_chain_of_grouped_convolutions() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.conv(b.op("Relu", b.conv(y, 16, name="g1", group=4)), 16, name="g2", group=4)

    result = prove(sandwich(middle, channels=16))
    assert result.choices("w1") == result.choices("g1") == result.choices("g2") == [4]


def test_grouped_convolutions_that_disagree_share_what_is_common() -> None:
    """Groups of 2 and of 4 on the same channels: an offset in one is a coset in the other."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Add", b.conv(y, 16, name="g1", group=8), b.conv(y, 16, name="g2", group=4))

    result = prove(sandwich(middle, channels=16))
    assert result.can_cut("w1")


@pytest.mark.parametrize("spatial", [(6,), (6, 6), (4, 4, 4)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize(
    ("group", "narrow", "freedom"),
    [(1, 6, ([8], [6])), (8, 1, ([8], [8])), (8, 3, ([8], [8])), (2, 3, ([4], [3]))],
    ids=["dense", "depthwise", "multiplier", "grouped"],
)
def test_transposed(spatial: tuple[int, ...], group: int, narrow: int, freedom: tuple[list[int], list[int]]) -> None:
    def middle(b: Builder, y: str) -> str:
        w = b.weight(8, narrow, *[2] * len(spatial), name="w", fan=8)
        bias = b.weight(narrow * group, name="b")
        return b.op("ConvTranspose", y, w, bias, group=group, strides=[2] * len(spatial))

    result = prove(sandwich(middle, spatial=spatial))
    assert result.choices("w1") == freedom[0]
    assert result.choices("b") == result.choices("w2", 1) == freedom[1]
    assert result.shape("w")[0] == 4


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_computed_weight_locks_what_it_contracts(op: str) -> None:
    def middle(b: Builder, y: str) -> str:
        shift = b.input("shift")  # or else the weight would be folded
        return b.op(op, b.op("Sigmoid", y), b.op("Sigmoid", b.op("Add", b.weight(8, 8, 1, 1, name="w"), shift)))

    result = prove(sandwich(middle))
    contracted, free = (1, 0) if op == "Conv" else (0, 1)
    assert "computed from data" in result.reason("w1")
    assert "computed from data" in result.reason("w", contracted)
    assert result.choices("w", free) == [8]


def test_a_computed_grouped_weight() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Conv", y, b.op("Tanh", b.weight(8, 2, 1, 1, name="w")), group=4)

    result = prove(sandwich(middle))
    assert result.can_cut("w")


def test_a_weight_that_is_data_keeps_its_filters_free() -> None:
    """Filters that a network predicts: what the convolution makes of them may be cut with their maker."""
    b = Builder()
    code = b.gemm(b.input("code", 8, 5), 3, name="maker")
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), b.op("Reshape", code, [8, 3, 1, 1]))
    result = oracle(b.model(b.conv(y, 4, name="w2")))
    assert not result.can_cut("maker")


def test_a_shared_weight_is_a_coupling() -> None:
    def middle(b: Builder, y: str) -> str:
        w = b.weight(8, 8, 1, 1, name="w")
        for _ in range(3):
            y = b.op("Relu", b.op("Conv", y, w))
        return y

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w") == result.choices("w", 1) == [8]


def test_shared_biases_are_split_where_the_layers_are_cut_differently() -> None:
    b = Builder()
    bias = b.const(np.arange(8, dtype=np.float32) / 8, "shared")
    y = b.input("x", 2, 3, 6, 6)
    for i in range(3):
        y = b.op("Relu", b.op("Conv", y, b.weight(8, b.shape(y)[1], 1, 1, name=f"w{i}"), bias))
    result = prove(b.model(close(b, y, name="last")))
    assert [result.choices(f"w{i}") for i in range(3)] == [[8], [8], [8]]
    assert len(result.plan.splits) == 2
    assert set(result.plan.splits.values()) == {"shared"}


def test_a_shared_bias_stays_one_where_the_layers_are_cut_alike() -> None:
    b = Builder()
    bias = b.weight(8, name="shared")
    x = b.input("x", 2, 3, 6, 6)
    parts = [b.op("Conv", x, b.weight(8, 3, 1, 1, name=f"w{i}"), bias) for i in range(2)]
    result = prove(b.model(close(b, b.op("Add", *parts))))
    assert result.can_cut("w0")
    assert not result.plan.splits
