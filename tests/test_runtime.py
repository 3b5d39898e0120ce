"""Providers, sessions, parity, fidelity and the latency protocol."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune.timing as latency
from onnxprune import errors, runtime
from onnxprune.calls import bound
from onnxprune.errors import (
    DataError,
    GateError,
    ModelError,
    OnnxPruneError,
    OptionError,
    ProviderError,
    ShapeError,
)
from onnxprune.feeds import random_feeds
from onnxprune.fidelity import fidelity
from onnxprune.parity import EXACT, EXACT_BFLOAT16, EXACT_FLOAT16, EXACT_QUANTISED, Parity, compare, parity, tolerance
from onnxprune.runtime import resolve, run, session
from onnxprune.timing import Interval, bench, burst_of, median_interval, steady

CPU = "CPUExecutionProvider"


def wrap(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Any = None) -> onnx.ModelProto:
    """A checked model of these nodes, values and weights."""
    tensors = [numpy_helper.from_array(np.asarray(w), name) for name, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def mlp(
    keep: int | None = None, masked: int | None = None, dtype: Any = np.float32, shift: float = 0.0
) -> onnx.ModelProto:
    """x [N, 6] -> 16 hidden -> y [N, 4]; units beyond `keep` are gone, those beyond `masked` are zero."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((6, 16)), rng.standard_normal((16, 4)) + shift
    if masked is not None:
        second[masked:] = 0
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", kind, ["N", 6])
    y = helper.make_tensor_value_info("y", kind, ["N", 4])
    return wrap(nodes, [x], [y], {"w1": first[:, :keep].astype(dtype), "w2": second[:keep].astype(dtype)})


def unary(op: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, kind, ["N", 3]) for name in "xy"]
    return wrap([helper.make_node(op, ["x"], ["y"])], values[:1], values[1:])


# Errors


def test_every_error_is_one_line_with_an_exit_code() -> None:
    kinds = OnnxPruneError.__subclasses__()
    assert {k.__name__ for k in kinds} >= {
        "ModelError",
        "PlanError",
        "TargetError",
        "OutputError",
        "ParityError",
    }
    assert {k.exit_code for k in kinds if k is not GateError} == {1}
    assert GateError.exit_code == 3
    assert str(ModelError("a\n  b ")) == "a b"
    assert errors.one_line("x" * 400, 300) == "x" * 297 + "..."


# Providers


def test_importing_the_modules_does_not_import_onnxruntime() -> None:
    code = "import sys, onnxprune.timing, onnxprune.runtime; print('onnxruntime' in sys.modules)"
    root = Path(runtime.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_providers() -> None:
    listed = {short: (name, there) for short, name, there in runtime.providers()}
    assert listed["cpu"] == (CPU, True)
    assert set(listed) == set(runtime.PROVIDERS)
    assert resolve("cpu") == CPU


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ProviderError, match="unknown provider 'gpu'; choose one of cpu, cuda"):
        resolve("gpu")


def test_an_absent_provider_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(ProviderError, match=r"'cuda': .* has cpu; to get it, pip install onnxruntime-gpu"):
        session(mlp(), "cuda")
    with pytest.raises(ProviderError, match=r"'openvino'.*onnxruntime-openvino"):
        resolve("openvino")
    with pytest.raises(ProviderError, match=r"'xnnpack'.*from source"):
        resolve("xnnpack")


def test_a_provider_that_does_not_start_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class Fallback:
        def __init__(self, *args: Any, **options: Any) -> None:
            assert options["providers"][0][0] == "CUDAExecutionProvider"
            assert not options["enable_fallback"]

        def get_providers(self) -> list[str]:
            return [CPU]

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("libcudnn.so.9:\n  cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU, "CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallback)
    with pytest.raises(ProviderError, match=r"'cuda' did not start .*CPUExecutionProvider"):
        session(mlp(), "cuda")
    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(ProviderError, match=r"'cuda' did not start: libcudnn.so.9: cannot open"):
        session(mlp(), "cuda")


