"""What a provider's kernels like: the block of channels in which they work."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

from onnxprune.errors import OptionError

# Widths that are a multiple of this use the tensor cores of CUDA devices with 16-bit and TF32 data alike.
GPU_BLOCK = 8


def block(provider: str) -> int:
    """Channels a block: convolutions whose widths are no multiple of it run slower, not faster.

    ONNX Runtime's CPU kernels work on 16 channels with AVX-512 and on Arm64, on 8 with AVX2 (ONNX Runtime's
    `MlasNchwcGetBlockSize`).
    """
    if provider != "cpu":
        return GPU_BLOCK
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16
    return 16 if _has_avx512() else 8


def resolve_align(align: str | int, provider: str) -> int:
    """The number behind `--align`.

    Raises:
        OptionError: neither `auto` nor a whole number from 1.
    """
    if align == "auto":
        return block(provider)
    try:
        number = int(align)
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"--align {align}: write a whole number from 1, or auto")
    return number


def _has_avx512() -> bool:
    umath: Any = import_module("numpy._core._multiarray_umath")  # NumPy has no public name for it
    return bool(umath.__cpu_features__.get("AVX512F", False))
