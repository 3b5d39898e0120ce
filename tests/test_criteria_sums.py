"""Weighted sums of criteria."""

import numpy as np
import pytest

import onnxprune
from onnxprune.coupling import couple
from onnxprune.criteria.base import CRITERIA, Context, comparable, score, sight_of
from onnxprune.criteria.expression import Part, parts_of
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.instrument import Want
from onnxprune.observe import observe
from onnxprune.parts import Engine
from onnxprune.testing import Builder, close
from tests.contracted import feeds, two


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("l1", [(1, "l1")]),
        ("0.7*wanda+0.3*l1", [(0.7, "wanda"), (0.3, "l1")]),
        (" l1 + 2 * l2 ", [(1, "l1"), (2, "l2")]),
        (".5*l1+.5*l1", [(0.5, "l1"), (0.5, "l1")]),
    ],
)
def test_what_is_read(text: str, parts: list[tuple[float, str]]) -> None:
    assert parts_of(text) == tuple(Part(*part) for part in parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.7*wanda+", "--criterion 0.7*wanda+: the part '' names no criterion; write a name, or a sum as in"),
        ("0.5*", "the part '0.5*' names no criterion"),
        ("x*l1+l2", "'x' is no weight above 0"),
        ("0*l1+l2", "'0' is no weight above 0"),
        ("-1*l1", "'-1' is no weight above 0"),
        ("nan*l1", "'nan' is no weight above 0"),
        ("inf*l1", "'inf' is no weight above 0"),
        ("wanda*l1", "'wanda' is no weight above 0"),
        ("*l1", "'' is no weight above 0"),
        ("l2+wandda", "unknown criterion 'wandda': did you mean 'wanda'?"),
        ("0.5*auto+l1", "unknown criterion 'auto'"),
        (7, "--criterion 7: write a name"),
    ],
)
def test_what_is_none(text: str, message: str) -> None:
    for use in (sight_of, lambda t: onnxprune.prune(two().model, criterion=t, validate=False)):
        with pytest.raises(OptionError) as error:
            use(text)
        assert message in str(error.value)


def test_what_is_collected_is_collected_once() -> None:
    assert sight_of("l1+l2") is None
    assert sight_of("l1+apoz") == Want.ZEROS
    assert sight_of("wanda+0.2*apoz+hrank+l1") == Want.PAIRS | Want.ZEROS | Want.RANKS
    assert sight_of("activation_l2+l1") == Want.SUMS


@pytest.mark.parametrize("normalise", ["mean", "max", "none"])
def test_the_mean_of_comparable_parts(normalise: str) -> None:
    coupling = couple(load(two().model))
    seen = observe(coupling, feeds(), Engine(threads=1), Want.PAIRS)
    found = score(coupling, "3*wanda+l1", normalise=normalise, readers=seen.readers, moments=seen.moments)
    one, other = (
        score(coupling, name, normalise=normalise, readers=seen.readers, moments=seen.moments)
        for name in ("wanda", "l1")
    )
    np.testing.assert_allclose(found, 0.75 * one + 0.25 * other)


def test_one_part_is_that_criterion() -> None:
    coupling = couple(load(two().model))
    np.testing.assert_allclose(score(coupling, "5*l2"), score(coupling, "l2"))
    made = CRITERIA.get("l2")(Context(coupling))
    np.testing.assert_array_equal(score(coupling, "l2"), comparable(made, coupling.group_of))


def test_where_a_part_has_nothing_to_say_the_others_decide() -> None:
    """Only one of the layers has a BatchNormalization."""
    b = Builder()
    y = b.op("Relu", b.batch_norm(b.conv(b.input("x", 1, 3, 8, 8), 8, name="a"), "bn"))
    coupling = couple(load(b.model(close(b, b.op("Relu", b.conv(y, 6, name="b"))))))
    found, bn, l1 = (score(coupling, name) for name in ("bn+l1", "bn", "l1"))
    known = np.isfinite(bn)
    assert known.any() and not known.all()
    np.testing.assert_allclose(found[~known], l1[~known])
    np.testing.assert_allclose(found[known], (bn + l1)[known] / 2)


def test_the_part_that_needs_data_is_named() -> None:
    with pytest.raises(OptionError, match="--criterion wanda looks at activations: give --data"):
        onnxprune.prune(two().model, criterion="l1+0.5*wanda", validate=False)