# Sessions


def test_a_session_from_a_path_a_model_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path)
    feed = random_feeds(mlp())[0]
    results = [run(session(m), feed)["y"] for m in (path, str(path), mlp(), mlp().SerializeToString())]
    assert all(np.array_equal(r, results[0]) for r in results)
    assert session(path, threads=1, optimize=False, arena=False).get_providers() == [CPU]
    assert runtime.model_name(path) == str(path)
    assert runtime.model_name(mlp()) == "model 'tiny'"
    assert runtime.model_name(session(path)) == str(path)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    feed = random_feeds(path)[0]
    assert np.array_equal(run(session(path), feed)["y"], run(session(mlp()), feed)["y"])
    with pytest.raises(ModelError, match="the data of 'w1' are in another file; pass the model's path"):
        session(onnx.load(path, load_external_data=False))


def test_models_that_do_not_load(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(mlp().SerializeToString()[:200])
    unknown = mlp()
    unknown.graph.node[1].op_type = "Nonsense"
    for model, message in {
        str(path): rf"{path}: ONNX Runtime cannot load it: .*Protobuf",
        str(tmp_path / "none.onnx"): "none.onnx: no such file; check the path",
        str(tmp_path): "no such file",
        b"not a model": "the model in memory: ONNX Runtime cannot load it",
        unknown.SerializeToString(): "Nonsense",
    }.items():
        with pytest.raises(ModelError, match=message) as caught:
            session(model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_threads_out_of_range() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        session(mlp(), threads=0)


def test_a_run_that_fails_names_the_inputs() -> None:
    with pytest.raises(ModelError, match=r"does not run on the inputs x \[2, 7\]: .*invalid dimensions"):
        run(session(mlp()), {"x": np.zeros((2, 7), np.float32)})


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)]
)
def test_half_precision_passes_through(kind: int, dtype: Any) -> None:
    made = session(unary("Identity", kind))
    feed = random_feeds(made, shapes={"x": (2, 3)})[0]
    result = run(made, feed)["y"]
    assert result.dtype == dtype
    assert np.array_equal(result, feed["x"])


def test_random_feeds_of_two_inputs_run_at_any_batch() -> None:
    x = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", 3])
    i = helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    made = session(wrap([helper.make_node("Gather", ["table", "index"], ["y"])], [x, i], [y]))
    feed = random_feeds(made, shapes={"table": (2, 3), "index": (5,)})[0]
    assert run(made, feed)["y"].shape == (5, 3)
    assert run(made, feed, ["y"]).keys() == {"y"}


def test_sequences_and_maps_are_spelled_out() -> None:
    a = {"s": [np.zeros(2), {"cat": np.float32(0.5)}], "none": None}
    assert [o.name for o in compare(a, a).outputs] == ["s[0]", "s[1][cat]"]


# Parity


def test_a_pruned_model_equals_the_masked_one() -> None:
    feeds = random_feeds(mlp(), count=3, shapes={"x": (8, 6)})
    found = parity(mlp(masked=10), mlp(keep=10), feeds)
    assert found.exact and found.relative < 1e-6 and not found.vacuous
    assert found.feeds == 3
    assert parity(mlp(masked=10), mlp(keep=10)).exact
    wrong = parity(mlp(masked=10), mlp(keep=9), feeds)
    assert not wrong.exact and wrong.relative > 1e-2
    assert wrong.relative == wrong.max_abs / wrong.max_ref
    with pytest.raises(DataError, match="at least one feed"):
        parity(mlp(), mlp(), [])


def test_half_precision_has_its_own_tolerance() -> None:
    half: Callable[..., onnx.ModelProto] = lambda **options: mlp(dtype=np.float16, **options)  # noqa: E731
    feeds = random_feeds(half(), shapes={"x": (8, 6)})
    found = parity(half(masked=10), half(keep=10), feeds)
    assert found.tolerance == EXACT_FLOAT16 and found.exact
    assert not parity(half(masked=10), half(keep=9), feeds).exact


