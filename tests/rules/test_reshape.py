"""Reshape, Flatten, Squeeze, Unsqueeze: what merges and splits, and the numbers that follow."""

from collections.abc import Sequence

import numpy as np
import pytest

from onnxprune.testing import Builder, close, prove, sandwich


def reshape_sizes(result_sizes: list[list[int]], *wanted: list[int]) -> None:
    assert result_sizes == list(wanted)


# Merging and flattening


@pytest.mark.parametrize("target", [[2, -1], [2, 288], [0, -1], [0, 288], [-1, 288]], ids=str)
def test_flatten_by_reshape_into_a_gemm(target: list[int]) -> None:
    """A channel owns a run of columns of the Gemm's weight; a constant width is rewritten."""
    result = prove(sandwich(lambda b, y: b.op("Reshape", b.op("Relu", y), target)))
    assert result.choices("w1") == [8]
    assert result.shape("w2") == (4, 144)
    assert result.sizes("Reshape", 1) == [[144 if size == 288 else size for size in target]]


@pytest.mark.parametrize("axis", [1, -3])
def test_flatten(axis: int) -> None:
    result = prove(sandwich(lambda b, y: b.op("Flatten", y, axis=axis)))
    assert result.choices("w1") == [8]
    assert result.shape("w2") == (4, 144)


def test_flatten_after_channels_last_interleaves_the_columns() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Flatten", b.op("Transpose", y, perm=[0, 2, 3, 1]))

    result = prove(sandwich(middle), rounds=4)
    assert result.choices("w1") == [8]


@pytest.mark.parametrize("target", [[2, 8, 36], [0, 8, -1], [0, 0, 36], [2, -1, 36]], ids=str)
def test_positions_merge_beside_the_channels(target: list[int]) -> None:
    """Tokens of a vision transformer; the channels keep their axis."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Relu", b.op("Reshape", y, target))

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]


def test_positions_split_again() -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Relu", b.op("Reshape", y, [2, 8, 36]))
        return b.op("Reshape", z, [2, 8, 4, 9])

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert result.sizes("Reshape", 1) == [[2, 4, 36], [2, 4, 4, 9]]


def test_batch_and_channels_merge() -> None:
    """Every channel becomes a picture of its own: it must stay, for the batch is not cut."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Reshape", y, [16, 1, 6, 6])
        return b.op("Reshape", b.conv(z, 1), [2, 8, 6, 6])

    result = prove(sandwich(middle))
    assert not result.can_cut("w1") or result.shape("w2") == (4, 4, 1, 1)


def test_a_window_partition_passes_the_channels() -> None:
    """[N, H, W, C] -> [N, 2, 3, 2, 3, C] -> windows -> back, as in Swin."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[0, 2, 3, 1])
        z = b.op("Transpose", b.op("Reshape", z, [2, 2, 3, 2, 3, 8]), perm=[0, 1, 3, 2, 4, 5])
        z = b.op("Reshape", z, [-1, 9, 8])
        z = b.op("Relu", b.op("MatMul", z, b.weight(8, 8, name="w")))
        z = b.op("Transpose", b.op("Reshape", z, [2, 2, 2, 3, 3, 8]), perm=[0, 1, 3, 2, 4, 5])
        return b.op("Transpose", b.op("Reshape", z, [2, 6, 6, 8]), perm=[0, 3, 1, 2])

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w") == result.choices("w", 1) == [8]


def test_fewer_numbers_than_a_cut_allows() -> None:
    """Target [2, 4, 18, -1]: the channels split in two and merge with the rows."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Relu", b.op("Reshape", y, [2, 4, 12, -1]))

    result = prove(sandwich(middle))
    assert result.choices("w1") == [4]


def test_sizes_that_share_no_factor_lock() -> None:
    result = prove(sandwich(lambda b, y: b.op("Reshape", y, [2, 12, 24]), channels=8))
    assert not result.can_cut("w1") or result.params[1] < result.params[0]


# Splitting: a choice


