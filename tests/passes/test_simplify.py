"""onnxslim, with the promises of the house: names, metadata, opsets and the function stay."""

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import pytest
from onnx import ModelProto, helper

from onnxprune import Checks, Pipeline, Result
from onnxprune.errors import ModelError, OptionError
from onnxprune.passes import get
from onnxprune.testing import Builder
from onnxprune.writing import write


def simplify(model: Any, **options: Any) -> Result:
    """Simplify; the Pipeline proves that the function is the same."""
    result = Pipeline([get("simplify")(**options)]).run(model, checks=Checks(seconds=0))
    onnx.checker.check_model(result.model)
    return result


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def padded(opset: int = 17, ir: int | None = None) -> ModelProto:
    b = Builder(opset, ir_version=ir)
    x = b.input("x", "n", 3, 6, 6)
    y = b.op("Pad", b.op("Identity", x), pads=[0, 0, 1, 1] * 2) if opset < 11 else b.op("Pad", x, [0, 0, 1, 1] * 2)
    y = b.op("Conv", y, b.weight(8, 3, 3, 3))
    y = b.op("BatchNormalization", y, b.near_one(8), b.weight(8), b.weight(8), b.near_one(8))
    model = b.model(b.op("Relu", y, name="y"))
    helper.set_model_props(model, {"author": "somebody"})
    return model


def test_what_it_does_and_what_it_keeps() -> None:
    model = padded()
    result = simplify(model)
    assert ops(result.model) == ["Conv", "Relu"]
    assert result.model.metadata_props == model.metadata_props
    assert result.model.opset_import == model.opset_import
    assert result.model.graph.input == model.graph.input and result.model.graph.output == model.graph.output
    dropped = {"Pad": 1, "BatchNormalization": 1}
    assert result.record["simplify"] == {"library": "onnxslim", "dropped": dropped, "added": {}}
    assert result.record["passes"][0]["said"] == "onnxslim took out 1 BatchNormalization, 1 Pad"


def test_nothing_to_do() -> None:
    b = Builder()
    model = b.model(b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8)))
    result = simplify(model)
    assert result.model == model
    assert result.record["passes"][0]["said"] == "onnxslim found nothing to simplify"


def test_old_ir_versions_keep_their_inputs() -> None:
    result = simplify(padded(9, 3)).model
    assert {t.name for t in result.graph.initializer} <= {i.name for i in result.graph.input}


def test_options() -> None:
    assert "Pad" in ops(simplify(padded(), skip=("FusionPadConv",)).model)
    assert len(simplify(padded(), shapes=True).model.graph.value_info) > 0
    with pytest.raises(OptionError, match="simplify: skip = 'Pad': onnxslim has "):
        simplify(padded(), skip=("Pad",))
    with pytest.raises(OptionError, match="simplify: largest = 0: give a number of bytes"):
        get("simplify")(largest=0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(OptionError, match=r"simplify: onnxslim is not installed; `pip install onnxprune\[simplify\]`"):
        simplify(padded())


def test_its_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(*args: Any, **options: Any) -> None:
        print("a table")
        raise RuntimeError("broken\nin two lines")

    monkeypatch.setattr(onnxslim, "slim", fails)
    with pytest.raises(ModelError, match=r"the model: onnxslim fails \(broken in two lines\); leave simplify out"):
        simplify(padded())
    assert capfd.readouterr().out == ""


def test_external_data(tmp_path: Path) -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 2, 16, 6, 6), 64))
    write(b.model(b.op("Relu", y)), tmp_path / "m.onnx", external=True)
    Pipeline([get("simplify")()]).run(tmp_path / "m.onnx", out=tmp_path / "out.onnx", checks=Checks(seconds=0))
    assert ops(onnx.load(tmp_path / "out.onnx")) == ["Conv", "Relu"]
    assert (tmp_path / "out.onnx.data").exists()