def test_tolerance_by_number_format() -> None:
    assert tolerance(mlp()) == tolerance(mlp().SerializeToString()) == EXACT
    assert tolerance(unary("Identity", TensorProto.BFLOAT16)) == EXACT_BFLOAT16
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    casts = [helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT16)]
    casts += [helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT)]
    assert tolerance(wrap(casts, [x], [y])) == EXACT_FLOAT16
    quantised = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"])]
    quantised += [helper.make_node("DequantizeLinear", ["q", "s"], ["y"])]
    assert tolerance(wrap(quantised, [x], [y], {"s": np.float32(0.1)})) == EXACT_QUANTISED


def one(a: Any, b: Any) -> Parity:
    return compare({"y": np.asarray(a)}, {"y": np.asarray(b)})


def test_each_output_has_its_own_scale() -> None:
    a, b = (dict(zip(("big", "small"), np.array([[1e6], [small]]), strict=True)) for small in (1e-3, 2e-3))
    found = compare(a, b)
    assert found.relative == 1 and not found.exact
    assert found.max_ref == 1e6 and found.max_abs == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("a", "b", "relative"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0),
        ([1.0, np.inf], [1.0, np.inf], 0),
        ([1.0, np.inf], [1.0, -np.inf], math.inf),
        ([1.0, np.nan], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [1.0, np.nan], math.inf),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 1e-9], 1),
        ([2, 4], [2, 3], 0.25),
        ([True, False], [True, True], 1),
        (["a"], ["a"], 0),
        (["a"], ["b"], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        (np.zeros((0, 4)), np.zeros((0, 4)), 0),
    ],
)
def test_compare(a: Any, b: Any, relative: float) -> None:
    assert one(a, b).relative == relative


def test_a_missing_output_is_a_difference() -> None:
    y = {"y": np.ones(1)}
    assert compare(y, {}).outputs[0].note == "missing in the second model"
    assert compare({}, y).outputs[0].note == "missing in the first model"


def test_outputs_that_prove_nothing_are_named() -> None:
    assert one(np.zeros(3), np.zeros(3)).vacuous == ("y",)
    assert one([np.nan], [np.nan]).vacuous == ("y",)
    assert one(np.zeros(3), np.ones(3)).exact is False


def test_parity_as_json() -> None:
    found = json.loads(json.dumps(one([1.0, np.nan], [1.0, 2.0]).to_dict(), allow_nan=False))
    assert found["relative"] is None and found["exact"] is False
    assert found["outputs"][0]["note"] == "NaN or infinity at other places"


# Fidelity


def test_fidelity_of_a_model_with_itself() -> None:
    feeds = random_feeds(mlp(), count=2, shapes={"x": (5, 6)})
    found = fidelity(mlp(), session(mlp()), feeds)
    assert found.cosine == pytest.approx(1)
    assert (found.max_abs, found.sqnr_db) == (0, math.inf)
    assert (found.top1_agreement, found.samples, found.skipped) == (1, 10, 0)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["sqnr_db"] is None


def test_fidelity_streams_what_numpy_computes_at_once() -> None:
    feeds = random_feeds(mlp(), count=4, shapes={"x": (5, 6)})
    found = fidelity(mlp(), mlp(shift=0.3), iter(feeds))
    a, b = (
        np.concatenate([run(session(m), f)["y"] for f in feeds]).astype(np.float64) for m in (mlp(), mlp(shift=0.3))
    )
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.top1_agreement == np.mean(a.argmax(1) == b.argmax(1))
    assert found.samples == 20


def test_fidelity_where_nan_turns_up() -> None:
    feeds = [{"x": np.array([[-1, 1, 4]], np.float32)}]
    found = fidelity(unary("Abs"), unary("Sqrt"), feeds)
    assert (found.max_abs, found.cosine, found.sqnr_db) == (math.inf, 0, -math.inf)


