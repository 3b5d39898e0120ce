"""The block of channels in which a provider's kernels work: found by the clock, or assumed where nothing is run."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calls import runner, timed
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.latency import shelf

# Widths that are a multiple of this use the tensor cores of CUDA devices with 16-bit and TF32 data alike.
GPU_BLOCK = 8
BLOCKS = (4, 8, 16, 32)  # tried, the largest first
WIDTHS = range(36, 65, 4)  # of the convolutions that are measured; the last is a multiple of every block
ROUNDS, SECONDS = (10, 100), 1.0  # at least and at most, and the time after which there are no more
# A width that is rounded up counts as free where it takes no longer than this, or has that share of the time that its
# additional products would take: where layers also wait for memory, stairs slope.
COSTS, SHARE = 1.08, 0.3
LAYERS, SIDE = 4, 28


def assumed(provider: str) -> int:
    """Channels a block, where nothing may be run.

    ONNX Runtime's CPU kernels work on 16 channels with AVX-512 and on Arm64, on 8 with AVX2 (ONNX Runtime's
    `MlasNchwcGetBlockSize`).
    """
    if provider != "cpu":
        return GPU_BLOCK
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16
    return 16 if _has_avx512() else 8


def block(provider: str, half: bool = False) -> int:
    """Channels a block: convolutions whose widths are no multiple of it run no faster than the next that is one.

    Found on a chain of convolutions at many widths: the largest block to which every width can be rounded up for
    nothing. Measured once for a provider, in one thread (kernels are the same in more), and kept on disk. Where the
    chain does not run, `assumed`.
    """
    key = {"what": "block", "provider": provider, "threads": 1, "half": half, **shelf.machine()}
    if (kept := shelf.fetch(key)) is not None and kept.get("block") in (1, *BLOCKS):
        return int(kept["block"])
    found = _measured(provider, half)
    if found is None:
        return assumed(provider)
    shelf.keep(key, {"block": found[0], "ms": dict(zip(map(str, WIDTHS), found[1], strict=True))})
    return found[0]


def resolve_align(align: str | int, provider: str, measure: bool = False, half: bool = False) -> int:
    """The number behind `--align`.

    Args:
        align: "auto" or a number.
        provider: where the model will run.
        measure: whether "auto" may run something.
        half: whether it computes in half precision, which may have other blocks.

    Raises:
        OptionError: neither `auto` nor a whole number from 1.
    """
    if align == "auto":
        return block(provider, half) if measure else assumed(provider)
    try:
        number = int(align)
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"--align {align}: write a whole number from 1, or auto")
    return number


def free_block(widths: Sequence[int], ms: Sequence[float]) -> int:
    """The largest block to which every measured width can be rounded up for next to nothing."""
    ms_of = dict(zip(widths, ms, strict=True))
    for size in sorted(BLOCKS, reverse=True):
        up = [(w, -(-w // size) * size) for w in widths if -(-w // size) * size in ms_of]
        if all(ms_of[wide] <= ms_of[w] * max(COSTS, 1 + SHARE * ((wide / w) ** 2 - 1)) for w, wide in up):
            return size
    return 1


@cache
def _measured(provider: str, half: bool) -> tuple[int, list[float]] | None:
    """The block and the milliseconds of each width; None where the chain does not run.

    What is not as assumed is measured twice, and counts if it is the same.
    """
    try:
        first = _once(provider, half)
        size = free_block(WIDTHS, first)
        if size == assumed(provider) or free_block(WIDTHS, _once(provider, half)) == size:
            return size, first
    except OnnxPruneError:
        return None
    return assumed(provider), first


def _once(provider: str, half: bool) -> list[float]:
    """Milliseconds of each width: of the fastest run, since a busy neighbour makes none faster."""
    from onnxprune.runtime import session

    sessions = [session(_chain(width, half), provider, 1) for width in WIDTHS]
    feeds = [{"x": np.ones((1, w, SIDE, SIDE), dtype=np.float16 if half else np.float32)} for w in WIDTHS]
    calls = [runner(s, feed, provider) for s, feed in zip(sessions, feeds, strict=True)]
    times, start = list[list[float]](), time.perf_counter()
    while len(times) < ROUNDS[0] or (len(times) < ROUNDS[1] and time.perf_counter() - start < SECONDS):
        times.append([timed(call) for call in calls])  # in turns: a busy moment hits all
    return [min(column) for column in zip(*times[1:], strict=True)]


def _chain(width: int, half: bool) -> onnx.ModelProto:
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weight = numpy_helper.from_array(np.full((width, width, 3, 3), 1e-3, dtype=dtype), "w")
    names = ["x", *(f"x{n}" for n in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("Conv", [a, "w"], [b], pads=[1] * 4) for a, b in pairwise(names)]
    infos = [helper.make_tensor_value_info(n, kind, [1, width, SIDE, SIDE]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _has_avx512() -> bool:
    umath: Any = import_module("numpy._core._multiarray_umath")  # NumPy has no public name for it
    return bool(umath.__cpu_features__.get("AVX512F", False))
