"""From scores and a target to the units that go."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import cost
from onnxprune.allocation import SCOPES, allocate
from onnxprune.coupling import couple
from onnxprune.criteria.base import score
from onnxprune.errors import OptionError, PlanError, TargetError
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.plan import make_plan
from onnxprune.problem import Limits, labels, problem_of
from onnxprune.surgery import cut
from onnxprune.target import Target, parse_target
from onnxprune.testing import Builder, close

Removed = NDArray[np.bool_]


def network() -> ModelProto:
    """Widths 16, 32, 8 and 24; the first feeds a residual sum."""
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 16, name="stem")
    z = b.conv(b.op("Relu", y), 32, name="wide", strides=[1, 1])
    z = b.conv(b.op("Relu", z), 8, 1, name="narrow")
    y = b.op("Add", y, b.conv(b.op("Relu", z), 16, name="back"))
    y = b.op("Flatten", b.op("GlobalAveragePool", b.conv(y, 24, name="top")))
    return b.model(close(b, y, 10, "head"))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


def counts(coupling: Coupling, removed: Removed) -> NDArray[np.intp]:
    return np.bincount(coupling.group_of[removed], minlength=len(coupling.groups))


def kept(coupling: Coupling, removed: Removed) -> dict[str, int]:
    left = {g.name: g.units.size for g in coupling.groups}
    for group, gone in zip(coupling.groups, counts(coupling, removed), strict=True):
        left[group.name] -= int(gone)
    return left


def again(coupling: Coupling, removed: Removed) -> Coupling:
    """The analysis of the cut model."""
    return couple(load(cut(coupling, make_plan(coupling, removed), removed)))


def choose(coupling: Coupling, target: str, scope: str = "global", **limits: Any) -> Removed:
    return allocate(coupling, score(coupling), parse_target(target), scope, Limits(**limits))


# Targets


@pytest.mark.parametrize(("text", "kind", "amount"), [("macs=0.5", "macs", 0.5), ("params=1", "params", 1.0)])
def test_parse_target(text: str, kind: str, amount: float) -> None:
    target = parse_target(text)
    assert target == Target(kind, amount)
    assert parse_target(str(target)) == target


def test_lossless_is_a_target() -> None:
    assert str(parse_target("lossless")) == "lossless"


@pytest.mark.parametrize(
    "text",
    ["", "macs", "macs=", "macs=0", "macs=1.5", "macs=-1", "macs=nan", "macs=half", "size=0.5", "0.5", "lossless=1"],
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(TargetError, match="write channels=X"):
        parse_target(text)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("amount", [1.0, 0.9, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("kind", ["channels", "params", "macs"])
def test_the_target_is_met_closely(coupling: Coupling, kind: str, amount: float, scope: str) -> None:
    """Met from below, and no group could keep one more unit."""
    removed = choose(coupling, f"{kind}={amount}", scope)
    gone = counts(coupling, removed)
    frozen = np.zeros(len(coupling.groups), dtype=bool)
    measure = {"params": cost.params, "macs": cost.macs}.get(kind, lambda c: cost.channels(c, frozen))(coupling)
    assert measure(gone) <= amount * measure.before * (1 + 1e-9)
    assert all(v >= 1 for v in kept(coupling, removed).values())
    if scope == "global" or kind != "channels":
        for group in np.flatnonzero(gone):
            back = gone.copy()
            back[group] -= 1
            assert measure(back) > amount * measure.before


def test_everything_may_remain(coupling: Coupling) -> None:
    assert not choose(coupling, "macs=1").any()


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("scope", SCOPES)
def test_costs_are_those_of_the_cut_model(coupling: Coupling, kind: str, scope: str) -> None:
    removed = choose(coupling, f"{kind}=0.4", scope)
    for measure in (cost.params, cost.macs):
        made = measure(again(coupling, removed)).before
        assert measure(coupling)(counts(coupling, removed)) == pytest.approx(made)


def test_the_costs_themselves(coupling: Coupling) -> None:
    positions, weights = 64, [3 * 16 * 9, 16 * 32 * 9, 32 * 8, 8 * 16 * 9, 16 * 24 * 9]
    assert cost.macs(coupling).before == positions * sum(weights) + 240
    assert cost.params(coupling).before == sum(weights) + 16 + 32 + 8 + 16 + 24 + 240


def test_too_small_a_target(coupling: Coupling) -> None:
    with pytest.raises(TargetError, match=r"cannot be met; the least that can remain is macs=0\.0"):
        choose(coupling, "macs=0.0001")


# Scopes


def test_the_local_scope_keeps_the_same_share_of_every_group(coupling: Coupling) -> None:
    removed = choose(coupling, "channels=0.5", "local")
    assert kept(coupling, removed) == {"stem": 8, "wide": 16, "narrow": 4, "top": 12}


def test_within_a_group_the_least_important_go_first(coupling: Coupling) -> None:
    scores = score(coupling)
    for scope in SCOPES:
        removed = choose(coupling, "params=0.5", scope)
        for group in coupling.groups:
            gone = removed[group.units]
            if gone.any():
                assert scores[group.units][gone].max() <= scores[group.units][~gone].min()


def test_the_global_scope_ranks_all_units_together(coupling: Coupling) -> None:
    scores = np.ones(coupling.units)
    wide = next(g for g in coupling.groups if g.name == "wide")
    scores[wide.units] = 0.1
    removed = allocate(coupling, scores, parse_target("channels=0.7"))
    assert kept(coupling, removed) == {"stem": 16, "wide": 8, "narrow": 8, "top": 24}


def test_ties_are_broken_the_same_way_every_time(coupling: Coupling) -> None:
    scores = np.ones(coupling.units)
    first, second = (allocate(coupling, scores, parse_target("macs=0.5")) for _ in range(2))
    assert (first == second).all()


def test_a_scope_that_does_not_exist(coupling: Coupling) -> None:
    with pytest.raises(OptionError, match="choose one of global, local"):
        choose(coupling, "macs=0.5", "everywhere")


# Limits


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("align", [2, 4, 8])
def test_widths_stay_aligned(align: int, scope: str) -> None:
    coupling = couple(load(network()))
    removed = choose(coupling, "macs=0.4", scope, align=align)
    assert all(width % align == 0 for width in kept(coupling, removed).values())
    assert removed.any()


def test_a_width_that_is_no_multiple_stays_or_shrinks_to_one() -> None:
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 20, name="odd")
    y = b.conv(b.op("Relu", y), 6, name="small")
    coupling = couple(load(b.model(close(b, y))))
    removed = choose(coupling, "channels=0.7", align=8)
    assert kept(coupling, removed) == {"odd": 16, "small": 6} or kept(coupling, removed)["odd"] % 8 == 0


def test_alignment_counts_the_indices_that_a_unit_takes() -> None:
    """A unit of a pixel shuffle is four channels before it and one behind: both widths are aligned."""
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 48, name="w1")
    y = b.conv(b.op("DepthToSpace", y, blocksize=2), 16, name="w2")
    coupling = couple(load(b.model(close(b, y, name="w3"))))
    assert kept(coupling, choose(coupling, "channels=0.6", align=8)) == {"w1": 8, "w2": 8}


def test_heads_are_aligned_by_their_width() -> None:
    """Twelve heads of 16 channels may become any number: the axis that counts them is nobody's channels."""
    b = Builder()
    x = b.input("x", 2, 5, 6)

    def heads(name: str) -> str:
        y = b.op("MatMul", x, b.weight(6, 192, name=name, fan=6))
        return b.op("Transpose", b.op("Reshape", y, [2, 5, 12, 16]), perm=[0, 2, 1, 3])

    scores = b.op("MatMul", heads("q"), b.op("Transpose", heads("k"), perm=[0, 1, 3, 2]))
    y = b.op("MatMul", b.op("Softmax", b.op("Add", scores, b.weight(12, 5, 5, name="table"))), heads("v"))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [2, 5, 192])
    coupling = couple(load(b.model(b.op("MatMul", y, b.weight(192, 6, name="o", fan=192)))))
    removed = choose(coupling, "channels=0.5", align=16)
    assert removed.sum() == 6


