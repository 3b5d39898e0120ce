"""Statistics that come from the disk are those of a run, and come only where a run would give the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune import cache
from onnxprune import recall as module
from onnxprune.calibrate import Statistics, calibrate
from onnxprune.coupling import couple
from onnxprune.errors import DataError
from onnxprune.graph import load
from onnxprune.instrument import Want
from onnxprune.observe import observe
from onnxprune.parts import Engine
from onnxprune.recall import recall
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder, close

Array = NDArray[Any]
Feeds = list[dict[str, Array]]
ENGINE = Engine(threads=1)
ALL = Want.PAIRS | Want.ZEROS | Want.HISTOGRAM | Want.ABSOLUTE | Want.RANKS
WANTED = {Dim("x", 1): ALL, Dim("inner", 1): Want.ZEROS}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that the model ran."""
    made: list[int] = []

    def counted(*args: Any, **options: Any) -> dict[Dim, Statistics]:
        made.append(1)
        return calibrate(*args, **options)

    monkeypatch.setattr(module, "calibrate", counted)
    return made


def network() -> ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 4, 5), 6, name="w1"), name="inner")
    return b.model(close(b, b.op("Relu", b.op("Log", y, name="bad"))))


def prunable() -> ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 4, 5), 16, name="a"))
    y = b.op("Relu", b.conv(y, 24, name="b"))
    return b.model(close(b, b.op("Flatten", b.op("GlobalAveragePool", y))))


def batches() -> Feeds:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, 3, 4, 5)).astype(np.float32)} for n in (4, 4, 3)]


def parts(stats: Statistics) -> Iterator[tuple[str, Any]]:
    yield from vars(stats).items()
    yield from vars(stats.histogram).items() if stats.histogram else ()


def equal(one: dict[Dim, Statistics], other: dict[Dim, Statistics]) -> bool:
    """To the last bit, in the same order, of the same types."""
    if list(one) != list(other):
        return False
    for dim in one:
        for (name, a), (_, b) in zip(parts(one[dim]), parts(other[dim]), strict=True):
            if name != "histogram" and not (type(a) is type(b) and np.array_equal(a, b)):
                return False
            if isinstance(a, np.ndarray) and a.dtype != b.dtype:
                return False
    return True


def test_the_second_time_nothing_runs(runs: list[int], home: Path) -> None:
    graph, feeds = load(network()), batches()
    plain = calibrate(graph, feeds, WANTED, ENGINE, 11, 3)
    first = recall(graph, feeds, WANTED, ENGINE, 11, 3)
    again = recall(load(network()), batches(), WANTED, ENGINE, 11, 3)
    assert len(runs) == 1 and len(list(home.iterdir())) == 1
    assert equal(plain, first) and equal(plain, again)
    np.testing.assert_array_equal(again[Dim("x", 1)].covariance, plain[Dim("x", 1)].covariance)


def other_weights(model: ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))