def shuffle(b: Builder, y: str, groups: int, target: Sequence[int] | None = None) -> str:
    """Channel shuffle by Reshape, Transpose, Reshape."""
    n, c, *rest = b.shape(y)
    z = b.op("Reshape", y, target or [n, groups, c // groups, *rest])
    z = b.op("Transpose", z, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return b.op("Reshape", z, [n, c, *rest])


@pytest.mark.parametrize("groups", [2, 4])
def test_channel_shuffle_between_grouped_convolutions(groups: int) -> None:
    def middle(b: Builder, y: str) -> str:
        z = shuffle(b, b.conv(y, 16, name="g1", group=groups), groups)
        return b.conv(b.op("Relu", z), 16, name="g2", group=groups)

    result = prove(sandwich(middle, channels=16), rounds=4)
    assert result.can_cut("w1") and result.can_cut("g1") and result.can_cut("g2")


def test_channel_shuffle_between_dense_convolutions() -> None:
    result = prove(sandwich(lambda b, y: shuffle(b, y, 2)), rounds=4)
    assert result.choices("w1") in ([2], [4])


def test_shuffle_of_halves_that_split_again() -> None:
    """A ShuffleNetV2 block: split, convolve one half, concat, shuffle."""

    def middle(b: Builder, y: str) -> str:
        for i in range(2):
            left, right = b.ops("Split", y, axis=1, outputs=2)
            right = b.op("Relu", b.conv(right, 8, name=f"a{i}"))
            right = b.conv(b.conv(right, 8, name=f"d{i}", group=8), 8, name=f"b{i}")
            y = shuffle(b, b.op("Concat", left, right, axis=1), 2)
        return y

    result = prove(sandwich(middle, channels=16), rounds=4)
    assert all(result.can_cut(name) for name in ("w1", "a0", "d0", "b0", "a1", "d1", "b1"))


def computed_shuffle(b: Builder, y: str) -> str:
    """The halves by Shape, Gather, Add, Div, Slice, and a shuffle whose sizes are computed, as torchscript writes."""
    size = b.op("Gather", b.op("Shape", y), [1], axis=0)
    half = b.op("Div", b.op("Add", size, [1]), [2])
    left = b.op("Slice", y, [0], b.op("Mul", half, [1]), [1])
    right = b.op("Slice", y, b.op("Mul", half, [1]), b.op("Mul", half, [2]), [1])
    w = b.weight(8, 8, 3, 3, name="w")
    right = b.op("Relu", b.op("Conv", right, w, pads=[1, 1, 1, 1]))
    z = b.op("Concat", left, right, axis=1)
    n, c, h, w2 = (b.op("Gather", b.op("Shape", z), np.array(i), axis=0) for i in range(4))
    per = b.op("Div", c, np.array(2))
    parts = [b.op("Unsqueeze", value, [0]) for value in (n, per, h, w2)]
    split = b.op("Concat", parts[0], [2], *parts[1:], axis=0)
    z = b.op("Transpose", b.op("Reshape", z, split), perm=[0, 2, 1, 3, 4])
    merged = b.op("Concat", parts[0], [-1], *parts[2:], axis=0)
    return b.declare(b.op("Reshape", z, merged), 2, 16, 6, 6)


def test_shuffle_with_computed_sizes() -> None:
    result = prove(sandwich(computed_shuffle, channels=16), rounds=4)
    assert result.can_cut("w1") and result.can_cut("w")


@pytest.mark.parametrize("glued", [False, True], ids=["offsets", "whole groups"])
@pytest.mark.parametrize("sizes", [("N", 6, 6), ("N", "H", "W")], ids=["batch", "all"])
def test_shuffle_of_open_sizes(sizes: tuple[int | str, ...], glued: bool) -> None:
    """The batch is read off the tensor; 12 / 4 is computed beside it, and written down where the cut would move it."""
    b = Builder()
    y = b.conv(b.input("x", sizes[0], 3, *sizes[1:]), 12, name="w1")
    if glued:  # the channels of a group only go together
        z = b.op("Reshape", y, [0, 4, -1])
        z = b.op("InstanceNormalization", z, b.near_one(4), b.weight(4), epsilon=0.1)
        y = b.op("Reshape", z, b.op("Shape", y))
    n, c, h, w = (b.op("Gather", b.op("Shape", y), [i]) for i in range(4))
    split = b.op("Concat", n, [4], b.op("Div", c, [4]), h, w, axis=0)
    z = b.op("Transpose", b.op("Reshape", y, split), perm=[0, 2, 1, 3, 4])
    z = b.op("Reshape", z, b.op("Concat", n, [-1], h, w, axis=0))
    z = b.op("Conv", b.declare(z, sizes[0], 12, *sizes[1:]), b.weight(4, 12, 1, 1, name="w2"))
    result = prove(b.model(b.declare(z, sizes[0], 4, *sizes[1:])), rounds=4)
    assert result.choices("w1") == ([4] if glued else result.choices("w2", 1))
    assert result.can_cut("w1")


def test_heads_of_attention() -> None:
    """Q, K, V in [tokens, heads, width]: whole heads go, the width inside a head stays for Q and K."""
    b = Builder()
    x = b.input("x", 5, 6)

    def heads(name: str) -> str:
        y = b.op("MatMul", x, b.weight(6, 12, name=name))
        return b.op("Transpose", b.op("Reshape", y, [5, 3, 4]), perm=[1, 0, 2])

    q, k, v = (heads(name) for name in "qkv")
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])))
    y = b.op("Transpose", b.op("MatMul", scores, v), perm=[1, 0, 2])
    y = b.op("MatMul", b.op("Reshape", y, [5, 12]), b.weight(12, 6, name="out"))
    result = prove(b.model(y))
    assert result.choices("q", 1) == result.choices("k", 1) == [3]
    assert result.can_cut("v", 1) and result.can_cut("out")


