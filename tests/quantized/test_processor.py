"""Which processors need weights of seven bits."""

from pathlib import Path

from onnxprune.quantized.processor import saturates


def test_x86_without_vnni(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n")
    assert saturates("x86_64", info)
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n")
    assert not saturates("AMD64", info)
    assert not saturates("aarch64", info)


def test_what_is_not_known_is_taken_for_the_worse(tmp_path: Path) -> None:
    assert saturates("x86_64", tmp_path / "missing")