def test_fidelity_without_scores_or_with_other_shapes() -> None:
    feeds = random_feeds(unary("Abs"))
    assert fidelity(unary("Abs"), unary("Abs"), [{"x": np.ones((4, 3), np.float32)}]).top1_agreement == 1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [2, "n"])
    positive = wrap([helper.make_node("NonZero", ["x"], ["y"])], [x], [y])
    none = wrap([helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("NonZero", ["z"], ["y"])], [x], [y])
    found = fidelity(positive, none, feeds)
    assert found.skipped == 1 and math.isnan(found.cosine) and found.top1_agreement is None
    assert found.to_dict()["cosine"] is None
    assert fidelity(positive, positive, feeds).cosine == 1
    with pytest.raises(DataError, match="at least one feed"):
        fidelity(positive, positive, [])


# Latency


def test_median_interval() -> None:
    samples = [float(n) for n in np.random.default_rng(0).permutation(101)]
    interval = median_interval(samples)
    assert interval.value == 50
    assert 35 < interval.low < 50 < interval.high < 65
    drifting = median_interval(sorted(samples))  # neighbours alike: few independent samples
    assert drifting.high - drifting.low > 2 * (interval.high - interval.low)
    assert median_interval([3.0, 1.0, 2.0]) == Interval(2, 1, 3)
    assert median_interval([1.0]) == Interval(1, 1, 1)
    assert Interval(2, 1.5, 2.5).half_width == 0.25


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [median_interval(rng.lognormal(0, 1, 40).tolist()) for _ in range(400)]
    assert 0.91 < np.mean([i.low <= 1 <= i.high for i in intervals]) <= 1


def fake_clock(monkeypatch: pytest.MonkeyPatch, times: dict[str, float], noise: float, seed: int = 0) -> list[str]:
    """Make runs of a model take a set number of milliseconds, with noise; returns the order of the runs."""
    rng, order = np.random.default_rng(seed), list[str]()

    def runner(session: Any, feed: Any, device: Any) -> str:
        return "a" if session.get_outputs()[0].shape[1] == 4 else "b"

    def timed(call: Any) -> float:
        order.append(call)
        return float(times[call] * rng.lognormal(0, noise))

    monkeypatch.setattr(latency, "runner", runner)
    monkeypatch.setattr(latency, "timed", timed)
    return order