def test_a_split_that_nothing_merges_again() -> None:
    """Maxout: pieces side by side, the largest wins."""

    def middle(b: Builder, y: str) -> str:
        return b.op("ReduceMax", b.op("Reshape", y, [2, 4, 2, 6, 6]), axes=[2], keepdims=0)

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w2", 1) == [4]
    assert result.sizes("Reshape", 1) == [[2, 2, 2, 6, 6]]


# The numbers


def test_zero_that_copies_a_cut_axis() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Reshape", b.op("Reshape", y, [0, 0, -1]), [0, 0, 6, 6])

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_zero_that_copies_an_axis_at_another_place() -> None:
    """[N, H, W, C] with H = C by chance: 0 copies place 1, which is not what the channels are."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Reshape", y, [0, 4, 2, 6, 6])  # channels split: place 1 is not copied here
        return b.op("Reshape", z, [0, 8, 6, 6])

    assert prove(sandwich(middle)).can_cut("w1")


def test_zero_that_copies_a_merged_axis_is_understood_or_locked() -> None:
    """[2, 8, 4, 9] -> [0, 0, 0, 9]... then [6, 0]: the second place of [2, 3] is copied from 8 channels."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Reshape", y, [2, 8, 36])
        z = b.op("Reshape", b.op("Transpose", z, perm=[0, 2, 1]), [0, 36, 2, 4])
        return b.op("Transpose", b.op("Reshape", z, [0, 6, 6, 8]), perm=[0, 3, 1, 2])

    prove(sandwich(middle))


@pytest.mark.parametrize("allow", [0, 1])
def test_allowzero(allow: int) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Reshape", y, [2, 8, 36], allowzero=allow)

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_one_shape_constant_for_two_reshapes() -> None:
    """Exporters merge equal constants; each node's copy is rewritten by itself."""

    def middle(b: Builder, y: str) -> str:
        shape = b.const([2, -1, 36], "shape")
        target = b.const([2, 8, 36], "target")
        a, z = b.op("Reshape", y, target), b.op("Reshape", b.conv(y, 8, name="w"), target)
        both = b.op("Concat", a, z, axis=1)
        return b.op("Relu", b.op("Reshape", both, shape))

    result = prove(sandwich(middle), rounds=4)
    assert result.choices("w1") == result.choices("w") == [8]


