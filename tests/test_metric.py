"""The user's own measure: how it is found, what it is given, and what it may return."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import words
from onnxprune.errors import MetricError, OptionError
from onnxprune.metric import Metric, Run, load, measure
from onnxprune.pipeline import Result
from onnxprune.pruning import apply, prune
from onnxprune.testing import Builder, close
from onnxprune.validate import Checks
from onnxprune.writing import save

QUICK = Checks(seconds=0)
X = np.ones((2, 3, 6, 6), np.float32)


def network() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 6, 6), 32, name="w1"))
    return b.model(close(b, y, name="w2"))


def largest(run: Run) -> float:
    return float(max(np.abs(answer).max() for answer in run({"x": X}).values()))


def found(function: Callable[..., object]) -> dict[str, float]:
    return measure(load(function), network(), "cpu", None, which="the original")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Where it comes from


@pytest.mark.parametrize("text", ["metric.py:good", "./metric.py:good", "metric:good"])
def test_a_file_or_a_module_of_the_working_directory(folder: Path, text: str) -> None:
    Path("metric.py").write_text("def good(run): return 3\n")
    before = list(sys.path)
    metric = load(text)
    sys.modules.pop("metric", None)
    assert (metric.name, metric.label) == (text, "good")
    assert measure(metric, network(), "cpu", None, which="the original") == {"good": 3.0}
    assert sys.path == before
    assert list(folder.iterdir()) == [folder / "metric.py"]


def test_a_file_finds_what_is_beside_it_also_later(folder: Path) -> None:
    Path("eval").mkdir()
    Path("eval/beside_a.py").write_text("VALUE = 2\n")
    Path("eval/beside_b.py").write_text("VALUE = 3\n")
    Path("eval/m.py").write_text(
        "from dataclasses import dataclass\nfrom beside_a import VALUE\n\n"
        "@dataclass\nclass Held:\n    value: 'int' = VALUE\n\n"
        "def product(run):\n    import beside_b\n    return Held().value * beside_b.VALUE\n"
    )
    assert measure(load("eval/m.py:product"), network(), "cpu", None, which="the original") == {"product": 6.0}


def test_a_file_does_not_take_the_place_of_a_module(folder: Path) -> None:
    Path("numpy.py").write_text("def zero(run): return 0\n")
    assert load("numpy.py:zero").function is not None
    assert sys.modules["numpy"] is np


def test_an_installed_module() -> None:
    assert load("statistics:fmean").function([1, 2]) == 1.5  # type: ignore[arg-type]


def test_it_is_loaded_once_and_run_twice(folder: Path) -> None:
    Path("m.py").write_text(
        "open('log', 'a').write('loaded ')\n\ndef f(run):\n    open('log', 'a').write('run ')\n    return 1\n"
    )
    prune(network(), "macs=0.5", metric="m.py:f", align=1, checks=QUICK)
    assert Path("log").read_text() == "loaded run run "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy", "write MODULE:FUNCTION, as in metric.py:accuracy"),
        ("", "write MODULE:FUNCTION"),
        ("m.py:", "write MODULE:FUNCTION"),
        (":good", "write MODULE:FUNCTION"),
        ("none.py:good", "none.py: no such file"),
        ("none:good", "no module none"),
        ("none.inner:good", "no module none.inner"),
        ("sub/m:good", "no module sub/m"),
        (".m:good", "no module .m"),
        ("m.py:goud", "m.py has no 'goud'; did you mean 'good'?"),
        ("m.py:other", "m.py has no 'other'; check the name"),
        ("m.py:LABELS", "LABELS is a list, not a function"),
        ("syntax.py:f", "syntax.py does not load (SyntaxError: "),
        ("broken.py:f", "broken.py does not load (ModuleNotFoundError: No module named 'nowhere')"),
        ("broken:f", "broken does not load (ModuleNotFoundError: No module named 'nowhere')"),
        ("leaves.py:f", "leaves.py does not load (SystemExit: 3)"),
        ("binary.py:f", "binary.py does not load ("),
        ("folder.py:f", "folder.py: no such file"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, text: str, says: str) -> None:
    Path("m.py").write_text("LABELS = [1]\n\ndef good(run): return 1\n")
    Path("syntax.py").write_text("def f(run:\n")
    Path("broken.py").write_text("import nowhere\n")
    Path("leaves.py").write_text("raise SystemExit(3)\n")
    Path("binary.py").write_bytes(b"\x00\xff\x00")
    Path("folder.py").mkdir()
    with pytest.raises(MetricError) as error:
        load(text)
    assert says in str(error.value) and str(error.value).startswith(f"--metric {text}: ")


def test_a_callable_is_named_after_itself() -> None:
    class Measure:
        def __call__(self, run: Run) -> float:
            return 1.0

    assert (load(largest).name, load(largest).label) == ("largest", "largest")
    assert load(Measure()).label == "Measure"
    made = Metric("mine", largest, "size")
    assert load(made) is made
    with pytest.raises(MetricError, match="--metric 3: give a function, or MODULE:FUNCTION"):
        load(3)


# What it is given


def test_the_function_is_given_a_model_that_runs() -> None:
    model = network()

    def function(run: Run) -> float:
        assert run.inputs == ("x",)
        assert run.outputs == tuple(o.name for o in model.graph.output)
        answers = run({"x": X})
        assert set(answers) == set(run.outputs) and isinstance(answers[run.outputs[0]], np.ndarray)
        return float(len(run({"x": X[:1]})[run.outputs[0]]))

    assert measure(load(function), model, "cpu", 1, which="the original") == {"function": 1.0}


# What it may return


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), np.array(2, np.float16)], ids=lambda v: str(type(v))
)
def test_numbers(value: Any) -> None:
    got = found(lambda run: {"it": value, "twice": value})
    assert got == {"it": 2.0, "twice": 2.0}
    assert all(type(v) is float for v in got.values())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "returned a NoneType; return a number, or a dict from names to numbers"),
        ("0.5", "returned a str; "),
        (True, "returned a bool; "),
        (np.bool_(True), "returned a bool; "),
        ([0.5], "returned a list; "),
        (np.zeros(3), "returned a ndarray; "),
        (1j, "returned a complex; "),
        ({}, "returned an empty dict; "),
        ({"a": 1, "b": None}, "returned a NoneType for 'b'; "),
        ({1: 0.5}, "returned a dict with the name 1; "),
        (math.nan, "returned NaN on the original; "),
        ({"a": np.float32("nan")}, "returned NaN for 'a' on the original; "),
    ],
    ids=str,
)
def test_what_is_no_number(value: Any, says: str) -> None:
    with pytest.raises(MetricError) as error:
        found(lambda run: value)
    assert says in str(error.value) and "--metric <lambda>: " in str(error.value)


def test_what_it_raises_is_told() -> None:
    def broken(run: Run) -> float:
        raise KeyError("labels\nand more")

    with pytest.raises(
        MetricError, match=r"--metric broken: the function raised KeyError: .* on the original; "
    ) as error:
        found(broken)
    assert "\n" not in str(error.value) and isinstance(error.value.__cause__, KeyError)

    def leaves(run: Run) -> float:
        sys.exit("no data")

    with pytest.raises(MetricError, match="raised SystemExit: no data"):
        found(leaves)
    with pytest.raises(MetricError, match=r"raised ModelError: .* does not run on the inputs y"):
        found(lambda run: run({"y": X}))
    with pytest.raises(
        MetricError, match=r"raised TypeError: run\(\) takes a dict from input name to array, as in {'x'"
    ):
        found(lambda run: run(X))


# In a run


def test_python_takes_a_function_and_measures_both_models(tmp_path: Path) -> None:
    seen: list[float] = []

    def size(run: Run) -> dict[str, float]:
        seen.append(largest(run))
        return {"largest": seen[-1], "calls": len(seen)}

    result = prune(network(), "macs=0.5", metric=size, align=1, out=tmp_path / "out.onnx", checks=QUICK)
    assert result.record["metric"] == {
        "name": "size",
        "before": {"largest": seen[0], "calls": 1.0},
        "after": {"largest": seen[1], "calls": 2.0},
    }
    assert seen[0] == found(largest)["largest"]
    assert seen[1] == measure(load(largest), tmp_path / "out.onnx", "cpu", None, which="it")["largest"] != seen[0]
    assert result.plan is not None and "metric" in result.record["seconds"]
    again = apply(network(), result.plan, metric=largest, checks=QUICK)
    assert again.record["metric"]["after"] == {"largest": seen[1]}


def test_a_broken_one_fails_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> Result:
        raise AssertionError("too late")

    monkeypatch.setattr("onnxprune.passes.prune_channels.PruneChannels.__call__", work)
    with pytest.raises(MetricError, match="on the original"):
        prune(network(), metric=lambda run: 1 / 0, out=tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_that_fails_on_the_result_leaves_nothing(tmp_path: Path) -> None:
    answers = iter([1.0, math.nan])
    with pytest.raises(MetricError, match="returned NaN on the pruned model"):
        prune(network(), align=1, metric=lambda run: next(answers), out=tmp_path / "out.onnx", checks=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_without_validation_there_is_nothing_to_measure_on() -> None:
    with pytest.raises(OptionError, match="--metric runs the models"):
        prune(network(), validate=False, metric=largest)


@pytest.mark.parametrize("limit", [10_000, 2**31])
def test_weights_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", limit)
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 6, 6), 128, name="w1"))
    save(b.model(close(b, y, name="w2")), tmp_path / "in.onnx", external=True)
    result = prune(tmp_path / "in.onnx", "macs=0.5", align=1, metric=largest, out=tmp_path / "out.onnx", checks=QUICK)
    after = measure(load(largest), tmp_path / "out.onnx", "cpu", None, which="it")
    np.testing.assert_allclose(result.record["metric"]["after"]["largest"], after["largest"], rtol=1e-5)


# In words


def test_a_line_for_each_value() -> None:
    values = {"top-1": 0.92637, "loss": 12345.678, "psnr": math.inf, "same": 0.5, "gone": 1.0}
    after = {"top-1": 0.9, "loss": 12346.0, "psnr": 31.5, "same": 0.5, "new": 2e-7}
    rows = words.rows({"metric": {"name": "m.py:f", "before": values, "after": after}})
    assert [(row.label, row.before, row.after, row.note.text) for row in rows] == [
        ("top-1", "0.92637", "0.9", "-0.0264"),
        ("loss", "12346", "12346", "+0.322"),
        ("psnr", "inf", "31.5", ""),
        ("same", "0.5", "0.5", "unchanged"),
        ("gone", "1", "-", ""),
        ("new", "-", "2e-07", ""),
    ]
