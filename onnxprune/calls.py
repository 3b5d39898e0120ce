"""A session as a call that a clock can time, on the device that its provider computes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxprune.runtime import needs_ort, refused, to_ort

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Provider -> where its inputs and outputs live; every other provider takes NumPy arrays from main memory.
DEVICES = {
    "cuda": "cuda",
    "tensorrt": "cuda",
    "rocm": "cuda",
    "migraphx": "cuda",
    "dml": "dml",
    "cann": "cann",
}


def quiet(threads: int | None) -> dict[str, str]:
    """Entries for sessions that take turns.

    Idle workers stop spinning when a run ends: they would take cores from the other model's turn. Each stays on a core
    of its own, as ONNX Runtime's do where it chooses their number; the system's choice differs from session to session.
    """
    found = {"session.force_spinning_stop": "1", "session.record_ep_graph_assignment_info": "1"}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads is not None and 1 < threads <= len(cores):
        found["session.intra_op_thread_affinities"] = ";".join(str(core + 1) for core in cores[1:threads])
    return found


def runner(session: InferenceSession, feed: Mapping[str, Any], provider: str) -> Callable[[], Any]:
    """A call that runs the model once and returns when the outputs are there; on a GPU, inputs are there before.

    Raises:
        ModelError: there is no room for inputs and outputs, or the model does not run on them.
    """
    return bound(session, feed, DEVICES.get(provider))


def bound(session: InferenceSession, feed: Mapping[str, Any], device: str | None) -> Callable[[], Any]:
    """As `runner`, with inputs and outputs bound on a device; None: handed over with each run, from main memory."""
    if device is None and not needs_ort(session):
        return lambda: session.run(None, feed)
    binding = session.io_binding()

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    try:
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, to_ort(value, device or "cpu"))
        binding.synchronize_inputs()
        for output in session.get_outputs():
            binding.bind_output(output.name, device or "cpu")
        call()
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise refused(session, feed, error) from error
    return call


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def placement(session: InferenceSession) -> dict[str, int]:
    """Provider -> number of nodes placed on it, before fusion; empty where ONNX Runtime does not tell."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # older than 1.24, or a session that did not record it
        return {}
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)
