"""Random networks over every kind of operator: each cut is exact, costs are true, and failures shrink to a few nodes.

`make fuzz` grows thousands more; what failed once has become a test of its rule.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxprune import cost
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.rules.base import RULES, Constraint, NodeView, Options, Tie
from onnxprune.testing import Builder, VacuousError, draw, oracle
from tools.fuzz import smallest, summary, trial
from tools.networks import STEPS, feeds, grow, pointwise
from tools.networks.grower import Entry, Grower, start, tails
from tools.networks.trial import Trial, attempt, cut_of

# Operators that the networks do not have, and why; each has tests of its own.
LEFT_OUT = {
    "Det": "takes both axes of the places away",
    "EyeLike": "reads nothing but sizes",
    "NonMaxSuppression": "data decide how much comes out",
    "NonZero": "data decide how much comes out",
    "STFT": "knows no channels",
    "SequenceMap": "reads sequences of tensors",
    "Unique": "data decide how much comes out",
    "com.microsoft::DecoderMaskedMultiHeadAttention": "reads one token and a cache",
    "com.microsoft::DynamicQuantizeLSTM": "rounds its states, one upon the other",
    "com.microsoft::EmbedLayerNormalization": "reads nothing but numbers of tokens",
    "com.microsoft::GatherBlockQuantized": "reads nothing but numbers of tokens",
    "com.microsoft::MatMulFpQ4": "ONNX Runtime has no kernel for the CPU",
    "com.microsoft::MatMulInteger16": "ONNX Runtime has no kernel for the CPU",
    "com.microsoft::QAttention": "rounds its scores",
}
# Steps that have many operators to draw from.
CROWDED = ["bits", "boxes", "channel_norm", "classical", "compared", "constant", "elements_scattered", "gelus"]
CROWDED += ["integer_products", "joined", "last_axis_norm", "multi_head", "of_onnx", "on_integers", "ordered"]
CROWDED += ["over_channels", "pooled", "pooled_integers", "sampled", "softmax"]
BATCHES, EACH = 10, 20


@pytest.mark.parametrize("batch", range(BATCHES))
def test_cuts_of_random_networks_are_exact(batch: int) -> None:
    trials = {seed: trial(seed) for seed in range(batch * EACH, (batch + 1) * EACH)}
    assert {seed: t.failure for seed, t in trials.items() if t.failure and not t.noise} == {}
    assert sum(bool(t.vacuous) for t in trials.values()) <= EACH / 4
    assert sum(bool(t.cut_ops) for t in trials.values()) >= EACH * 3 / 4


def grown(entry: Entry, seed: int) -> ModelProto:
    """A network of one step, from a kind of value that it takes."""
    random = Random(f"{entry.run.__module__} {entry.run.__name__} {seed}")
    kind = random.choice(entry.takes)
    g = Grower(random, random.randint(max(entry.since, 9), min(entry.until, 24)))
    start(g, [kind if kind in ("map", "line", "flat") else "tokens"])
    first = g.live[-1][1]
    if kind == "sequence":
        g.keep(kind, g.op("Transpose", first, perm=[1, 0, 2]))
    elif kind == "heads":
        g.keep(kind, g.split_heads(first, g.divisor(g.shape(first)[2], 1) or 1))
    g.apply(entry, kind, g.live[-1][1])
    return g.model(*tails(g))


def kinds(model: ModelProto) -> set[str]:
    return {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node}


def test_every_rule_is_exercised_or_left_out_on_purpose() -> None:
    missing = set(RULES.names()) - set(LEFT_OUT) - set(pointwise.UNARY)
    for seed in range(100):
        entries = STEPS if seed < 5 else [e for e in STEPS if e.run.__name__ in CROWDED]
        for entry in entries if missing else []:
            missing -= kinds(grown(entry, seed))
    assert missing == set()
    assert set(LEFT_OUT) <= set(RULES.names())


def test_a_seed_is_a_network_and_a_cut() -> None:
    assert grow(Random(3)) == grow(Random(3)) != grow(Random(4))
    assert trial(3) == trial(3)
    assert cut_of(3) == cut_of(3)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("options", [Options(align=4), Options(head_dims=True)], ids=["aligned", "head dims"])
def test_options(seed: int, options: Options) -> None:
    model = grow(Random(1000 + seed))
    try:
        oracle(model, None, seed, options=options, feeds=feeds(model, seed))
    except VacuousError:
        pytest.skip("nothing comes out")


@pytest.mark.parametrize("seed", range(40))
def test_costs_are_those_of_the_cut_model(seed: int) -> None:
    """Parameters and MACs that the allocation counts with are what an analysis of the result finds."""
    model = grow(Random(seed))
    coupling = couple(load(model))
    removed = draw(coupling, None, np.random.default_rng(seed))
    gone = np.bincount(coupling.group_of[removed], minlength=len(coupling.groups))
    try:
        result = oracle(model, removed, seed, feeds=feeds(model, seed))
    except VacuousError:
        pytest.skip("nothing comes out")
    after = couple(load(result.model))
    assert cost.macs(coupling)(gone) == pytest.approx(cost.macs(after).before)
    indices = any(t.data_type == onnx.TensorProto.INT32 for t in model.graph.initializer)  # rewritten, not cut
    if not result.plan.splits and not coupling.source and not indices:
        assert cost.params(coupling)(gone) == pytest.approx(cost.params(after).before)


@pytest.mark.parametrize("seed", range(10))
def test_the_cut_model_can_be_cut_again(seed: int) -> None:
    model = grow(Random(seed))
    try:
        once = oracle(model, 0.5, seed, feeds=feeds(model, seed))
        oracle(once.model, None, seed, feeds=feeds(model, seed))
    except VacuousError:
        pytest.skip("nothing comes out")


def careless(n: NodeView) -> Iterator[Constraint]:
    """Softmax as if it worked on one element at a time."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)


def long_network() -> ModelProto:
    """A Softmax over the channels in the middle of much that has nothing to do with it."""
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 4, 4), 8, name="w1")
    y = b.op("Relu", b.batch_norm(y))
    y = b.op("Add", y, b.op("Tanh", b.conv(y, 8)))
    y = b.op("Softmax", b.op("Mul", y, 3.0), axis=1)
    y = b.op("Add", y, b.op("Sigmoid", b.conv(y, 8)))
    other = b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), 3)
    return b.model(b.conv(b.op("Concat", y, b.op("Abs", y), axis=1), 4), other)


def test_a_failure_shrinks_to_the_nodes_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    RULES.load()
    monkeypatch.setitem(RULES._items, "Softmax", careless)
    model, cut = long_network(), cut_of(0)
    found = attempt(model, cut)
    assert found.kind == "mismatch" and not found.noise
    small, plain = smallest(model, cut, found.kind)
    assert "Softmax" in kinds(small) and len(small.graph.node) <= 4
    assert attempt(small, plain).kind == "mismatch"


def test_the_summary() -> None:
    trials = [
        Trial(ops=frozenset({"Conv", "Relu"}), cut_ops=frozenset({"Conv"})),
        Trial(vacuous="nothing can be cut"),
        Trial(failure="wrong", kind="mismatch"),
        Trial(failure="rounded", kind="mismatch", noise=True),
    ]
    text = "\n".join(summary(trials, 2.0))
    assert text.startswith("4 networks, 1 failures, 2 s (2.0 a second)\ncut: 25.0%; rounding, not a failure: 1")
    assert "vacuous: 25.0% (nothing can be cut: 1)" in text
    assert "Conv 1 (1)" in text and "Relu" in text.rpartition("never saw a cut")[2]
