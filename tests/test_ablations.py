"""The same cut recovered in several ways, Torch-Pruning beside it, and what the page says of both."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from onnxprune import refit
from onnxprune.testing import Builder
from tests.redundant import redundant
from tools.ablate_recovery import Ablated, Case, case
from tools.ablate_recovery import measured as ablated
from tools.ablations import ABLATIONS, RIDGES
from tools.accuracy_page import page
from tools.bench_accuracy import Bench, Failed, models
from tools.compare_accuracy import Peer, nearest
from tools.compare_accuracy import measured as compared

CALIBRATE = """
import sys, numpy
rng = numpy.random.default_rng(int(sys.argv[2]))
x = rng.standard_normal((40, 3, 8, 8)) + 2 * rng.standard_normal((40, 3, 1, 1))
numpy.savez(sys.argv[1], x=x.astype("f"))
"""


def network() -> ModelProto:
    """Wide layers of few independent channels, and residual sums."""
    b = Builder(seed=1)

    y = b.op("Relu", redundant(b, b.input("x", "N", 3, 8, 8), 16, "stem"))
    for name in "ab":  # what the second sum adds to has the first one's error
        y = b.op(
            "Relu", b.op("Add", y, redundant(b, b.op("Relu", redundant(b, y, 24, f"{name}.wide")), 16, f"{name}.back"))
        )
    return b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), 5, "head"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Ablated:
    folder = tmp_path_factory.mktemp("suite")
    onnx.save(network(), folder / "net.onnx")
    (folder / "calibrate.py").write_text(CALIBRATE)
    (folder / "evaluate.py").write_text("import sys, os\nprint(os.path.getsize(sys.argv[1]))\n")
    python = shlex.quote(sys.executable)
    entry: dict[str, Any] = {"name": "net", "path": "net.onnx", "calibrate": f"{python} calibrate.py {{out}} {{seed}}"}
    entry |= {"evaluate": f"{python} evaluate.py {{model}}", "options": ["--threads", "1", "--align", "2"]}
    (folder / "models.json").write_text(json.dumps({"model": [entry]}))
    return Ablated(models(folder / "models.json")["net"], "default", 3, 0.5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), 120)


@pytest.fixture(scope="module")
def made(bench: Bench, run: Ablated) -> Case:
    found: Case = bench.once(("case",), lambda _: case(bench, run, 1))
    return found


def test_as_it_is_it_is_the_products(bench: Bench, made: Case) -> None:
    record = json.loads((bench.folder / "record.json").read_text())["recovery"]
    patch, _ = made.recovered(ABLATIONS["as-is"])
    assert made.off(patch) == pytest.approx(record["distance"]["after"], rel=1e-6)
    assert made.before == pytest.approx(record["distance"]["before"], rel=1e-6)
    assert made.rescale == record["rescaled"] and refit.RIDGES == RIDGES


def test_every_way_differs(made: Case) -> None:
    ways = ("as-is", "only-none", "only-bias", "ridge-100", "one-shot", "no-branch", "given-16")
    off = {name: made.off(made.recovered(ABLATIONS[name])[0]) for name in ways}
    assert len(set(off.values())) == len(off)
    assert off["as-is"] < off["only-none"] == made.before


def test_more_samples_are_drawn_and_none_is_put_aside(made: Case) -> None:
    parts = made.parted(64)
    aside = {made.parts.feeds[i]["x"].tobytes() for i in made.parts.spare}
    given = {feed["x"].tobytes() for feed in parts.feeds}
    assert len(given) == 64 and aside and not given & aside
    with pytest.raises(Failed, match=r"64 are wanted, and there are \d+ that differ"):
        replace(made, more=lambda draw: made.parts.feeds).parted(64)


def test_rows_say_what_was_done(bench: Bench, made: Case, run: Ablated) -> None:
    rows = {way: ablated(bench, replace(run, way=way)) for way in ("variance-on", "variance-off")}
    assert {way: row["rescaled"] for way, row in rows.items()} == {"variance-on": True, "variance-off": False}
    for way, row in rows.items():
        assert row["variant"] == way and row["value"] < row["dense"] and 0 < row["kept"] <= 0.5
        assert row["distance"]["before"] == made.before


def test_the_page_keeps_ablations_apart() -> None:
    about: dict[str, Any] = {"model": "net", "seed": 0, "share": 0.5, "measure": "top-1", "options": [], "dense": 0.95}
    figures = {"kept": 0.48, "value": 0.9, "seconds": 12.0, "megabytes": 345.6, "processors": 2}
    row = about | figures | {"variant": "default"}
    far = {"distance": {"kind": "logits", "before": 1.0, "after": 0.12345}}
    rows = [
        row,
        row | {"variant": "torch-pruning-l1", "value": 0.4, "seed": 5},
        row | far | {"variant": "one-shot", "value": 0.8},
    ]
    text = page(rows, "accuracy")
    assert "Models: 1. Runs: 2, of which 0 failed." in text
    assert "--seeds 0 \\\n    --variants default --out" in text and "(n=1)" not in text
    assert "| torch-pruning-l1 | Torch-Pruning by L1 norms, no repair (`" in text
    assert "| torch-pruning-l1 | 0.400 |" in text
    assert "### net, ablations" in text and "| one-shot | 0.800 | 0.1235 | 12.0 |" in text
    assert "| one-shot | 0.800 |\n" not in text
    assert "## Ablations" not in page(rows[:2], "accuracy")


def test_a_ratio_is_searched() -> None:
    assert 1 - nearest(lambda ratio: 1 - ratio, 0.62) == pytest.approx(0.62, abs=0.005)
    with pytest.raises(SystemExit, match=r"keeps 0\.5 of the MACs: the nearest keeps 0\.400"):
        nearest(lambda ratio: 1.0 if ratio < 0.7 else 0.4, 0.5)


def test_a_peer_prunes_to_the_same_share(bench: Bench, run: Ablated) -> None:
    peer = compared(bench, Peer(run.model, "default", 3, 0.5, "l1"))
    assert peer["variant"] == "torch-pruning-l1" and peer["options"] == []
    if "error" in peer:  # a row, too
        assert "value" not in peer and "No module named" in peer["error"]
    else:
        assert peer["kept"] == pytest.approx(0.5, abs=0.03) and peer["value"] < peer["dense"]
