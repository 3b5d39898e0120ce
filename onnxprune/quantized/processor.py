"""What the processor does with products of 8-bit numbers."""

from __future__ import annotations

import platform
from pathlib import Path

X86 = {"x86_64", "amd64", "i386", "i686", "x86"}
VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}


def saturates(machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether sums of two products of uint8 and int8 may not fit where they are put: on x86 without VNNI.

    `vpmaddubsw` adds two of them in 16 bits. Weights of seven bits always fit. Where the processor does not say what it
    has (not Linux), the answer is the safe one.

    Args:
        machine: the architecture, as `platform.machine` says it; None: this one.
        cpuinfo: where Linux lists what the processor has.
    """
    if (machine or platform.machine()).lower() not in X86:
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line for line in lines if line.startswith("flags")), "")
    return VNNI.isdisjoint(flags.split())
