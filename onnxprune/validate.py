"""Proof that a pruned model is valid, computes the pruned function, and what it is worth."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from onnx import ModelProto

from onnxprune.errors import DataError, ModelError, ParityError
from onnxprune.feeds import UNUSUAL, Feed, choose_shapes, input_specs, random_feeds
from onnxprune.fidelity import fidelity
from onnxprune.graph import PROTOBUF_LIMIT, Graph, is_big
from onnxprune.parity import Parity, parity, rounding
from onnxprune.runtime import LEAN, run, session
from onnxprune.shapes import without_weights
from onnxprune.steps import Context, Proof
from onnxprune.timing import bench
from onnxprune.writing import write

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

RANDOM_FEEDS = 4  # inputs drawn where the user gave none
PARITY_FEEDS = 2
ROUNDING = 5  # times the difference of the oracle from itself is still rounding
DATA_FEEDS = 64  # of the user's inputs, for fidelity
FRUGAL: dict[str, Any] = {"arena": False, "config": LEAN}


@dataclass(frozen=True)
class Checks:
    """What is measured and what must hold.

    Attributes:
        seconds: the most time for the latency comparison; 0: not measured.
        min_speedup: the least speed-up; the run fails below it.
        max_drop: the largest fall of the user's metric where there is one, else the largest loss of fidelity (share of
            top-1 answers that change, or 1 - cosine); fails above it.
        batch: samples in a run where latency is measured; None: as the data have them, else 1.
    """

    seconds: float = 5.0
    min_speedup: float | None = None
    max_drop: float | None = None
    batch: int | None = None


class Pair(NamedTuple):
    """An oracle, what must compute its function, whether a difference beyond rounding is an error, and what it is."""

    oracle: ModelProto | Path
    cut: ModelProto | Path
    exact: bool
    what: str


def opened(proofs: Sequence[Proof], pruned: ModelProto | Path) -> list[Pair]:
    """The models of proofs; oracles as files in the draft's temporary folder: in memory only while they run.

    Args:
        proofs: of passes in their order; one without a model of its own is of `pruned`.
        pruned: the result, or the draft that was written of it.
    """
    pairs = []
    for number, proof in enumerate(proofs):
        oracle = proof.oracle()
        if isinstance(oracle, ModelProto) and isinstance(pruned, Path):
            path = pruned.with_name(f"oracle-{number}.onnx")
            write(oracle, path, external=True)
            oracle = path
        pairs.append(Pair(oracle, proof.cut or pruned, proof.exact, proof.what))
    return pairs


def validate(
    graph: Graph, pruned: ModelProto | Path, pairs: Sequence[Pair], checks: Checks, context: Context
) -> dict[str, Any]:
    """Check a pruned model and measure it against its original.

    Args:
        graph: the original.
        pruned: the result, or the draft that was written of it.
        pairs: models that must compute the same function.
        checks: what is measured, and the gates.
        context: provider, threads, data.

    Big models run one after the other, with their weights mapped and without ONNX Runtime's optimisations, which copy
    weights. Latency, which needs both models with packed weights, is then measured only where a gate asks for it.

    Returns:
        Entries for the record: `parity`, `fidelity`, `latency_ms`, `inputs`, `warnings`.

    Raises:
        ModelError: the result is not a valid model although the original is.
        ParityError: the result does not compute the pruned function.
    """
    warnings: list[str] = []
    big = context.file is not None and is_big(graph)
    options = {"provider": context.provider, "threads": context.threads, "optimize": not big, **FRUGAL}
    with context.stage("validation"):
        _check_structure(graph, pruned, warnings)
        original: ModelProto | Path = graph.path if graph.path else graph.proto
        try:
            feeds, inputs = _feeds(graph, context)
            ready = session(original, **options)
            reference: Any = original
            if big and context.file is not None:
                reference = _Recorded(ready, feeds, context.file.parent)
            else:
                run(ready, feeds[0])  # what the original does not take is not the cut's fault
            proofs = [] if big or context.data is not None else _resized(graph, context, feeds[0], ready)
            del ready
        except (ModelError, DataError) as error:
            gates = checks.min_speedup is not None or checks.max_drop is not None
            if gates or context.data is not None:
                raise
            hint = "" if context.data is not None or context.shapes else "; --shape or --data may help"
            warnings.append(f"not run, so nothing is proved or measured: {error}{hint}")
            return {"warnings": warnings}
        found: dict[str, Any] = {"inputs": inputs, "warnings": warnings}
        shown = [_shown(graph, pair, [*proofs, *feeds][:PARITY_FEEDS], big, context, warnings) for pair in pairs]
        if shown:
            found["parity"] = max(shown, key=_severity)
        made = session(pruned, **options) if big else pruned
        found["fidelity"] = fidelity(reference, made, feeds, context.provider, context.threads).to_dict()
    if big and checks.seconds > 0 and checks.min_speedup is None:
        warnings.append(f"latency is not measured beyond {PROTOBUF_LIMIT / 1e9:.1f} GB: see `onnxprune bench`")
    elif checks.seconds > 0 or checks.min_speedup is not None:
        with context.stage("latency"):
            timed = context.feeds(graph) if context.shapes or context.batch else feeds
            found["latency_ms"] = _latency(original, pruned, timed, checks, context)
    return found


def _shown(
    graph: Graph, pair: Pair, feeds: Sequence[Feed], big: bool, context: Context, warnings: list[str]
) -> dict[str, Any]:
    """How far a cut model is from its oracle.

    Raises:
        ParityError: further than rounding explains.
    """
    compared = parity(pair.oracle, pair.cut, feeds, context.provider, context.threads)
    found = {"oracle": pair.what, **compared.to_dict()}
    if compared.vacuous:
        names = ", ".join(compared.vacuous)
        warnings.append(f"parity says nothing about {names}: zero or nearly so on these inputs; give --data")
    if pair.exact and not compared.exact:
        if not big:
            found["rounding"] = _rounding(pair.oracle, compared, feeds, context)
        if not found.get("rounding"):
            raise ParityError(
                f"{graph.name}: the pruned model differs from {pair.what} by {compared.relative:.2g} of "
                "the largest output; nothing was written; please report this model"
            )
    return found


def _severity(shown: Mapping[str, Any]) -> tuple[bool, float]:
    """What is inexact comes first, then what differs most."""
    return not shown["exact"], float("inf") if shown["relative"] is None else shown["relative"]


class _Recorded:
    """What a session computes, kept in files so that the next model can have its memory; stands in for the session."""

    def __init__(self, ready: InferenceSession, feeds: Sequence[Feed], folder: Path) -> None:
        self._outputs = [SimpleNamespace(name=output.name, type="") for output in ready.get_outputs()]
        self._files = [folder / f"outputs-{number}" for number in range(len(feeds))]
        for feed, path in zip(feeds, self._files, strict=True):
            path.write_bytes(pickle.dumps(run(ready, feed)))
        self._next = iter(self._files)

    def get_inputs(self) -> list[SimpleNamespace]:
        return []

    def get_outputs(self) -> list[SimpleNamespace]:
        return self._outputs

    def run(self, names: Sequence[str], feed: Feed) -> list[Any]:
        """The outputs for the next of the feeds."""
        outputs = pickle.loads(next(self._next).read_bytes())  # written above, in a folder of our own
        return [outputs[name] for name in names]


def _check_structure(graph: Graph, pruned: ModelProto | Path, warnings: list[str]) -> None:
    """onnx.checker and strict shape inference must accept what they accepted before."""
    shell = without_weights(
        onnx.load_model(pruned, format="protobuf", load_external_data=False) if isinstance(pruned, Path) else pruned
    )
    steps: Sequence[tuple[str, Callable[[ModelProto | str], Any], tuple[Any, Any]]] = (
        ("onnx.checker", onnx.checker.check_model, (_checkable(graph), _checkable_new(pruned))),
        ("shape inference", _infer_strictly, (without_weights(graph.proto), shell)),
    )
    for name, step, (before, after) in steps:
        try:
            step(after)
        except Exception as error:
            try:
                step(before)
            except Exception:
                warnings.append(f"{name} does not accept the original either")
                continue
            text = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{graph.name}: {name} rejects the pruned model ({text}); please report this model"
            ) from error


def _checkable(graph: Graph) -> ModelProto | str:
    return str(graph.path) if graph.path else graph.proto


def _checkable_new(pruned: ModelProto | Path) -> ModelProto | str:
    return str(pruned) if isinstance(pruned, Path) else pruned


def _infer_strictly(model: ModelProto | str) -> None:
    assert isinstance(model, ModelProto)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _feeds(graph: Graph, context: Context) -> tuple[list[Feed], dict[str, Any]]:
    if context.data is not None:
        if "samples" in context.memo:  # weights were fitted to the others
            aside = context.memo["samples"].unseen[:DATA_FEEDS]
            return aside, {"source": context.data.kind, "feeds": len(aside), "aside": True}
        feeds: list[Feed] = []
        for feed in context.data:
            feeds.append(feed)
            if len(feeds) == DATA_FEEDS:
                break
        return feeds, {"source": context.data.kind, "feeds": len(feeds)}
    specs = input_specs(graph.proto)
    chosen = choose_shapes(specs, context.shapes)
    feeds = random_feeds(specs, count=RANDOM_FEEDS, shapes=context.shapes)
    return feeds, {
        "source": "random normal inputs, seed 0",
        "feeds": len(feeds),
        "assumed": list(chosen.assumed),
    }


def _rounding(oracle: ModelProto | Path, compared: Parity, feeds: Sequence[Feed], context: Context) -> float | None:
    """The largest difference of the oracle from itself, if rounding explains what is beyond the tolerance."""
    noise = rounding(oracle, feeds, context.provider, context.threads)
    beyond = [o for o in compared.outputs if o.relative > compared.tolerance and not o.is_noise]
    explained = all(not o.note and o.relative <= ROUNDING * noise[o.name].relative for o in beyond if o.name in noise)
    return max(n.relative for n in noise.values()) if explained and all(o.name in noise for o in beyond) else None


def _resized(graph: Graph, context: Context, usual: Feed, ready: InferenceSession) -> list[Feed]:
    """Where the model leaves sizes open, a feed of other sizes, if the model takes it: a cut must hold for all."""
    other = random_feeds(input_specs(graph.proto), seed=1, shapes=context.shapes, defaults=UNUSUAL)[0]
    if all(array.shape == usual[name].shape for name, array in other.items()):
        return []
    try:
        run(ready, other)
    except (ModelError, DataError):
        return []
    return [other]


def _latency(
    original: ModelProto | Path,
    pruned: ModelProto | Path,
    feeds: list[Feed],
    checks: Checks,
    context: Context,
) -> dict[str, Any]:
    measured = bench(
        original,
        pruned,
        context.provider,
        context.threads,
        feeds,
        max_seconds=max(checks.seconds, 1.0),
        min_seconds=min(0.5, checks.seconds),
        batch=context.batch,
    )
    assert measured.b is not None
    return {"before": measured.a.to_dict(), "after": measured.b.to_dict(), **measured.to_dict()}