def another_operator(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Sigmoid"


def other_data(feeds: Feeds) -> None:
    feeds[2]["x"][2, 2, 3, 4] += 1e-3


def another_order(feeds: Feeds) -> None:
    feeds.reverse()


def other_batches(feeds: Feeds) -> None:
    feeds[:] = [{"x": np.concatenate([f["x"] for f in feeds])}]


@pytest.mark.parametrize("change", [other_weights, another_operator])
def test_another_model(change: Callable[[ModelProto], None], runs: list[int]) -> None:
    model = network()
    recall(load(model), batches(), WANTED, ENGINE)
    change(model)
    found = recall(load(model), batches(), WANTED, ENGINE)
    assert len(runs) == 2 and equal(found, calibrate(load(model), batches(), WANTED, ENGINE))


@pytest.mark.parametrize("change", [other_data, another_order, other_batches])
def test_other_data(change: Callable[[Feeds], None], runs: list[int]) -> None:
    graph, feeds = load(network()), batches()
    recall(graph, feeds, WANTED, ENGINE)
    change(feeds)
    assert equal(recall(graph, feeds, WANTED, ENGINE), calibrate(graph, feeds, WANTED, ENGINE))
    assert len(runs) == 2


def test_another_request(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds, x = load(network()), batches(), Dim("x", 1)
    requests: list[tuple[dict[Dim, Want], Engine, int | None, int]] = [
        ({x: Want.PAIRS}, ENGINE, None, 0),
        ({x: Want.HISTOGRAM}, ENGINE, None, 0),
        ({x: Want.PAIRS, Dim("inner", 1): Want.PAIRS}, ENGINE, None, 0),
        ({Dim("x", 2): Want.PAIRS}, ENGINE, None, 0),
        ({x: Want.PAIRS}, replace(ENGINE, threads=2), None, 0),
        ({x: Want.PAIRS}, ENGINE, 11, 0),
        ({x: Want.PAIRS}, ENGINE, None, 1),
    ]
    for _ in range(2):
        for wanted, engine, samples, seed in requests:
            found = recall(graph, feeds, wanted, engine, samples, seed)
            assert list(found) == sorted(wanted, key=lambda d: d.value != "x")
    assert len(runs) == len(requests)
    monkeypatch.setattr(onnxruntime(), "__version__", "0.0")
    module._machine.cache_clear()
    recall(graph, feeds, *requests[0][:1], ENGINE)
    monkeypatch.undo()
    module._machine.cache_clear()
    assert len(runs) == len(requests) + 1


def onnxruntime() -> Any:
    import onnxruntime

    return onnxruntime


def test_weights_in_another_file(runs: list[int], tmp_path: Path) -> None:
    """The weights count, not where they are."""
    model, graphs = network(), []
    for name in ("one", "two", "three"):
        if name == "three":
            other_weights(model)
        path = tmp_path / name / "net.onnx"
        path.parent.mkdir()
        onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, location="data")
        model = onnx.load(path)
        graphs.append(load(path))
    for graph in graphs:
        recall(graph, batches(), WANTED, ENGINE)
    assert len(runs) == 2


def test_weights_that_are_replaced_meanwhile(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came out is of no model; the next run of the first finds nothing."""
    path, kept = tmp_path / "net.onnx", tmp_path / "kept"
    onnx.save_model(network(), path, save_as_external_data=True, size_threshold=0, location="data")
    other = network()
    other_weights(other)

    def replaced(*args: Any, **options: Any) -> dict[Dim, Statistics]:
        (tmp_path / "data").rename(kept)
        onnx.save_model(other, tmp_path / "other.onnx", save_as_external_data=True, size_threshold=0, location="data")
        return calibrate(*args, **options)

    monkeypatch.setattr(module, "calibrate", replaced)
    recall(load(path), batches(), WANTED, ENGINE)
    assert not home.exists() or not list(home.iterdir())


def test_text_and_numbers_as_inputs() -> None:
    """Whatever a feed holds counts."""
    base = {"t": np.array([["a", "b"]], object), "n": np.zeros((), np.float16)}
    changed = [base, base | {"t": np.array([["a", "c"]], object)}, base | {"n": np.ones((), np.float16)}]
    changed += [base | {"n": np.zeros((), np.int16)}, base | {"n": np.zeros((1, 1), np.float16)}]
    changed += [base | {"t": np.zeros((0, 2), object)}, base | {"n": np.zeros((0,), np.float16)}]
    assert len({cache.key_of(module._data([feed])) for feed in changed}) == len(changed)


def test_a_broken_file_is_made_anew(runs: list[int], home: Path) -> None:
    graph, feeds = load(network()), batches()
    first = recall(graph, feeds, WANTED, ENGINE)
    next(home.iterdir()).write_bytes(b"PK nonsense")
    assert equal(first, recall(graph, feeds, WANTED, ENGINE)) and len(runs) == 2
    assert equal(first, recall(graph, feeds, WANTED, ENGINE)) and len(runs) == 2


def test_off(runs: list[int], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "off")
    one, two = (recall(load(network()), batches(), WANTED, ENGINE) for _ in range(2))
    assert equal(one, two) and len(runs) == 2 and not home.exists()


def test_nothing_to_do(home: Path) -> None:
    graph = load(network())
    assert recall(graph, [], WANTED, ENGINE) == recall(graph, batches(), {}, ENGINE) == {}
    assert not home.exists()


def test_errors_are_those_of_a_run_and_are_not_kept(home: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="'bad' has NaN or infinite"):
            recall(load(network()), batches(), {Dim("bad", 1): Want.HISTOGRAM}, ENGINE)
    assert not home.exists()


def test_only_what_is_asked_for_is_kept(home: Path) -> None:
    coupling = couple(load(prunable()))
    observe(coupling, batches(), ENGINE)
    assert not home.exists()
    observe(coupling, batches(), ENGINE, keep=True)
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("scope", ["global", "damage"])
def test_prune_keeps_the_originals_and_gives_the_same_model(
    scope: str, runs: list[int], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).standard_normal((32, 3, 4, 5)).astype(np.float32)

    def made(target: str = "macs=0.5") -> ModelProto:
        options = {"scope": scope, "align": 1, "threads": 1, "validate": False}
        return onnxprune.prune(prunable(), target, data=data, **options).model  # type: ignore[arg-type]

    first, again = made(), made()
    assert len(runs) == 1  # of several stages, the first alone
    made("macs=0.7")
    assert len(runs) == 1 and len(list(home.iterdir())) == 1
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert first == again == made()


def test_another_file_under_the_name(runs: list[int], home: Path) -> None:
    """Arrays, but not these: as if nothing had been kept."""
    graph, feeds = load(network()), [{"x": np.ones((2, 3, 4, 5), np.float32)}]
    wanted = {Dim("inner", 1): Want.PAIRS}
    recall(graph, feeds, wanted, ENGINE)
    (path,) = home.glob("*.npz")
    np.savez(path, other=np.zeros(3))
    found = recall(graph, feeds, wanted, ENGINE)
    assert len(runs) == 2 and found[Dim("inner", 1)].samples == 2
