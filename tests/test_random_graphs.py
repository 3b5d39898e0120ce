"""Random networks over every kind of operator: each cut is exact, costs are true, and the engine is reproducible.

`python tools/random_graphs.py` grows thousands more; what failed once has become a test of its rule.
"""

from contextlib import suppress
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune import cost
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.rules.base import Options
from onnxprune.testing import VacuousError, draw, oracle
from tools.networks import grow


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from([0.5, None]), st.integers(0, 3))
def test_cuts_of_random_networks_are_exact(random: Random, share: float | None, seed: int) -> None:
    with suppress(VacuousError):
        oracle(grow(random), share, seed, both=share is None)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("options", [Options(align=4), Options(head_dims=True)], ids=["aligned", "head dims"])
def test_options(seed: int, options: Options) -> None:
    with suppress(VacuousError):
        oracle(grow(Random(seed)), None, seed, options=options)


@pytest.mark.parametrize("seed", range(40))
def test_costs_are_those_of_the_cut_model(seed: int) -> None:
    """Parameters and MACs that the allocation counts with are what an analysis of the result finds."""
    model = grow(Random(seed))
    coupling = couple(load(model))
    removed = draw(coupling, None, np.random.default_rng(seed))
    gone = np.bincount(coupling.group_of[removed], minlength=len(coupling.groups))
    try:
        result = oracle(model, removed, seed)
    except VacuousError:
        return
    after = couple(load(result.model))
    assert cost.macs(coupling)(gone) == pytest.approx(cost.macs(after).before)
    indices = any(t.data_type == onnx.TensorProto.INT32 for t in model.graph.initializer)  # rewritten, not cut
    if not result.plan.splits and not coupling.source and not indices:
        assert cost.params(coupling)(gone) == pytest.approx(cost.params(after).before)


@pytest.mark.parametrize("seed", range(10))
def test_the_cut_model_can_be_cut_again(seed: int) -> None:
    try:
        once = oracle(grow(Random(seed)), 0.5, seed)
        oracle(once.model, None, seed)
    except VacuousError:
        pass
