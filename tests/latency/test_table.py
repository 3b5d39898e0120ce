"""A model's latency table: measured once, kept, and believed as far as it was checked."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.coupling import couple
from onnxprune.errors import TargetError
from onnxprune.feeds import input_specs, random_feeds
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.latency import networks, shelf
from onnxprune.latency.networks import CHECKS, LEAST, NETWORKS, table_of
from onnxprune.testing import Builder, close


def network(seed: int = 0) -> ModelProto:
    b = Builder(seed=seed)
    y = b.input("x", "N", 3, 24, 24)
    for name, width in (("one", 64), ("two", 128), ("three", 64)):
        y = b.op("Relu", b.conv(y, width, name=name))
    return b.model(close(b, y, 10, "head"))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


@pytest.mark.parametrize("by_node", [True, False])
def test_narrower_is_faster_and_the_whole_takes_what_it_takes(coupling: Coupling, by_node: bool) -> None:
    shelf.clear()
    feed = random_feeds(input_specs(coupling.graph.proto))[0]
    found = table_of(coupling, feed, "cpu", 1, by_node=by_node)
    assert (found.networks, len(found.checked)) == (NETWORKS, CHECKS)
    cost, units = found.cost(coupling), np.bincount(coupling.group_of)
    assert cost.before == pytest.approx(found.before)
    assert cost(units // 2) < cost(units // 4) < cost.before
    assert found.error < 0.5  # a busy machine; tools/bench_latency.py says what it is on a quiet one


def test_it_is_kept_for_the_same_conditions(coupling: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.clear()
    feed = random_feeds(input_specs(coupling.graph.proto))[0]
    monkeypatch.setattr(networks, "SECONDS", 0.0)  # as few networks as may be
    first = table_of(coupling, feed, "cpu", 1)
    assert first.networks + len(first.checked) == LEAST + CHECKS
    other = couple(load(network(seed=1)))  # other weights
    monkeypatch.setattr(networks, "_Bench", lambda *_: pytest.fail("measured again"))
    again = table_of(other, feed, "cpu", 1)
    assert again == first or again.parts == first.parts
    assert again.checked == first.checked
    wide = {"x": np.repeat(feed["x"], 2, axis=0)}
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        table_of(coupling, wide, "cpu", 1)


def test_a_broken_file_is_measured_anew(coupling: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SECONDS", 0.0)
    feed = random_feeds(input_specs(coupling.graph.proto))[0]
    table_of(coupling, feed, "cpu", 1)
    for path in shelf._files():
        path.write_text('{"version": 1, "parts"')
    assert not list(shelf.entries())
    assert table_of(coupling, feed, "cpu", 1).networks
    assert list(shelf.entries())


def test_a_big_model_is_refused(coupling: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "is_big", lambda graph: True)
    with pytest.raises(TargetError, match="not measured beyond 2 GB"):
        table_of(coupling, {}, "cpu", 1)


def test_a_bound_is_part_of_a_models_structure() -> None:
    def bounded(low: float) -> ModelProto:
        b = Builder()
        y = b.op("Clip", b.conv(b.input("x", 1, 3, 8, 8), 16, name="one"), b.const(np.array(low, np.float32)))
        return b.model(close(b, y, 4, "head"))

    first, second = (networks._structure(load(bounded(low))) for low in (0.0, 0.5))
    assert first != second
    assert first == networks._structure(load(bounded(0.0)))


def test_a_table_of_another_model_does_not_fit(coupling: Coupling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SECONDS", 0.0)
    found = table_of(coupling, random_feeds(input_specs(coupling.graph.proto))[0], "cpu", 1)
    assert found.fits(coupling)
    assert not replace(found, parts={"nobody": [1.0]}).fits(coupling)
    assert not replace(found, parts={value: [*parts, 1.0] for value, parts in found.parts.items()}).fits(coupling)
    twice = found.at(2 * found.before)
    gone = np.zeros(len(coupling.groups), dtype=np.intp)
    assert twice.cost(coupling)(gone) == pytest.approx(2 * found.cost(coupling)(gone))
