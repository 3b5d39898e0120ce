"""ONNX Runtime: execution providers, sessions that fail clearly, parity and fidelity of two models.

*Parity* compares a pruned model with the masked original, which must be equal up to rounding. *Fidelity*
compares it with the untouched original, and says how much was lost. Both stream: one feed's outputs at a
time. ONNX Runtime is imported inside the functions that need it. The latency protocol is in `bench`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from onnxprune.data import Array, Feed, random_feeds, read_header, rows
from onnxprune.errors import MESSAGE_LIMIT, DataError, ModelError, OptionError, ProviderError, one_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = [
    "compare",
    "fidelity",
    "parity",
    "providers",
    "random_feeds",
    "resolve",
    "run",
    "session",
    "tolerance",
]

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

# Largest relative difference of two models that compute the same function in float32; rounding stays far
# below.
EXACT = 1e-4
# Rounding to 11 or 8 bits at every node, or a rounding that tips over in a quantised model, moves outputs
# further.
EXACT_FLOAT16, EXACT_BFLOAT16, EXACT_QUANTISED = 1e-2, 5e-2, 5e-2


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
        hint = _PROVIDERS[provider][1]
        raise ProviderError(
            f"provider '{provider}': not in this ONNX Runtime, which has {have}; to get it, {hint}"
        )
    return name


def model_name(model: Model | InferenceSession) -> str:
    """What messages and records call a model: its path, or else its graph's name."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, onnx.ModelProto) and model.graph.name:
        return f"model '{model.graph.name}'"
    return str(getattr(model, "_model_path", None) or "the model in memory")


def session(
    model: Model,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    arena: bool = True,
    config: Mapping[str, str] | None = None,
) -> InferenceSession:
    """An ONNX Runtime session that runs on the wanted provider or fails; it never falls back to another.

    Args:
        model: a path, a `ModelProto` (up to 2 GB, with its weights in memory), or its bytes.
        provider: short name; nodes that it does not support run on the CPU.
        threads: for the work inside one node; ONNX Runtime's choice if None.
        optimize: all graph optimisations, or none (then CUDA computes without TF32, too).
        arena: keep memory for the next run; off where many sessions come and go.
        config: entries for `SessionOptions.add_session_config_entry`.

    Raises:
        ModelError: the model is missing, broken or refused, with ONNX Runtime's reason.
        ProviderError: as `resolve`, or the provider did not start.
        OptionError: `threads` is below 1.
    """
    import onnxruntime

    if threads is not None and threads < 1:
        raise OptionError(
            f"threads must be at least 1, not {threads}; leave it out for ONNX Runtime's choice"
        )
    wanted, source = resolve(provider), _source(model)
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = arena and provider != "dml"  # which does not support it
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    chain = [(wanted, _provider_options(provider, optimize, arena)), ("CPUExecutionProvider", {})]
    if provider == "tensorrt":
        chain.insert(1, ("CUDAExecutionProvider", _provider_options("cuda", optimize, arena)))
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


def _provider_options(provider: str, optimize: bool, arena: bool) -> dict[str, str]:
    if provider != "cuda":
        return {}
    exact = {} if optimize else {"use_tf32": "0"}
    return exact if arena else exact | {"arena_extend_strategy": "kSameAsRequested"}


def _source(model: Model) -> str | bytes:
    """What ONNX Runtime takes: a path that exists, or bytes."""
    name = model_name(model)
    if isinstance(model, bytes):
        return model
    if isinstance(model, str | os.PathLike):
        if not os.path.isfile(model):
            raise ModelError(f"{name}: no such file; check the path")
        return os.fspath(model)
    external = next(
        (t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL), None
    )
    if external is not None:
        raise ModelError(
            f"{name}: the data of '{external.name}' are in another file; pass the model's path instead"
        )
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # ValueError or protobuf's EncodeError, by version
        raise ModelError(
            f"{name}: cannot be passed in memory (over 2 GB?); save it and pass the path"
        ) from error