def test_an_alignment_below_one(coupling: Coupling) -> None:
    with pytest.raises(OptionError, match="--align 0"):
        choose(coupling, "macs=0.5", align=0)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_kept_stays_whole(coupling: Coupling, scope: str) -> None:
    removed = choose(coupling, "macs=0.9", scope, keep=["^wide$", "top"])
    assert kept(coupling, removed)["wide"] == 32 and kept(coupling, removed)["top"] == 24
    assert removed.any()


def test_keep_finds_nodes_by_name(coupling: Coupling) -> None:
    wide = next(i for i, g in enumerate(coupling.groups) if g.name == "wide")
    node = coupling.graph.consumers["wide"][0][0].label
    assert node in labels(coupling, wide) and "wide" in labels(coupling, wide)
    assert kept(coupling, choose(coupling, "macs=0.8", keep=[f"^{node}$"]))["wide"] == 32


@pytest.mark.parametrize("scope", SCOPES)
def test_ratios_are_kept_whatever_the_target(coupling: Coupling, scope: str) -> None:
    removed = choose(coupling, "macs=0.55", scope, ratios=[("^wide$", 0.25), ("^top$", 1.0)])
    assert kept(coupling, removed)["wide"] == 8 and kept(coupling, removed)["top"] == 24


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"keep": ["nobody"]}, "--keep 'nobody' matches no tensor or node"),
        ({"keep": ["("]}, "not a regular expression"),
        ({"ratios": [("wide", 0.0)]}, "must be in (0, 1]"),
        ({"ratios": [("nobody", 0.5)]}, "--ratio 'nobody' matches"),
    ],
)
def test_limits_that_make_no_sense(coupling: Coupling, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        choose(coupling, "macs=0.5", **limits)
    assert message in str(error.value)


def test_groups_without_a_score_stay(coupling: Coupling) -> None:
    scores = score(coupling)
    stem = next(g for g in coupling.groups if g.name == "stem")
    scores[stem.units[3]] = np.nan
    removed = allocate(coupling, scores, parse_target("macs=0.5"))
    assert kept(coupling, removed)["stem"] == 16
    with pytest.raises(TargetError):
        allocate(coupling, np.full(coupling.units, np.nan), parse_target("macs=0.5"))


def test_a_model_without_anything_to_cut() -> None:
    b = Builder()
    coupling = couple(load(b.model(b.conv(b.input("x", 1, 3, 8, 8), 4))))
    assert not choose(coupling, "macs=1").any()
    with pytest.raises(TargetError):
        choose(coupling, "macs=0.5")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"align": 1000}, "nothing can be cut; an --align below 1000 may allow more; see"),
        ({"keep": "."}, "nothing can be cut; fewer --keep may allow more; see"),
        ({"ratios": [(".", 1.0)], "align": 2}, "cut; an --align below 2 or a smaller --ratio may allow more; see"),
    ],
)
def test_limits_that_leave_nothing_to_cut(coupling: Coupling, limits: dict[str, Any], words: str) -> None:
    with pytest.raises(TargetError) as error:
        choose(coupling, "channels=0.5", **limits)
    assert words in str(error.value)
    assert not choose(coupling, "channels=1", **limits).any()


