"""ONNX Runtime: execution providers, and sessions that run on the wanted one or fail clearly.

ONNX Runtime is imported inside the functions that need it. Parity and fidelity are in `parity`, latency in `timing`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from onnxprune.errors import MESSAGE_LIMIT, ModelError, OptionError, ProviderError, one_line
from onnxprune.feeds import Array
from onnxprune.formats import formats

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# How ONNX Runtime, CUDA, TensorRT and OpenVINO say that there is no memory left.
_MEMORY = re.compile(r"failed to allocate memory|out ?of ?memory|bad_?alloc", re.IGNORECASE)

Model: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto

# Short name -> ONNX Runtime's name, and where a build with it comes from.
_GPU, _SOURCE = "pip install onnxruntime-gpu", "build ONNX Runtime from source with it"
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": ("CUDAExecutionProvider", _GPU),
    "tensorrt": ("TensorrtExecutionProvider", _GPU),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino"),
    "dml": ("DmlExecutionProvider", "pip install onnxruntime-directml, on Windows"),
    "coreml": ("CoreMLExecutionProvider", "pip install onnxruntime, on macOS"),
    "rocm": ("ROCMExecutionProvider", "pip install onnxruntime-rocm"),
    "migraphx": ("MIGraphXExecutionProvider", "pip install onnxruntime-migraphx"),
    "webgpu": ("WebGpuExecutionProvider", "pip install onnxruntime-webgpu"),
    "qnn": ("QNNExecutionProvider", "pip install onnxruntime-qnn"),
    "cann": ("CANNExecutionProvider", "pip install onnxruntime-cann"),
    "xnnpack": ("XnnpackExecutionProvider", _SOURCE),
    "dnnl": ("DnnlExecutionProvider", _SOURCE),
    "acl": ("ACLExecutionProvider", _SOURCE),
}
PROVIDERS = {short: name for short, (name, _) in _PROVIDERS.items()}


def providers() -> list[tuple[str, str, bool]]:
    """Every provider by short name and ONNX Runtime's name, and whether this build of ONNX Runtime has it."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return [(short, name, name in available) for short, name in PROVIDERS.items()]


def resolve(provider: str) -> str:
    """ONNX Runtime's name of a provider given by its short name.

    Raises:
        ProviderError: the name is unknown, or this build of ONNX Runtime does not have the provider.
    """
    known = {short: (name, there) for short, name, there in providers()}
    if provider not in known:
        raise ProviderError(f"unknown provider '{provider}'; choose one of {', '.join(known)}")
    name, there = known[provider]
    if not there:
        have = ", ".join(short for short, (_, here) in known.items() if here)
        hint = f"to get it, {_PROVIDERS[provider][1]}{_in_place()}"
        raise ProviderError(f"provider '{provider}': not in this ONNX Runtime, which has {have}; {hint}")
    return name


def _in_place() -> str:
    """What to do about the packages that bring the module `onnxruntime` already: the last one installed wins."""
    have = sorted(set(packages_distributions().get("onnxruntime", ())))
    return f", after pip uninstall {' '.join(have)}: they bring the same module (docs/providers.md)" if have else ""