def run(
    session: InferenceSession, feed: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> dict[str, Any]:
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
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
        text = one_line(error, MESSAGE_LIMIT)
        raise ModelError(f"{model_name(session)}: does not run on the inputs {shapes}: {text}") from error


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


# Parity


@dataclass(frozen=True)
class OutputParity:
    """The largest difference of one output and the largest magnitude of its reference, over finite entries.

    A `note` says what cannot be put in numbers: another shape, NaN or infinity at other places.
    """

    name: str
    max_abs: float = 0.0
    max_ref: float = 0.0
    note: str = ""

    @property
    def relative(self) -> float:
        """Difference over magnitude: infinite if there is a note, 1 where a reference of zeros is missed."""
        if self.note:
            return math.inf
        return self.max_abs / self.max_ref if self.max_ref else float(self.max_abs > 0)

    def __or__(self, other: OutputParity) -> OutputParity:
        """The worse of two runs."""
        worst = max(self.max_abs, other.max_abs), max(self.max_ref, other.max_ref)
        return OutputParity(self.name, *worst, self.note or other.note)


@dataclass(frozen=True)
class Parity:
    """How far two models differ that should compute the same function; each output on its own scale."""

    outputs: tuple[OutputParity, ...]
    tolerance: float = EXACT
    feeds: int = 1

    @property
    def max_abs(self) -> float:
        """Largest difference of any output."""
        return max((o.max_abs for o in self.outputs), default=0.0)

    @property
    def max_ref(self) -> float:
        """Largest magnitude of any reference output."""
        return max((o.max_ref for o in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        """Largest relative difference of any output."""
        return max((o.relative for o in self.outputs), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether the relative difference is within the tolerance."""
        return self.relative <= self.tolerance

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Outputs that say nothing, because their reference was zero, empty or not finite throughout."""
        return tuple(o.name for o in self.outputs if not o.max_ref and not o.note)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an infinite difference is None, and `exact` is then false."""
        names = ("max_abs", "max_ref", "relative", "exact", "vacuous")
        outputs = [plain(o) | {"relative": plain(o.relative)} for o in self.outputs]
        values: dict[str, Any] = plain({name: getattr(self, name) for name in names})
        return values | {"tolerance": self.tolerance, "feeds": self.feeds, "outputs": outputs}


def compare(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float = EXACT) -> Parity:
    """Compare the outputs of one run with those of the reference run `a`, by name."""
    left, right = dict(_flat(a)), dict(_flat(b))
    names = [*left, *(name for name in right if name not in left)]
    return Parity(tuple(_compare(name, left.get(name), right.get(name)) for name in names), tolerance)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Arrays by name, with the items of sequences and maps spelled out (`scores[0][label]`)."""
    for key, value in values.items():
        name = f"{prefix}[{key}]" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, list | tuple):
            yield from _flat(dict(enumerate(value)), name)
        elif value is not None:
            yield name, np.asarray(value)


def _compare(name: str, a: Array | None, b: Array | None) -> OutputParity:
    if a is None or b is None:
        return OutputParity(name, note=f"missing in the {'first' if a is None else 'second'} model")
    if a.shape != b.shape:
        return OutputParity(name, note=f"shape {list(b.shape)} instead of {list(a.shape)}")
    if a.dtype.kind in "OUS":
        return OutputParity(name, note="" if np.array_equal(a, b) else "texts differ")
    x, y, agree = _aligned(a, b)
    size, apart = float(np.abs(x).max(initial=0.0)), float(np.abs(x - y).max(initial=0.0))
    return OutputParity(name, apart, size, "" if agree else "NaN or infinity at other places")


def _aligned(a: Array, b: Array) -> tuple[Array, Array, bool]:
    """The entries that are finite in both, in float64, and whether the other entries agree."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.all():
        return x, y, True
    agree = np.array_equal(x[~finite], y[~finite], equal_nan=True)
    return x[finite], y[finite], agree


def tolerance(model: Model) -> float:
    """The relative difference below which two runs of one function in this model's number formats are equal.

    `EXACT` for float32 and float64. Float16, bfloat16 and quantised models need more (`EXACT_FLOAT16`, ...),
    because two orders of summation round to different neighbours at every node. For a sharp verdict check the
    float32 model.
    """
    proto = read_header(model)
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    types = {t.data_type for t in proto.graph.initializer} | {v.type.tensor_type.elem_type for v in values}
    limits = [EXACT]
    for node in _nodes([*proto.graph.node, *(n for function in proto.functions for n in function.node)]):
        types |= {a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
        if re.search("QLinear|Quantize|Integer$", node.op_type):
            limits.append(EXACT_QUANTISED)
    formats = {onnx.TensorProto.FLOAT16: EXACT_FLOAT16, onnx.TensorProto.BFLOAT16: EXACT_BFLOAT16}
    return max(limits + [limit for kind, limit in formats.items() if kind in types])


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            yield from (inner for graph in attribute.graphs for inner in _nodes(graph.node))


def parity(
    masked: Model,
    pruned: Model,
    feeds: Iterable[Feed] | None = None,
    provider: str = "cpu",
    threads: int | None = None,
) -> Parity:
    """Compare a pruned model with the original whose removed weights are zero; the worst over all feeds.

    Graph optimisations are off, so that both models run node by node and only the order of summation differs.

    Raises:
        ModelError, ProviderError: a model does not load or run.
        DataError: `feeds` is empty, or left out and an input cannot be made up (see `random_feeds`).
    """
    a, b = (session(model, provider, threads, optimize=False, arena=False) for model in (masked, pruned))
    limit, worst, count = tolerance(masked), dict[str, OutputParity](), 0
    for feed in random_feeds(a) if feeds is None else feeds:
        count += 1
        for found in compare(run(a, feed), run(b, feed)).outputs:
            worst[found.name] = worst.get(found.name, found) | found
    if not count:
        raise DataError("parity needs at least one feed and got none; leave `feeds` out for a random one")
    return Parity(tuple(worst.values()), limit, count)


# Fidelity


@dataclass(frozen=True)
class Fidelity:
    """What a pruned model's outputs kept of the original's, over all samples, for the worst output.

    Integer outputs count only where no output is a float. All is NaN where no output could be compared.

    Attributes:
        max_abs: largest difference; infinite if NaN or infinity turn up at other places.
        cosine: similarity of direction; 0 in that case.
        sqnr_db: signal to noise in decibels; infinite if nothing differs, minus infinity in that case.
        top1_agreement: share of rows with the same largest class, where the first output is [N, classes].
        samples: rows of the first input.
        skipped: outputs whose shape differed between the models (after a NonMaxSuppression, say).
    """

    max_abs: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is infinite or not a number is None."""
        result: dict[str, Any] = plain(self)
        return result


@dataclass
class _Sums:
    """Running sums over one output, in float64."""

    is_float: bool
    dot: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0

    def add(self, a: Array, b: Array) -> None:
        x, y, agree = _aligned(a, b)
        x, y = x.ravel(), y.ravel()
        error = x - y
        self.dot += float(x @ y)
        self.aa += float(x @ x)
        self.bb += float(y @ y)
        self.noise += float(error @ error) if agree else math.inf
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)) if agree else math.inf)

    @property
    def cosine(self) -> float:
        if not self.aa or not self.bb or self.noise == math.inf:
            return float(self.aa == self.bb and self.noise < math.inf)
        return self.dot / math.sqrt(self.aa) / math.sqrt(self.bb)

    @property
    def sqnr_db(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.aa / self.noise) if self.aa and self.noise < math.inf else -math.inf