def test_advice_names_only_options_in_use(coupling: Coupling) -> None:
    with pytest.raises(TargetError, match=r"macs=0\.\d+, held by .*; see `onnxprune inspect`$"):
        choose(coupling, "macs=0.0001")


def test_advice_names_the_option_of_a_lock() -> None:
    b = Builder()
    y = b.op("LayerNormalization", b.op("MatMul", b.input("x", 2, 6), b.weight(6, 8, fan=6)), b.weight(8, fan=1))
    coupling = couple(load(b.model(b.op("MatMul", y, b.weight(8, 4, fan=8)))))
    with pytest.raises(TargetError, match=r"nothing can be cut; --allow-inexact may allow more; see"):
        choose(coupling, "channels=0.5")


def test_one_pattern_may_be_a_text(coupling: Coupling) -> None:
    assert (choose(coupling, "macs=0.9", keep="^wide$") == choose(coupling, "macs=0.9", keep=["^wide$"])).all()


def test_what_cannot_be_allocated(coupling: Coupling) -> None:
    with pytest.raises(TargetError, match="--target lossless has no share"):
        choose(coupling, "lossless")
    with pytest.raises(OptionError, match=rf"shape \(3,\); {coupling.units} units want one each"):
        allocate(coupling, np.zeros(3), parse_target("macs=0.5"))
    with pytest.raises(TargetError, match=r"--target 0\.5: write channels=X"):
        parse_target(0.5)
    with pytest.raises(OptionError, match="--seed -1: write a whole number from 0"):
        score(coupling, "random", seed=-1)


