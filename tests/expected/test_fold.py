"""Recovery without data, end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import Pipeline, Result, apply, prune
from onnxprune.errors import OptionError
from onnxprune.passes import get
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close
from onnxprune.validate import Checks
from onnxprune.words import recovery
from tests.trained import pictures, trained


def pruned(recover: str, model: ModelProto | None = None, **options: Any) -> Result:
    checks = Checks(seconds=0)
    return prune(model or trained(), "macs=0.7", recover=recover, align=1, threads=1, checks=checks, **options)


def off(model: ModelProto) -> float:
    """How far a model's logits are from those of the original."""
    feed = pictures(64, seed=9)
    whole, other = (next(iter(run(session(m, threads=1), feed).values())) for m in (trained(), model))
    return float(np.square(other - whole).sum() / np.square(whole).sum())


@pytest.mark.parametrize("recover", ["bias", "auto"])
def test_it_brings_the_answers_nearer(recover: str) -> None:
    bare, result = pruned("none"), pruned(recover)
    assert off(result.model) < 0.25 * off(bare.model)
    assert result.plan and bare.plan and result.plan.to_dict() == bare.plan.to_dict()
    assert result.record["parity"]["exact"]
    assert result.record["recover"] == "bias"


def test_the_record_says_that_nothing_was_measured() -> None:
    record = pruned("auto").record
    found = record["recovery"]
    assert found["source"] is None and found["distance"] is None
    layers = found["layers"]
    assert {"node", "method", "lost", "known"} == layers[0].keys()
    assert all(layer["known"] == layer["lost"] > 0 for layer in layers if layer["method"] == "bias")
    changed = sum(layer["method"] == "bias" for layer in layers)
    said = recovery(record)
    assert said is not None and said.startswith(f"expected values, without data: {changed} layer")
    assert said.endswith(f" of {len(layers)}; what it is worth was not measured")


def fused(zero: int = 0) -> ModelProto:
    """Convolutions with biases, of which some filters are zero."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 16, name="w1"))
    model = b.model(close(b, b.op("Relu", y)))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        array[:zero] = 0 if tensor.name == "w1" else 1
        if tensor.name != "w2":
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def test_where_nothing_is_expected_nothing_changes() -> None:
    bare, result = pruned("none", fused()), pruned("auto", fused())
    assert result.model == bare.model
    assert result.record["recover"] == "none" and result.record["parity"]["exact"]
    assert [layer["method"] for layer in result.record["recovery"]["layers"]] == ["none"]
    assert recovery(result.record) == "none: without data, what was cut has no expected value; give --data"


def test_a_model_in_a_file_is_not_copied_where_nothing_is_expected(tmp_path: Path) -> None:
    onnx.save(fused(), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    made = prune(tmp_path / "net.onnx", "macs=0.5", align=1, out=tmp_path / "small.onnx", checks=Checks(seconds=0))
    assert made.record["parity"]["exact"] and (tmp_path / "small.onnx").exists()


def test_constants_are_made_up_for_exactly() -> None:
    """Here all that l2 cuts is constant: the answers stay."""
    model = fused(zero=8)
    result = pruned("auto", model)
    feed = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    whole, small = (next(iter(run(session(m, threads=1), feed).values())) for m in (model, result.model))
    np.testing.assert_allclose(small, whole, atol=1e-5)


def test_a_layer_without_a_place_for_a_bias_is_left_alone() -> None:
    b = Builder()
    y = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.batch_norm(b.conv(b.input("x", 1, 3, 4, 4), 8)))))
    result = pruned("auto", b.model(b.op("Relu", b.op("MatMul", y, b.weight(8, 4)))))
    (layer,) = result.record["recovery"]["layers"]
    assert layer["method"] == "none" and layer["known"] == layer["lost"] > 0


def test_what_needs_data_says_so() -> None:
    for method in ("channel", "full"):
        words = f"--recover {method} fits weights to inputs: give --data .* or take --recover bias"
        with pytest.raises(OptionError, match=words):
            prune(trained(), recover=method)
        with pytest.raises(OptionError, match=words):
            Pipeline([get("prune_channels")(align=1), get("reconstruct")(method=method)]).run(trained())


def test_a_replayed_plan_is_repaired_where_that_is_asked_for() -> None:
    result = pruned("auto")
    assert result.plan is not None
    again = apply(trained(), result.plan, recover="auto", validate=False)
    assert again.model == result.model
    assert apply(trained(), result.plan, validate=False).record["recover"] == "none"
