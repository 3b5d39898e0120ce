"""The block of channels that a provider's kernels work in."""

import pytest

from onnxprune.errors import OptionError
from onnxprune.latency import block, shelf
from onnxprune.latency.block import WIDTHS, assumed, free_block, resolve_align


def staircase(step: int) -> list[float]:
    return [float(-(-width // step) * step) for width in WIDTHS]


@pytest.mark.parametrize("step", [4, 8, 16, 32])
def test_the_step_of_a_staircase(step: int) -> None:
    assert free_block(list(WIDTHS), staircase(step)) == step


def test_where_every_channel_counts() -> None:
    assert free_block(list(range(36, 65)), [float(width) for width in range(36, 65)]) == 1


def test_odd_widths_that_are_slower_do_not_hide_the_step() -> None:
    # Milliseconds of four 3x3 convolutions at 28x28 with AVX-512: 62 and 63 channels are slower than 64.
    widths = [32, 40, 48, 56, 60, 62, 63, 64]
    assert free_block(widths, [0.56, 1.27, 1.22, 2.29, 2.23, 3.10, 3.15, 2.32]) == 16


@pytest.mark.parametrize(
    ("ms", "size"),
    [
        ([1.03, 1.12, 1.24, 1.20, 1.85, 1.98, 2.12, 2.05], 16),  # OpenVINO: stairs that slope
        ([0.94, 1.12, 1.32, 1.53, 1.76, 2.00, 2.26, 2.53], 4),  # ONNX Runtime on a CPU in half precision: none
    ],
)
def test_stairs_may_slope(ms: list[float], size: int) -> None:
    assert free_block(list(WIDTHS), ms) == size


def test_half_precision_has_blocks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.clear()
    monkeypatch.setattr(block, "_measured", lambda provider, half: ((4 if half else 16), staircase(16)))
    assert [resolve_align("auto", "cpu", measure=True, half=half) for half in (False, True)] == [16, 4]
    shelf.clear()


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.clear()
    monkeypatch.setattr(block, "_measured", lambda *_: (4, staircase(4)))
    assert block.block("cpu") == 4
    monkeypatch.setattr(block, "_measured", lambda *_: (32, staircase(32)))
    assert block.block("cpu") == 4
    shelf.clear()
    assert block.block("cpu") == 32
    shelf.clear()


def test_what_does_not_run_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.clear()
    monkeypatch.setattr(block, "_measured", lambda *_: None)
    assert block.block("cpu") == assumed("cpu")


def test_the_chain_runs() -> None:
    found = block._measured("cpu", False)
    assert found is not None
    assert found[0] in (1, *block.BLOCKS)
    assert len(found[1]) == len(WIDTHS)


@pytest.mark.parametrize("align", ["0", "-8", "some", "1.5"])
def test_what_is_no_alignment(align: str) -> None:
    with pytest.raises(OptionError, match=f"--align {align}: write a whole number"):
        resolve_align(align, "cpu")


def test_nothing_is_run_where_nothing_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "block", lambda *_: pytest.fail("measured"))
    assert resolve_align("auto", "cpu") == assumed("cpu")
    assert resolve_align("24", "cpu", measure=True) == 24
