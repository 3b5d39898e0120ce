"""Pixel shuffle and unshuffle."""

from typing import Any

import pytest

from onnxprune.testing import Builder, prove, sandwich


@pytest.mark.parametrize("attrs", [{"mode": "DCR"}, {"mode": "CRD"}, {}], ids=["DCR", "CRD", "default"])
@pytest.mark.parametrize("block", [2, 3])
def test_depth_to_space(attrs: dict[str, Any], block: int) -> None:
    """A channel of the large picture goes with all its block^2 channels of the small one."""
    channels = 5 * block * block
    result = prove(
        sandwich(lambda b, y: b.op("DepthToSpace", b.op("Relu", y), blocksize=block, **attrs), channels),
        rounds=4,
    )
    assert result.choices("w1") == result.choices("w2", 1) == [5]
    assert result.shape("w1")[0] == 3 * block * block


@pytest.mark.parametrize("block", [2, 3])
def test_space_to_depth(block: int) -> None:
    result = prove(sandwich(lambda b, y: b.op("SpaceToDepth", y, blocksize=block)), rounds=4)
    assert result.choices("w1") == result.choices("w2", 1) == [8]
    assert result.shape("w2") == (4, 4 * block * block, 1, 1)


def test_there_and_back() -> None:
    """In one mode the blocks return to where they were; in the other they are interleaved."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("DepthToSpace", b.op("SpaceToDepth", y, blocksize=2), blocksize=2, mode="DCR")
        return b.op("DepthToSpace", b.op("SpaceToDepth", y, blocksize=2), blocksize=2, mode="CRD")

    prove(sandwich(middle), rounds=4)


def test_pixel_shuffle_as_reshape_and_transpose() -> None:
    """[N, C r r, H, W] -> [N, C, r, r, H, W] -> [N, C, H, r, W, r] -> [N, C, H r, W r]."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", b.op("Reshape", y, [2, 3, 2, 2, 6, 6]), perm=[0, 1, 4, 2, 5, 3])
        return b.op("Reshape", z, [2, 3, 12, 12])

    result = prove(sandwich(middle, channels=12), rounds=4)
    assert result.choices("w1") == result.choices("w2", 1) == [3]