def fidelity(
    original: Model | InferenceSession,
    pruned: Model | InferenceSession,
    feeds: Iterable[Feed],
    provider: str = "cpu",
    threads: int | None = None,
) -> Fidelity:
    """Compare two models on `feeds`, one at a time; sessions may be passed instead of models.

    Raises:
        ModelError, ProviderError: a model does not load or run.
        DataError: `feeds` is empty.
    """
    models: tuple[Any, Any] = (original, pruned)
    a, b = (m if hasattr(m, "run") else session(m, provider, threads, arena=False) for m in models)
    sums: dict[str, _Sums] = {}
    samples = skipped = same = ranked = 0
    first = a.get_outputs()[0].name
    for feed in feeds:
        samples += rows(feed)
        left, right = dict(_flat(run(a, feed))), dict(_flat(run(b, feed)))
        for name, x in left.items():
            y = right.get(name)
            if y is None or y.shape != x.shape:
                skipped += 1
            elif x.dtype.kind not in "OUS":
                sums.setdefault(name, _Sums(x.dtype.kind not in "iub")).add(x, y)
                if name == first and x.ndim == 2 and x.shape[1] > 1 and sums[name].is_float:
                    ranked += len(x)
                    same += int((x.argmax(1) == y.argmax(1)).sum())
    if not samples:
        raise DataError("fidelity needs at least one feed and got none; check the data")
    counted = [s for s in sums.values() if s.is_float] or list(sums.values())
    return Fidelity(
        max_abs=max((s.max_abs for s in counted), default=math.nan),
        cosine=min((s.cosine for s in counted), default=math.nan),
        sqnr_db=min((s.sqnr_db for s in counted), default=math.nan),
        top1_agreement=same / ranked if ranked else None,
        samples=samples,
        skipped=skipped,
    )
