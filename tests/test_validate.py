"""What the proof accepts: rounding, if the oracle is as far from itself; nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from onnxprune import prune, validate
from onnxprune.errors import ParityError
from onnxprune.parity import OutputParity, Parity
from onnxprune.testing import sandwich


def found(relative: float) -> Callable[..., Parity]:
    return lambda *_: Parity((OutputParity("Conv_2_0", relative, 1.0),), 1e-4, 2)


def itself(relative: float) -> Callable[..., dict[str, OutputParity]]:
    return lambda *_: {"Conv_2_0": OutputParity("Conv_2_0", relative, 1.0)}


def run(**options: Any) -> dict[str, Any]:
    model = sandwich(lambda b, y: b.op("Relu", y))
    return dict(
        prune(model, target="channels=0.5", align=1, checks=validate.Checks(seconds=0), **options).record["parity"]
    )


def test_rounding_is_not_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "parity", found(3e-4))
    monkeypatch.setattr(validate, "rounding", itself(1e-4))
    assert run()["rounding"] == 1e-4


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_a_wrong_cut_is_not_rounding(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    monkeypatch.setattr(validate, "parity", found(3e-4))
    monkeypatch.setattr(validate, "rounding", itself(noise))
    with pytest.raises(ParityError, match="differs from the masked original"):
        run()


def test_how_far_a_model_is_from_itself() -> None:
    from onnxprune.feeds import random_feeds
    from onnxprune.parity import rounding

    model = sandwich(lambda b, y: b.op("Relu", y))
    (noise,) = rounding(model, random_feeds(model, count=2)).values()
    assert noise.relative < 1e-5
