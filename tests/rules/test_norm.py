"""Normalisations with statistics per channel or per group of channels."""

import pytest

from onnxprune.testing import Builder, prove, sandwich


def test_batch_norm() -> None:
    result = prove(sandwich(lambda b, y: b.op("Relu", b.batch_norm(y, "bn"))))
    parts = [f"bn.{part}" for part in ("scale", "bias", "mean", "var")]
    assert [result.choices(name) for name in ("w1", *parts)] == [[8]] * 5
    assert [result.shape(name) for name in parts] == [(4,)] * 4


def test_batch_norm_that_shares_its_statistics_with_another() -> None:
    """Folding exporters merge equal initializers; the two layers are cut apart."""

    def middle(b: Builder, y: str) -> str:
        scale, shift = b.near_one(8, name="scale"), b.weight(8, name="shift")
        for name in ("a", "b"):
            y = b.op("Relu", b.op("BatchNormalization", b.conv(y, 8, name=name), scale, shift, shift, scale))
        return y

    result = prove(sandwich(middle))
    assert result.choices("a") == result.choices("b") == [8]
    assert set(result.plan.splits.values()) == {"scale", "shift"}


def test_batch_norm_of_a_matrix() -> None:
    b = Builder()
    y = b.batch_norm(b.gemm(b.input("x", 5, 3), 8, name="w1"))
    assert prove(b.model(b.gemm(y, 4))).choices("w1") == [8]


@pytest.mark.parametrize("spatial", [(6,), (6, 6), (4, 4, 4)], ids=["1d", "2d", "3d"])
def test_instance_norm(spatial: tuple[int, ...]) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("InstanceNormalization", y, b.near_one(8, name="scale"), b.weight(8, name="bias"))

    result = prove(sandwich(middle, spatial=spatial))
    assert result.choices("w1") == result.choices("scale") == result.choices("bias") == [8]


@pytest.mark.parametrize(("opset", "size"), [(18, 4), (21, 8)], ids=["per group", "per channel"])
def test_group_norm_loses_whole_groups(opset: int, size: int) -> None:
    def middle(b: Builder, y: str) -> str:
        scale, bias = b.near_one(size, name="scale"), b.weight(size, name="bias")
        return b.op("Relu", b.op("GroupNormalization", y, scale, bias, num_groups=4))

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == result.choices("scale") == [4]
    assert result.shape("scale") == (size // 2,)
    assert result.model.graph.node[1].attribute[0].i == 2


@pytest.mark.parametrize(("groups", "freedom"), [(1, []), (8, [8])], ids=["layer", "instance"])
def test_group_norm_at_its_ends(groups: int, freedom: list[int]) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("GroupNormalization", y, b.near_one(8), b.weight(8), num_groups=groups)

    assert prove(sandwich(middle, opset=21)).choices("w1") == freedom


@pytest.mark.parametrize("computed", [False, True], ids=["constant shapes", "computed shape"])
def test_group_norm_as_exporters_decompose_it(computed: bool) -> None:
    """Reshape to [N, groups, -1], InstanceNormalization, Reshape back, scale and shift."""

    def middle(b: Builder, y: str) -> str:
        back = b.op("Shape", y) if computed else [2, 8, 6, 6]
        z = b.op("Reshape", y, [0, 4, -1])
        z = b.op("InstanceNormalization", z, b.const([1.0] * 4, "ones"), b.const([0.0] * 4, "zeros"))
        z = b.op("Reshape", z, back)
        return b.op("Add", b.op("Mul", z, b.near_one(8, 1, 1, name="scale")), b.weight(8, 1, 1, name="bias"))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("ones") == result.choices("scale") == [4]
    assert result.shape("scale") == (4, 1, 1)


@pytest.mark.parametrize("spatial", [(6, 6), ("H", "W")], ids=["batch", "all"])
def test_group_norm_of_open_sizes(spatial: tuple[int | str, ...]) -> None:
    """The shape to return to is read off the input, whose channels are another axis but lose the same units."""
    b = Builder()
    y = b.conv(b.input("x", "N", 3, *spatial), 8, name="w1")
    z = b.op("InstanceNormalization", b.op("Reshape", y, [0, 4, -1]), b.near_one(4, name="ones"), b.weight(4))
    z = b.declare(b.op("Reshape", z, b.op("Shape", y)), "N", 8, *spatial)
    result = prove(b.model(b.conv(z, 4, name="w2")), rounds=4)
    assert result.choices("w1") == result.choices("ones") == result.choices("w2", 1) == [4]


def test_local_response_norm_locks_the_channels() -> None:
    result = prove(sandwich(lambda b, y: b.op("LRN", y, size=3)))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "LRN divides a channel by its neighbours"