def narrow() -> onnx.ModelProto:
    """A model with the inputs of `mlp` and another output shape."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6]) for name in "xy"]
    return wrap([helper.make_node("Relu", ["x"], ["y"])], values[:1], values[1:])


def test_turns_alternate_and_the_ratio_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    order = fake_clock(monkeypatch, {"a": 100.0, "b": 50.0}, 0.05)
    result = bench(mlp(), narrow(), warmup=2, min_seconds=0)
    assert result.ratio is not None and result.speedup is not None and result.b is not None
    assert result.ratio.low < 0.5 < result.ratio.high
    assert result.speedup.low < 2 < result.speedup.high
    assert result.converged and result.ratio.half_width < 0.02
    assert result.a.median.value == pytest.approx(100, rel=0.05)
    assert result.a.q1 < result.a.median.value < result.a.q3
    assert "".join(order[:14]) == "aaabbb" + "abbaabba"
    assert result.turns == (len(order) - 6) // 2


def test_identical_models_are_equally_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    covered = 0
    for seed in range(40):
        fake_clock(monkeypatch, {"a": 3.0}, 0.1, seed)
        ratio = bench(mlp(), mlp(), min_seconds=0).ratio
        assert ratio is not None and 0.9 < ratio.value < 1.1
        covered += ratio.low <= 1 <= ratio.high
    assert covered >= 35  # of 38 expected at 95 %


def test_fast_models_run_several_times_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order = fake_clock(monkeypatch, {"a": 10.0}, 0.0)
    result = bench(mlp(), runs=6, warmup=1, min_seconds=0)
    assert result.burst == 4 and result.turns == 6 and result.converged
    assert len(order) == 2 + 6 * (2 + 4)  # warming up, then turns whose first runs do not count


def test_the_first_runs_of_a_turn_do_not_count() -> None:
    rest = iter([0.02, 0.02, 0.0, 0.0, 0.0])
    assert steady(lambda: time.sleep(next(rest)), 3) < 20
    assert (burst_of(100.0), burst_of(10.0), burst_of(0.1)) == (1, 4, latency.MAX_BURST)


def test_a_slow_model_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, {"a": 3.0}, 0.0)
    result = bench(mlp(), mlp(), min_seconds=0, max_seconds=0)
    assert result.turns == 1 and not result.converged
    json.dumps(result.to_dict(), allow_nan=False)


def test_noise_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, {"a": 3.0}, 2.0)
    result = bench(mlp(), min_seconds=0, max_seconds=0.05)
    assert not result.converged and result.seconds < 5


def test_two_real_models() -> None:
    options: dict[str, Any] = {"threads": 1, "runs": 6, "min_seconds": 0.01, "max_seconds": 0.2}
    result = bench(mlp(), mlp(keep=8), shapes={"x": (4, 6)}, **options)
    assert result.ratio is not None and result.b is not None
    assert 0.05 < result.ratio.value < 20
    assert 0 < result.a.fastest <= result.a.median.low <= result.a.median.high
    assert result.a.nodes in ({}, {CPU: 3})
    assert (result.provider, result.device, result.threads) == ("cpu", "cpu", 1)
    assert result.inputs == {"x": [4, 6]}
    assert result.busy is False
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["a"]["model"] == "model 'tiny'"
    assert found["a"]["median"] > 0 and len(found["a"]["spread"]) == 2
    assert found["speedup"]["value"] == pytest.approx(1 / found["ratio"]["value"])


def test_one_real_model_on_feeds(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    feeds = (f for f in random_feeds(mlp(), count=3, shapes={"x": (2, 6)}))
    result = bench(tmp_path / "m.onnx", feeds=feeds, runs=6, min_seconds=0, max_seconds=0.1)
    assert result.b is None and result.ratio is None and result.speedup is None
    assert result.assumed == ()
    assert result.a.model == str(tmp_path / "m.onnx")
    assert bench(mlp(), runs=6, min_seconds=0, max_seconds=0.1).assumed == (
        "input 'x' float32 [N, 6] was fed as [1, 6]",
    )


@pytest.mark.parametrize(("kind", "device"), [(TensorProto.FLOAT, "cpu"), (TensorProto.BFLOAT16, None)])
def test_bound_inputs_and_outputs(kind: int, device: str | None) -> None:
    made = session(unary("Identity", kind))
    call = bound(made, random_feeds(made)[0], device)
    assert call.__name__ == "call"
    call()


def test_a_crowded_machine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([0.0, 1e6])
    monkeypatch.setattr(latency, "_others_cpu", lambda: next(used))
    result = bench(mlp(), threads=2, runs=6, min_seconds=0, max_seconds=0.05)
    assert result.busy and result.others is not None and result.others > 1


def test_bench_refuses_what_makes_no_sense() -> None:
    for options in ({"runs": 0}, {"warmup": 0}, {"min_seconds": 2, "max_seconds": 1}):
        with pytest.raises(OptionError, match="bench: "):
            bench(mlp(), **options)  # type: ignore[arg-type]
    other = unary("Abs")
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    with pytest.raises(ModelError, match="its inputs are not those of model 'tiny'"):
        bench(mlp(), other)
    with pytest.raises(DataError, match="at least one feed"):
        bench(mlp(), feeds=[])
    with pytest.raises(ModelError, match=r"does not run on the inputs x \[1, 7\]"):
        bench(mlp(), feeds=[{"x": np.zeros((1, 7), np.float32)}])
    with pytest.raises(ShapeError):
        bench(mlp(), shapes={"x": (1, 7)})