def model_name(model: Model | InferenceSession) -> str:
    """What messages and records call a model: its path, or else its graph's name."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, onnx.ModelProto) and model.graph.name:
        return f"model '{model.graph.name}'"
    return str(getattr(model, "_model_path", None) or "the model in memory")


# For sessions that make a few runs: weights are not packed a second time for speed, and threads that wait do not spin.
LEAN = {"session.disable_prepacking": "1", "session.intra_op.allow_spinning": "0"}


def session(
    model: Model,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    arena: bool = True,
    config: Mapping[str, str] | None = None,
    profile: str | os.PathLike[str] | None = None,
    weights: Mapping[str, Array] | None = None,
) -> InferenceSession:
    """An ONNX Runtime session that runs on the wanted provider or fails; it never falls back to another.

    Args:
        model: a path, a `ModelProto` (up to 2 GB, with its weights in memory), or its bytes.
        provider: short name; nodes that it does not support run on the CPU.
        threads: for the work inside one node; the provider's choice if None.
        optimize: all graph optimisations, or none. Then CUDA computes without TF32, and in the place of TensorRT, which
            cannot do without.
        arena: keep memory for the next run; off where many sessions come and go.
        config: entries for `SessionOptions.add_session_config_entry`.
        profile: how the name of the file begins into which ONNX Runtime writes what every node took.
        weights: initializers that the model only declares, as external data; read where they are, as long as it runs.

    Raises:
        ModelError: the model is missing, broken or refused, with ONNX Runtime's reason.
        ProviderError: as `resolve`, or the provider did not start.
        OptionError: `threads` is below 1.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}; leave it out for ONNX Runtime's choice")
    wanted, source = resolve(provider), _source(model, weights or {})
    if provider == "tensorrt" and not optimize:
        provider, wanted = "cuda", resolve("cuda")
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = arena
    if not arena:  # a weight that is converted or transposed is in memory only while it is read, not all at once
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = arena and provider != "dml"  # which does not support it
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
    if weights:
        options.add_external_initializers(list(weights), [to_ort(value) for value in weights.values()])
    chain = [(wanted, _provider_options(provider, model, threads, optimize, arena)), ("CPUExecutionProvider", {})]
    if provider == "tensorrt":
        chain.insert(1, ("CUDAExecutionProvider", _provider_options("cuda", model, threads, optimize, arena)))
    try:
        made = onnxruntime.InferenceSession(
            source, options, providers=chain[: 1 if provider == "cpu" else None], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors have no common base
        text = one_line(error, MESSAGE_LIMIT)
        if provider == "cpu" or type(error).__name__ in (
            "InvalidProtobuf",
            "InvalidGraph",
            "NoSuchFile",
            "NoModel",
        ):
            raise ModelError(f"{model_name(model)}: ONNX Runtime cannot load it: {text}") from error
        raise ProviderError(f"{model_name(model)}: provider '{provider}' did not start: {text}") from error
    if made.get_providers()[0] != wanted:
        raise ProviderError(
            f"{model_name(model)}: provider '{provider}' did not start (ONNX Runtime chose "
            f"{made.get_providers()[0]}); check its driver and libraries"
        )
    made.disable_fallback()
    return made


def _provider_options(provider: str, model: Model, threads: int | None, optimize: bool, arena: bool) -> dict[str, str]:
    if provider == "openvino" and threads is not None:  # it has threads of its own, as many as it likes
        return {"num_of_threads": str(threads)}
    if provider == "tensorrt":
        # Its cache knows an engine by the names in the graph: a model with other weights would get the wrong one.
        fresh = {"trt_engine_cache_enable": "False"}
        return fresh | {"trt_fp16_enable": "True"} if onnx.TensorProto.FLOAT16 in formats(model) else fresh
    if provider != "cuda":
        return {}
    exact = {} if optimize else {"use_tf32": "0"}
    return exact if arena else exact | {"arena_extend_strategy": "kSameAsRequested"}


def _source(model: Model, weights: Collection[str]) -> str | bytes:
    """What ONNX Runtime takes: a path that exists, or bytes; these weights come in another way."""
    name = model_name(model)
    if isinstance(model, bytes):
        return model
    if isinstance(model, str | os.PathLike):
        if not os.path.isfile(model):
            raise ModelError(f"{name}: no such file; check the path")
        return os.fspath(model)
    outside = (t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    external = next((t for t in outside if t.name not in weights), None)
    if external is not None:
        raise ModelError(f"{name}: the data of '{external.name}' are in another file; pass the model's path instead")
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # ValueError or protobuf's EncodeError, by version
        raise ModelError(f"{name}: cannot be passed in memory (over 2 GB?); save it and pass the path") from error


def run(session: InferenceSession, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
    """One run: output name -> value (an array; a list or dict where the model returns sequences or maps).

    Raises:
        ModelError: ONNX Runtime's reason in one line.
    """
    names = list(outputs or [o.name for o in session.get_outputs()])
    try:
        if needs_ort(session):
            values = session.run_with_ort_values(names, {name: to_ort(value) for name, value in feed.items()})
            return {name: _from_ort(value) for name, value in zip(names, values, strict=True)}
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise refused(session, feed, error) from error


def refused(session: InferenceSession, feed: Mapping[str, Array], error: Exception) -> ModelError:
    """That a model does not run on a feed, and why."""
    shapes, text = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items()), str(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return ModelError(f"{model_name(session)}: out of memory on the inputs {shapes}; give a smaller batch")
    return ModelError(f"{model_name(session)}: does not run on the inputs {shapes}: {one_line(text, MESSAGE_LIMIT)}")


def needs_ort(session: InferenceSession) -> bool:
    """Whether arrays must pass as `OrtValue`: ONNX Runtime knows bfloat16, its NumPy bridge does not."""
    return any(meta.type == "tensor(bfloat16)" for meta in (*session.get_inputs(), *session.get_outputs()))


def to_ort(array: Array, device: str = "cpu") -> Any:
    """An `OrtValue` on a device; bfloat16 stays in main memory."""
    from onnxruntime import OrtValue

    if array.dtype.name == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
        return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array, device, 0)


def _from_ort(value: Any) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    bits = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return np.frombuffer(bits, dtype=dtype).reshape(shape)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as what JSON can hold; numbers that are not finite become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
