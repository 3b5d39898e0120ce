"""A sweep: its targets, its front and its knee, what its targets share, and who does the work."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import plot, recall, steps, swept
from onnxprune.errors import ExecutorError, OptionError, OutputError, TargetError
from onnxprune.pareto import front, knee
from onnxprune.shares import shares_of
from onnxprune.tasks import Task
from onnxprune.timing import Interval
from onnxprune.tradeoff import Curve, Point
from tests.trained import pictures, trained

FAST: dict[str, Any] = {"align": 1, "threads": 1, "seconds": 0.0}
TARGETS = (0.9, 0.7, 0.5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "net.onnx"
    onnx.save(trained(), file)
    return file


@pytest.fixture(autouse=True)
def nothing_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", "off")


# Targets


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0.9:0.3", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
        ("0.3:0.9:3", (0.9, 0.6, 0.3)),
        ("1:0.5:2", (1.0, 0.5)),
        ("0.5", (0.5,)),
        ("0.5, 0.9,0.75", (0.9, 0.75, 0.5)),
        ((0.25, 0.5), (0.5, 0.25)),
        (iter([0.25]), (0.25,)),
    ],
)
def test_targets(text: Any, shares: tuple[float, ...]) -> None:
    assert shares_of(text) == shares


@pytest.mark.parametrize(
    "text",
    (
        *("", "half", "0.5,", "0.9:", ":0.3", "0.9:0.3:1", "0.9:0.3:x", "0.9:0.3:2.5", "0.9:0.3:101", "0.9:0.3:-2"),
        *("0.9:0.3:4:5", "0.9:0.9", "0:0.5", "0.9:nan", "1.2:0.5", "0.5,0.5", "0.5;0.6"),
        *("1.5", "0", "-0.5", "nan", "inf", "1e-9"),
    ),
)
def test_targets_that_make_no_sense(text: str) -> None:
    with pytest.raises(TargetError, match=r"write 0\.9:0\.3"):
        shares_of(text)


# Front and knee


def test_a_point_on_the_front_is_beaten_by_no_other() -> None:
    assert front([((1, 1), (5, 5)), ((2, 2), (4, 4)), ((2, 2), (6, 6)), ((3, 3), (4, 4))]) == [0, 1]


def test_figures_that_overlap_are_alike() -> None:
    assert front([((1, 3), (5, 5)), ((2, 4), (5, 5))]) == [0, 1]
    assert front([((1, 3), (5, 5)), ((2, 4), (6, 6))]) == [0]
    assert front([((1, 1.9), (5, 5)), ((2, 4), (5, 5))]) == [0]


def test_what_was_not_measured_decides_nothing() -> None:
    assert front([(None, (5, 5)), ((1, 1), (5, 5))]) == [0, 1]
    assert front([(None, (5, 5)), ((1, 1), (6, 6))]) == [0]
    assert front([]) == []


def test_the_knee_is_the_one_of_the_paper() -> None:
    x = [n / 10 for n in range(11)]  # figure 2 of the paper: f(x) = -1 / x + 5 has its knee at x = 0.22 of the range
    y = [-1 / (n + 0.1) + 5 for n in x]
    assert knee(x, y) == 2
    assert knee([1, 0.8, 0.5, 0.2], [1, 0.99, 0.97, 0.4]) == 2


@pytest.mark.parametrize(
    "y", [[1.0], [1, 0.5], [1, 0.5, 0.0], [1, 0.2, 0.0], [1, 1, 1]], ids=["one", "two", "line", "below", "flat"]
)
def test_no_knee(y: list[float]) -> None:
    assert knee([1, 0.5, 0.0][: len(y)], y) is None


def point(share: float, cosine: float | None, size: float, low: float = 0.0, high: float = 1.0) -> Point:
    latency = Interval((low + high) / 2, low, high)
    return Point("net.onnx", f"macs={share:g}", share, share, size, size, latency, 1.0, cosine, None, {"a": 1.0})


def curve() -> Curve:
    unmet = Point("net.onnx", "macs=0.1", 0.1, error="net.onnx: --target macs=0.1 cannot be met")
    points = (point(0.9, 0.99, 0.9), point(0.8, 0.98, 0.95), point(0.5, 0.97, 0.5), point(0.3, 0.5, 0.3), unmet)
    return Curve("net.onnx", "macs", points, {"metric": {"a": 2.0}}, None, ("a note",))


def test_a_curve_knows_its_front_and_its_knee() -> None:
    assert curve().front == (0, 2, 3)
    assert curve().knee == 2
    shown = curve().to_dict()["points"]
    assert [p["front"] for p in shown] == [True, False, True, True, False]
    assert [p["knee"] for p in shown] == [False, False, True, False, False]
    free = Curve("net.onnx", "macs", (point(0.9, 1.0 - 1e-9, 0.9), point(0.5, 1.0 - 1e-7, 0.5), point(0.3, 0.9, 0.3)))
    assert free.front == (1, 2) and free.knee == 1  # what costs nothing but rounding is on the way there
    unknown = Curve("net.onnx", "macs", tuple(point(s, None, s) for s in TARGETS))
    assert unknown.front == () and unknown.knee is None


def test_a_curve_as_json_csv_and_picture() -> None:
    record = json.loads(swept.to_json([curve()], cost="macs"))
    assert record["curves"][0]["points"][4]["error"].endswith("cannot be met")
    rows = list(csv.DictReader(io.StringIO(swept.to_csv([curve(), curve()]))))
    assert len(rows) == 10 and rows[0]["metric a"] == "1.0" and rows[0]["latency_high"] == "1.0"
    assert rows[4]["cosine"] == rows[4]["latency"] == "" and rows[2]["knee"] == "True"
    svg = plot.plot([curve()], ".svg")
    assert svg == plot.plot([curve()], ".svg") and b"macs=0.5" in svg
    assert plot.plot([curve()], ".PNG").startswith(b"\x89PNG")
    with pytest.raises(OptionError, match=r"ends in \.png or \.svg"):
        plot.check("curve.pdf")


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install matplotlib"):
        plot.check("curve.svg")


# What targets share


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """The first arguments of all calls."""
    found: list[Any] = []
    real: Callable[..., Any] = getattr(module, name)

    def call(first: Any, *args: Any, **options: Any) -> Any:
        found.append(first)
        return real(first, *args, **options)

    monkeypatch.setattr(module, name, call)
    return found


@pytest.mark.parametrize("criterion", ["auto", "obs"])
def test_one_analysis_and_one_calibration_for_all_targets(
    path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    coupled = counted(monkeypatch, steps, "couple")
    calibrated = counted(monkeypatch, recall, "calibrate")  # the way of the original alone; cut models go another
    scope = "auto" if criterion == "auto" else "global"
    found = onnxprune.sweep(path, TARGETS, data=pictures(), criterion=criterion, scope=scope, **FAST)
    assert all(p.error is None and p.cosine is not None for p in found.points)
    assert len(coupled) == 1
    assert len(calibrated) == 1


def test_the_models_are_those_of_single_runs(path: Path, tmp_path: Path) -> None:
    calls: dict[str, Any] = {"data": pictures(), "align": 1, "threads": 1}
    found = onnxprune.sweep(path, TARGETS, out=tmp_path / "out", seconds=0.0, **calls)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"net-macs={s:g}.onnx" for s in sorted(TARGETS)]
    for each in found.points:
        checks = onnxprune.Checks(seconds=0)
        alone = onnxprune.prune(path, each.target, out=tmp_path / "one.onnx", checks=checks, **calls).record
        assert each.file is not None
        assert Path(each.file).read_bytes() == (tmp_path / "one.onnx").read_bytes()
        assert each.cosine == alone["fidelity"]["cosine"]
        assert each.macs == alone["macs"]["after"] / alone["macs"]["before"] <= each.share


def test_a_single_run_does_not_keep_what_only_others_need(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memos: list[Any] = []
    real = steps.Context.couple

    def couple(self: steps.Context, *args: Any) -> Any:
        memos.append(self.memo)
        return real(self, *args)

    monkeypatch.setattr(steps.Context, "couple", couple)
    onnxprune.prune(path, "macs=0.5", data=pictures(), align=1, checks=onnxprune.Checks(seconds=0))
    kinds = {key if isinstance(key, str) else key[0] for memo in memos for key in memo}
    assert "samples" in kinds and not kinds & {"look", "seen"}


# Targets that cannot be met, and models in memory


def test_a_target_that_cannot_be_met_is_a_point_with_its_reason(tmp_path: Path) -> None:
    found = onnxprune.sweep(trained(), (0.9, 0.001), out=tmp_path / "out", **FAST)
    met, unmet = found.points
    assert met.error is None and met.file == str(tmp_path / "out" / "model-macs=0.9.onnx")
    assert unmet.error is not None and "cannot be met" in unmet.error and unmet.macs is None and unmet.file is None
    assert found.front == (0,)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model-macs=0.9.onnx"]


def test_latency_and_a_metric(path: Path) -> None:
    def size(run: Any) -> dict[str, float]:
        return {"mean": float(run(pictures(2))[run.outputs[0]].mean())}

    options = {**FAST, "seconds": 0.5}
    found = onnxprune.sweep(path, [0.5], cost="params", metric=size, **options)
    (only,) = found.points
    assert only.latency is not None and only.latency.low <= only.latency.value <= only.latency.high
    assert only.milliseconds is not None and only.params is not None and only.params < 0.51  # with new biases
    assert set(only.metric) == set(found.original["metric"]) == {"mean"}
    assert found.measured is not None and found.measured["threads"] == 1


def test_what_makes_no_sense(path: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="name at least one"):
        onnxprune.sweep([], TARGETS)
    with pytest.raises(TargetError):
        onnxprune.sweep(path, TARGETS, cost="weight")
    with pytest.raises(OutputError, match="two models have this name"):
        onnxprune.sweep([path, path], TARGETS, out=tmp_path / "out", **FAST)
    with pytest.raises(OutputError, match="is no folder"):
        onnxprune.sweep(path, TARGETS, out=path, **FAST)
    with pytest.raises(onnxprune.OnnxPruneError, match="too few to calibrate"):
        onnxprune.sweep(path, TARGETS, out=tmp_path / "out", data=pictures(2), **FAST)
    assert not list(tmp_path.iterdir())


# Executors


def figures(found: Curve) -> list[tuple[Any, ...]]:
    return [(p.target, p.macs, p.file_bytes, p.cosine, p.top1_agreement) for p in found.points]


def test_threads_do_what_this_thread_does(path: Path, tmp_path: Path) -> None:
    options = {"data": pictures(16), **FAST}
    with ThreadPoolExecutor(2) as pool:
        several = onnxprune.sweep([path, path], TARGETS, executor=pool, workers=4, **options)
        kept = onnxprune.sweep(path, TARGETS[:2], executor=pool, out=tmp_path, **options)
    alone = onnxprune.sweep(path, TARGETS, **options)
    assert [figures(each) for each in several] == [figures(alone)] * 2
    assert figures(kept) == figures(alone)[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-macs=0.7.onnx", "net-macs=0.9.onnx"]


def test_targets_are_dealt_to_tasks() -> None:
    whole = Task("net.onnx", {name: f"{name}.onnx" for name in "abcde"}, {})
    assert [list(task.files) for task in whole.dealt(2)] == [["a", "c", "e"], ["b", "d"]]
    assert len(whole.dealt(9)) == 5
    task = Task("net.onnx", {}, {"data": "images", "metric": "m.py:f"}).portable()
    assert Path(str(task.model)).is_absolute() and Path(task.options["data"]).is_absolute()
    assert task.options["metric"].endswith("/m.py:f") and Path(task.options["metric"]).is_absolute()
    assert Task("net.onnx", {}, {"data": "synthetic", "metric": "m:f"}).portable().options == {
        "data": "synthetic",
        "metric": "m:f",
    }


class Failing:
    """An executor of which every task fails in the same way."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(Future())
        if len(self.futures) == 1:
            self.futures[0].set_exception(self.error)
        return self.futures[-1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (BrokenExecutor("a child was killed"), "use fewer workers"),
        (CancelledError(), "the cluster is still there"),
        (ModuleNotFoundError("No module x"), "lacks a package"),
    ],
)
def test_workers_that_fail_end_the_sweep_in_a_line(path: Path, tmp_path: Path, error: Exception, says: str) -> None:
    pool = Failing(error)
    with pytest.raises(ExecutorError, match=says):
        onnxprune.sweep(path, TARGETS, executor=pool, out=tmp_path / "out", **FAST)
    assert all(future.cancelled() for future in pool.futures[1:])
    assert not list(tmp_path.iterdir())


def test_latency_targets_are_not_given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.sweeping.parse_target", lambda text: None)
    with pytest.raises(OptionError, match="leave --executor out"):
        onnxprune.sweep(path, TARGETS, cost="latency", executor=Failing(ValueError()))


def test_a_dask_cluster(path: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    np.savez(tmp_path / "images.npz", x=pictures(16)["x"])
    options = {"data": str(tmp_path / "images.npz"), **FAST}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        found = onnxprune.sweep(
            path, TARGETS, executor=client.get_executor(), workers=2, out=tmp_path / "out", **options
        )
    assert figures(found) == figures(onnxprune.sweep(path, TARGETS, **options))
    assert len(list((tmp_path / "out").iterdir())) == 3
