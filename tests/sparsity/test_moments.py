"""Moments against the rows that they are of."""

from itertools import pairwise

import numpy as np
import pytest

from onnxprune.sparsity.moments import Moments, _spans


def rows(seed: int, groups: int, count: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal((groups, count, columns)) + 0.5


def test_the_error_is_that_of_the_rows() -> None:
    x, d = rows(0, 2, 50, 6), rows(1, 2, 50, 3)
    moments = Moments([slice(0, 6)])
    for part in (slice(0, 20), slice(20, 50)):
        moments.add(x[:, part], d[:, part])
    change, shift = rows(2, 2, 3, 6), rows(3, 2, 1, 3)[:, 0]
    for bias in (None, shift):
        left = d - x @ change.swapaxes(1, 2) - (0 if bias is None else bias[:, None])
        assert moments.error(-change, 0 * change, bias) == pytest.approx(np.square(left).mean(axis=1).sum())
    assert moments.variance(change) == pytest.approx((x @ change.swapaxes(1, 2)).var(axis=1).sum())
    np.testing.assert_allclose(moments.power, np.square(x).mean(axis=1))


@pytest.mark.parametrize("centred", [True, False])
def test_least_squares_by_moments(centred: bool) -> None:
    """What makes up for what is missed."""
    x, d = rows(0, 1, 50, 6), rows(1, 1, 50, 3)
    moments = Moments([slice(0, 6)])
    moments.add(x, d)
    found = np.linalg.solve(moments.gram(0, centred)[0], moments.lack(0, centred)[0].T)
    design = np.concatenate([x[0], np.ones((50, 1))], axis=1) if centred else x[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(design, d[0], rcond=None)[0][:6], atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_far_from_zero_moments_are_as_true_as_near_it(centred: bool) -> None:
    """In float32, with a standard deviation of 0.01 about 100."""
    x = (100 + 0.01 * rows(0, 2, 200, 6)).astype(np.float32)
    moments = Moments([slice(0, 4), slice(4, 6)])
    for part in np.split(x, 10, axis=1):
        moments.add(part, part[..., :3])
    exact = x.astype(np.float64)
    about = exact - exact.mean(axis=1, keepdims=True) if centred else exact
    expected, cross = about.swapaxes(1, 2) @ about / 200, about[..., :3].swapaxes(1, 2) @ about / 200
    for number, span in enumerate(moments.spans):
        np.testing.assert_allclose(moments.gram(number, centred), expected[:, span, span], rtol=1e-4, atol=1e-9)
        assert (moments.rounding(number, centred) < 1e-4).all()
    found = [moments.lack(number, centred) for number in range(2)]
    np.testing.assert_allclose(np.concatenate(found, axis=2), cross, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(moments.power, np.square(exact).mean(axis=1), rtol=1e-9)


def test_what_may_be_rounding_is_known() -> None:
    """Rows that first are elsewhere: what the others differ by is lost in the sums."""
    x = np.full((1, 4000, 3), 1000, np.float32) + rows(0, 1, 4000, 3).astype(np.float32) * 1e-3
    moments = Moments([slice(0, 3)])
    moments.add(np.zeros((1, 1, 3), np.float32), np.zeros((1, 1, 1), np.float32))
    moments.add(x, np.zeros((1, 4000, 1), np.float32))
    assert 0.01 < moments.rounding(0, True)[0] < 0.1


@pytest.mark.parametrize(("columns", "step"), [(2560, 1), (4608, 9), (25088, 4), (2562, 2562), (25087, 1)])
def test_blocks_of_columns(columns: int, step: int) -> None:
    spans = _spans(columns, step)
    assert spans[0].start == 0 and spans[-1].stop == columns
    assert all(a.stop == b.start for a, b in pairwise(spans))
    assert all((s.stop - s.start) % step == 0 for s in spans)
    assert len(spans) == 1 or max(s.stop - s.start for s in spans) <= 1024 + step


@pytest.mark.parametrize("centred", [True, False])
def test_few_rows_say_what_sums_of_many_do(centred: bool) -> None:
    """Rows are kept while they take less room than sums over them."""
    x, d = rows(0, 2, 40, 6), rows(1, 2, 40, 3)
    few, many = Moments([slice(0, 4), slice(4, 6)]), Moments([slice(0, 4), slice(4, 6)])
    for start in range(0, 40, 2):
        many.add(x[:, start : start + 2], d[:, start : start + 2])
        if start < 4:
            few.add(x[:, start : start + 2], d[:, start : start + 2])
        if start == 2:
            assert (len(few.few), few.many) == (2, None)
    assert not many.few
    early = Moments(few.spans, many=([np.zeros((2, 4, 4)), np.zeros((2, 2, 2))], np.zeros((2, 3, 6))))
    early.add(x[:, :2], d[:, :2])
    early.add(x[:, 2:4], d[:, 2:4])
    for number in range(2):
        np.testing.assert_allclose(few.gram(number, centred), early.gram(number, centred), atol=1e-12)
        np.testing.assert_allclose(few.lack(number, centred), early.lack(number, centred), atol=1e-12)
        np.testing.assert_allclose(few.rounding(number, centred), early.rounding(number, centred), rtol=1e-9)
    np.testing.assert_allclose(few.power, early.power)
