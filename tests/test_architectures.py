"""Well-known families, as both of torch's exporters write them: every cut is exact, and goes deep enough to matter."""

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune
from onnxprune.feeds import input_specs, random_feeds
from onnxprune.testing import oracle

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs torch", allow_module_level=True)

exporting: Any = importlib.import_module("models.export")  # Any: mypy need not follow into torch
NAMES = sorted(importlib.import_module("models.architectures").ARCHITECTURES)

# The share of the parameters that remains with half of every group gone; a quarter where both sides of all layers go.
KEPT = dict.fromkeys(NAMES, 0.31) | {
    "cbam": 0.53,  # maxima over the channels lock the streams that they gate
    "convnext": 0.63,  # LayerNorms lock the streams: only the insides of the blocks go
    "detr": 0.39,  # so here
    "mlp": 0.52,
    "nfnet": 0.80,  # filters are standardised in the graph: what they read must stay
    "rt_detr": 0.36,
    "ssd": 0.45,  # most of it are the predictors, whose outputs are picked from
}


# An open batch changes what the exporters write where shapes are computed; elsewhere one of them is enough.
SHAPELY = {"autoencoder", "coordinate_attention", "hrnet", "resnet_groupnorm", "shufflenet_v1", "shufflenet_v2", "yolo"}
CASES = [
    pytest.param(name, exporter, dynamic, id=f"{name}-{exporter}-{'dynamic' if dynamic else 'static'}")
    for name in NAMES
    for exporter in ("torchscript", "dynamo")
    for dynamic in (False, True)
    if not (exporter == "dynamo" and dynamic) or name in SHAPELY
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Tests run side by side: torch need not spread each over all cores."""
    importlib.import_module("torch").set_num_threads(1)


@pytest.mark.parametrize(("name", "exporter", "dynamic"), CASES)
def test_cuts_of_architectures_are_exact(name: str, exporter: str, dynamic: bool, tmp_path: Path) -> None:
    path = exporting.export(name, tmp_path / "model.onnx", exporter, dynamic_batch=dynamic)
    result = oracle(path, 0.5, both=True)
    assert result.params[1] / result.params[0] <= KEPT[name]
    oracle(path, None, seed=1)


@pytest.mark.parametrize("name", ["densenet", "resnet", "shufflenet_v2"])
def test_unfolded_exports(name: str, tmp_path: Path) -> None:
    """BatchNormalizations and constant expressions left in the graph."""
    path = exporting.export(name, tmp_path / "model.onnx", fold=False)
    result = oracle(path, 0.5)
    assert result.params[1] / result.params[0] <= KEPT[name]


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet", "rt_detr"])
def test_detectors_that_pick_their_boxes_are_pruned_with_data(name: str, tmp_path: Path) -> None:
    """Suppression and TopK are part of them: how many boxes there are, and which, changes with every cut."""
    path = exporting.export(name, tmp_path / "model.onnx")
    spec = input_specs(path)
    data = [feed for seed in range(12) for feed in random_feeds(spec, seed=seed)]
    found = prune(path, "macs=0.7", data=data, align=4, validate=False).record["recovery"]
    tried = [found["distance"]["before"], found["distance"]["after"], *found["refused"].values()]
    assert all(0 < distance < math.inf for distance in tried)
