"""Functions that have no value at zero: the masked original would be NaN, so they lock."""

from typing import Any

import pytest

from onnxprune import couple, load
from onnxprune.testing import Builder, prove, sandwich


@pytest.mark.parametrize("kind", ["Log", "Acosh", "Reciprocal", "Div", "Mod", "Pow"])
def test_what_is_no_number_at_zero_locks(kind: str) -> None:
    """The masked original would have NaN or infinities in a removed channel."""

    def middle(b: Builder, y: str) -> str:
        z = b.op("Relu", y)
        several: dict[str, list[Any]] = {"Div": [1.0, z], "Mod": [z, z], "Pow": [z, -1.0]}
        attrs: dict[str, Any] = {"fmod": 1} if kind == "Mod" else {}
        return b.op(kind, *several.get(kind, [z]), **attrs)

    coupling = couple(load(sandwich(middle)))
    assert not coupling.units
    assert any(e.reason == f"{kind} of a removed index, which is zero, is no number" for e in coupling.locked)


def test_a_divisor_made_of_constants_is_no_channel_at_zero() -> None:
    """A batch normalisation by hand."""

    def middle(b: Builder, y: str) -> str:
        return b.op("Div", y, b.op("Sqrt", b.near_one(8, 1, 1, name="variance")))

    assert prove(sandwich(middle)).choices("variance") == [8]