def test_a_group_is_never_removed_altogether(coupling: Coupling) -> None:
    with pytest.raises(PlanError, match=r"all units of group '.*' are removed; leave one"):
        make_plan(coupling, np.ones(coupling.units, dtype=bool))


# Weighing importance against cost


def lost(coupling: Coupling, removed: Removed) -> float:
    """What the budget scope makes least: MACs times minus the log of the share of energy that stays, over groups."""
    energy = np.square(score(coupling))
    whole = np.bincount(coupling.group_of, weights=energy)
    left = np.bincount(coupling.group_of, weights=energy * ~removed)
    return float((cost.macs(coupling).per_group() * -np.log(left / whole)).sum())


@pytest.mark.parametrize("target", ["macs=0.7", "macs=0.4", "params=0.6"])
def test_the_budget_scope_keeps_more_for_the_same_cost(coupling: Coupling, target: str) -> None:
    others = [lost(coupling, choose(coupling, target, scope)) for scope in ("local", "global")]
    assert lost(coupling, choose(coupling, target, "budget")) <= min(others) * (1 + 1e-9)


def test_a_latency_needs_its_cost(coupling: Coupling) -> None:
    with pytest.raises(TargetError, match="latency is measured"):
        choose(coupling, "latency=0.5")
    scores, bound = score(coupling), parse_target("latency=0.5")
    removed = allocate(coupling, scores, bound, "budget", measure=cost.params(coupling))  # any cost will do
    assert cost.params(coupling)(counts(coupling, removed)) <= 0.5 * cost.params(coupling).before


@pytest.mark.parametrize(
    ("text", "amount", "absolute"),
    [
        ("latency=0.5", 0.5, False),
        ("latency=5ms", 5, True),
        ("latency=250us", 0.25, True),
        ("latency=1.5s", 1500, True),
    ],
)
def test_latencies(text: str, amount: float, absolute: bool) -> None:
    found = parse_target(text)
    assert (found.kind, found.absolute) == ("latency", absolute)
    assert found.amount == pytest.approx(amount)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("target", ["macs=1", "macs=0.95", "macs=0.5"])
def test_a_ratio_holds_whatever_the_target_says(coupling: Coupling, scope: str, target: str) -> None:
    found = kept(coupling, choose(coupling, target, scope, ratios=[("^wide$", 0.25)]))
    assert found["wide"] == 8


def test_a_group_alone_is_named() -> None:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 8, name="one"))
    coupling = couple(load(b.model(b.conv(b.op("Relu", b.conv(y, 8, name="two")), 4, name="three"))))
    scores = np.ones(coupling.units)
    assert problem_of(coupling, scores, Limits(ratios=[("^two$", 0.5)])).fixed == {0: 4, 1: 4}  # it reads the one
    assert problem_of(coupling, scores, Limits(ratios=[("group:two", 0.5)])).fixed == {1: 4}
    assert problem_of(coupling, scores, Limits(keep="group:one")).frozen.tolist() == [True, False]
    with pytest.raises(OptionError, match="--keep 'group:three' matches no tensor or node"):
        problem_of(coupling, scores, Limits(keep="group:three"))


def test_names_of_groups_are_no_regular_expressions() -> None:
    assert Limits(keep="group:a(b", ratios=[("group:c[0", 0.5)]).align == 1
    with pytest.raises(OptionError, match=r"^--keep 'a\(b': not a regular expression"):
        Limits(keep="a(b")
    with pytest.raises(OptionError, match=r"^--ratio 'c\[0': not a regular expression"):
        Limits(ratios=[("c[0", 0.5)])
