"""Masked networks ("pruned but not smaller"): what was masked goes, and the outputs stay."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.groups import Coupling, Member
from onnxprune.rules.base import Dim
from onnxprune.testing import tensors

ROOT = Path(__file__).resolve().parents[2]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
MODES = ("zero", "constant", "unread", "twins")
Shrink = Callable[..., Any]
Units = NDArray[np.intp]


def script(path: str) -> Any:
    """A module of this repository that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unshared(model: ModelProto) -> ModelProto:
    """Every reader gets an initializer of its own, so that one layer can be masked alone."""
    known, seen = tensors(model), set[str]()
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name in seen:
                node.input[slot] = f"{name}/{len(model.graph.initializer)}"
                model.graph.initializer.add().CopyFrom(known[name])
                model.graph.initializer[-1].name = node.input[slot]
            elif name in known:
                seen.add(name)
    return model


def draw(coupling: Coupling, rng: np.random.Generator) -> tuple[Units, Units]:
    """Some units of each group, and as many others of the same group."""
    pairs = [(rng.permutation(g.units), max(1, int(g.units.size * rng.random() / 2))) for g in coupling.groups]
    pairs = [(units, count) for units, count in pairs if units.size > 1]
    none = np.zeros(0, dtype=np.intp)
    some, others = ([none, *(u[:n] for u, n in pairs)], [none, *(u[-n:] for u, n in pairs)])
    return np.concatenate(some), np.concatenate(others)


def touched(mode: str, member: Member, readers: set[tuple[str, int]]) -> bool:
    """Whether a mask of a kind is about this axis of a constant."""
    divides = bool(readers & {("Div", 1), ("BatchNormalization", 4)})
    return {
        "zero": member.role != "in" and not divides,
        "constant": member.role == "out",
        "unread": member.role == "in",
        "twins": member.role != "in",
    }[mode]


def mask(model: ModelProto, mode: str, seed: int) -> tuple[ModelProto, Units]:
    """Mask units in the weights, and say which."""
    coupling = couple(load(model))
    some, others = draw(coupling, np.random.default_rng(seed))
    known = tensors(model)
    for member in coupling.members:
        tensor, units = known[member.constant], coupling.unit_of(Dim(member.use, member.axis))
        readers = {(n.op, s) for n, s in coupling.graph.consumers.get(member.constant, ())}
        if tensor.data_type not in FLOATS or units is None or not touched(mode, member, readers):
            continue
        array = np.moveaxis(np.array(numpy_helper.to_array(tensor)), member.axis, 0)
        for unit, other in zip(some, others, strict=True):
            array[units == unit] = array[units == other] if mode == "twins" else 0
        array = np.ascontiguousarray(np.moveaxis(array, 0, member.axis))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model, some


def prove(model: ModelProto, mode: str, seed: int, shrink: Shrink, all_of_them: bool) -> None:
    masked, some = mask(unshared(model), mode, seed)
    # Networks full of twins are ill-conditioned: one ulp in the weights moves their outputs by 1e-5, too.
    result = shrink(masked, tolerance=1e-4 if mode == "twins" else 1e-5)
    if all_of_them and mode in ("zero", "unread"):
        assert result.removed[some].all()
    if all_of_them and mode == "twins":
        assert result.removed.sum() >= some.size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int, mode: str, shrink: Shrink) -> None:
    model = script("tools/fuzz.py").grow(Random(seed))
    prove(model, mode, seed, shrink, all_of_them=False)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet", "resnext", "regnet", "resnet_groupnorm", "resnet_instancenorm", "preact_resnet", "mobilenet_v2",
        "mobilenet_v3", "efficientnet", "shufflenet_v1", "shufflenet_v2", "ghostnet", "densenet", "inception",
        "googlenet", "squeezenet", "vgg_bn", "convnext", "cbam", "coordinate_attention", "unet_transpose",
        "unet_bilinear", "yolo", "hrnet", "autoencoder", "conv1d", "conv3d", "two_inputs", "mlp",
    ],
)  # fmt: skip
def test_well_known_networks(name: str, exporter: str, shrink: Shrink, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path = script("models/export.py").export(name, tmp_path / "model.onnx", exporter)
    assert not shrink(onnx.load(path)).removed.any()
    for seed, mode in enumerate(MODES):
        prove(onnx.load(path), mode, seed, shrink, all_of_them=True)
