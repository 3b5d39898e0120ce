"""The oracle must fail where it should: a test of what tests all the rest."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnxprune import surgery
from onnxprune.rules.base import RULES, Constraint, NodeView, Tie
from onnxprune.testing import Builder, OracleError, VacuousError, arrays, mask, oracle, prove, sandwich


def use_rule(monkeypatch: pytest.MonkeyPatch, op: str, rule: Callable[[NodeView], Iterator[Constraint]]) -> None:
    RULES.load()
    monkeypatch.setitem(RULES._items, op, rule)


def as_unary(n: NodeView) -> Iterator[Constraint]:
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_rule_that_forgets_to_lock(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    use_rule(monkeypatch, op, as_unary)
    with pytest.raises(OracleError, match="is not the masked original"):
        oracle(sandwich(lambda b, y: b.op(op, y, axis=1)), 0.5)


def test_a_rule_that_ties_the_wrong_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_unary(n: NodeView) -> Iterator[Constraint]:
        index = np.arange(8)
        yield Tie(n.x(0, 0), n.y(0))
        yield Tie(n.x(0, 1), n.y(1), index, index[::-1])
        yield Tie(n.x(0, 2), n.y(2))
        yield Tie(n.x(0, 3), n.y(3))

    use_rule(monkeypatch, "Tanh", reversed_unary)
    with pytest.raises(OracleError, match="is not the masked original"):
        oracle(sandwich(lambda b, y: b.op("Tanh", y)), 0.5)


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[ModelProto], object]) -> None:
    """Let every cut be followed by a slip."""
    cut = surgery.cut

    def worse(*args: Any) -> ModelProto:
        model = cut(*args)
        spoil(model)
        return model

    monkeypatch.setattr(surgery, "cut", worse)


SLIPS: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "a weight": (lambda m: zero(m, "w1"), "is not the masked original"),
    "a node's name": (lambda m: setattr(m.graph.node[0], "name", "other"), "the nodes"),
    "an output": (lambda m: setattr(m.graph.output[0], "doc_string", "new"), "the outputs"),
    "an extra input": (lambda m: m.graph.input.add(name="more", type=m.graph.input[0].type), "the names of inputs"),
    "an initializer": (lambda m: m.graph.initializer.reverse(), "the order of the initializers"),
    "the opset": (lambda m: setattr(m.opset_import[0], "version", 16), "opset_import"),
    "an unknown attribute": (lambda m: m.graph.node[0].attribute.add(name="zzz", type=1, f=1.0), "not valid"),
    "a declared size": (
        lambda m: m.graph.value_info.append(helper.make_tensor_value_info("Relu_1_0", 1, [2, 8, 6, 6])),
        "contradicting shapes",
    ),
}


def zero(model: ModelProto, name: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.raw_data = np.zeros(arrays(model)[name].shape, np.float32).tobytes()


@pytest.mark.parametrize(("spoil", "message"), SLIPS.values(), ids=SLIPS)
def test_slips_of_surgery(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[ModelProto], object], message: str) -> None:
    spoiled(monkeypatch, spoil)
    with pytest.raises(OracleError, match=message):
        oracle(sandwich(lambda b, y: b.op("Relu", y)), 0.5)


def test_a_cut_that_differs_from_run_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))
    spoiled(monkeypatch, lambda m: setattr(m.graph.node[0].attribute.add(), "name", f"n{next(calls)}"))
    with pytest.raises(OracleError):
        oracle(sandwich(lambda b, y: b.op("Relu", y)), 0.5)


def test_a_mask_of_the_engine_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    made = surgery.mask

    def worse(*args: Any) -> ModelProto:
        model = made(*args)
        zero(model, "w1")
        return model

    monkeypatch.setattr(surgery, "mask", worse)
    model = sandwich(lambda b, y: b.op("Add", y, 1.0))
    oracle(model, 0.5)
    with pytest.raises(OracleError, match=r"surgery\.mask"):
        oracle(model, 0.5, both=True)


def test_outputs_that_say_nothing() -> None:
    with pytest.raises(VacuousError):
        oracle(sandwich(lambda b, y: b.op("Mul", y, 0.0)), 0.5)


def test_the_mask_is_zero_where_the_plan_cuts_and_nowhere_else() -> None:
    model = sandwich(lambda b, y: b.op("Relu", b.batch_norm(y, "bn")))
    result = oracle(model, 0.5)
    before, after = arrays(model), arrays(mask(model, result.plan, result.model))
    kept = result.plan.kept["w1"][0]
    gone = np.setdiff1d(np.arange(8), kept)
    assert not after["w1"][gone].any() and not after["w2"][:, gone].any() and not after["bn.scale"][gone].any()
    assert (after["w1"][kept] == before["w1"][kept]).all()
    assert (after["w2"][:, kept] == before["w2"][:, kept]).all()
    assert (after["bn.var"] == before["bn.var"]).all()  # a divisor


def test_what_is_reported() -> None:
    result = prove(sandwich(lambda b, y: b.op("Relu", y)))
    assert result.params == (8 * 27 + 32, 4 * 27 + 16)
    assert result.choices("w1") == [8] and result.can_cut("w1")
    assert result.reason("w1") == "" and not result.can_cut("w1", 1)
    assert result.shape("w1") == (4, 3, 3, 3)


def test_removed_units_may_be_given() -> None:
    removed = np.zeros(8, dtype=bool)
    removed[[1, 5]] = True
    result = oracle(sandwich(lambda b, y: b.op("Relu", y)), removed)
    assert result.plan.kept["w1"][0].tolist() == [0, 2, 3, 4, 6, 7]


def test_a_builder_is_reproducible() -> None:
    def made(seed: int) -> ModelProto:
        b = Builder(seed=seed)
        return b.model(b.conv(b.input("x", 1, 3, 6, 6), 4))

    assert made(1) == made(1) != made(2)