def test_the_shape_of_another_tensor_as_target() -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Relu", b.op("Reshape", y, [0, 0, -1]))
        return b.op("Reshape", z, b.op("Shape", y))

    assert prove(sandwich(middle)).choices("w1") == [8]
    assert prove(sandwich(middle, spatial=(6, "W"))).can_cut("w1")


def test_sizes_put_together_from_several_tensors() -> None:
    """torch: y.view(y.size(0), 8, -1) with an open batch."""
    b = Builder()
    y = b.conv(b.input("x", "N", 3, 6, 6), 8, name="w1")
    batch = b.op("Unsqueeze", b.op("Gather", b.op("Shape", y), np.array(0)), [0])
    y = b.op("Relu", b.op("Reshape", y, b.op("Concat", batch, [8], [-1], axis=0)))
    result = prove(b.model(b.op("Conv", b.declare(y, "N", 8, 36), b.weight(4, 8, 1, name="w2"))))
    assert result.choices("w1") == [8]


def test_a_target_that_is_an_input_locks() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    shape = b.input("shape", 4, dtype=np.int64)
    y = b.declare(b.op("Reshape", y, shape), 2, 8, 9, 4)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    feed["shape"] = np.array([2, 8, 9, 4])
    result = prove(b.model(close(b, y)), feeds=[feed])
    assert not result.can_cut("w1")


# Squeeze and Unsqueeze


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("GlobalAveragePool", y)
        if opset < 13:
            return b.op("Unsqueeze", b.op("Squeeze", y, axes=[2, 3]), axes=[2, 3])
        return b.op("Unsqueeze", b.op("Squeeze", y, [2, -1]), [-1, 2])

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == result.choices("w2", 1) == [8]


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_without_axes_must_not_meet_a_new_one(opset: int) -> None:
    """With one channel left, Squeeze would drop that axis as well."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Squeeze", b.op("GlobalAveragePool", y))

    result = prove(sandwich(middle, opset=opset))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "Squeeze without axes depends on every size"


def test_squeeze_into_a_gemm() -> None:
    result = prove(sandwich(lambda b, y: b.op("Squeeze", b.op("GlobalAveragePool", y), [2, 3])))
    assert result.choices("w1") == [8]


def test_vectors_that_are_unsqueezed() -> None:
    """An affine transformation whose parameters are stored flat."""

    def middle(b: Builder, y: str) -> str:
        scale = b.op("Unsqueeze", b.near_one(8, name="scale"), [1, 2])
        shift = b.op("Reshape", b.weight(8, name="shift"), [1, -1, 1, 1])
        return b.op("Add", b.op("Mul", y, scale), shift)

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("scale") == result.choices("shift") == [8]


def test_a_reshape_with_a_constant_size_on_a_vector() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Add", y, b.op("Reshape", b.weight(8, name="shift"), [1, 8, 1, 1]))

    result = prove(sandwich(middle))
    assert result.choices("shift") == [8]
    assert result.sizes("Reshape", 1) == [[1, 4, 1, 1]]


def test_a_number_that_is_cut_and_computed_with() -> None:
    """8 is the width of a cut tensor, and the same 8, times one, that of a locked one: each gets its own."""
    b = Builder()
    y = b.conv(b.input("x", "N", 3, 6, 6), 8, name="w1")
    batch = b.op("Gather", b.op("Shape", y), [0])
    target = b.op("Concat", batch, [8], [-1], axis=0)
    eight = b.op("Mul", b.op("Slice", target, [1], [2]), [1])
    locked = b.op("Softmax", b.conv(y, 8, name="locked"), axis=1)
    z = b.declare(b.op("Reshape", locked, b.op("Concat", batch, eight, [-1], axis=0)), "N", 8, 36)
    both = b.op("Concat", b.declare(b.op("Reshape", y, target), "N", 8, 36), z, axis=1)
    result = prove(b.model(b.conv(b.op("Relu", both), 4, 1, "w2")))
    assert result.can_cut("w1")
