"""Masks against brute force."""

import numpy as np
import pytest

from onnxprune.errors import OptionError
from onnxprune.sparsity.patterns import Grid, Quota, lowest_by_row, parse


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("text", ["2:4", "1:2", "4:8", "3:5"])
def test_n_of_m_keeps_the_highest_of_every_neighbourhood(text: str, rng: np.random.Generator) -> None:
    pattern = parse(text)
    n, m = pattern.sizes
    w = rng.standard_normal((2, 3, 3 * m, 4))  # groups, outputs, channels, taps
    grid = pattern.on((2, 3, 3 * m, 4), 2)
    assert isinstance(grid, Grid)
    gone = grid.unlay(grid.spread(grid.choose(0.0)(grid.scores(grid.lay(np.abs(w))))), 4)
    for g, o, block, tap in np.ndindex(2, 3, 3, 4):
        these = np.abs(w[g, o, block * m : block * m + m, tap])
        expected = np.zeros(m, dtype=bool)
        expected[np.argsort(these)[: m - n]] = True
        np.testing.assert_array_equal(gone[g, o, block * m : block * m + m, tap], expected)


@pytest.mark.parametrize(("text", "tile"), [("vector", (1, 3)), ("kernel", (1, 9)), ("2x3", (2, 3)), ("4x1", (4, 1))])
def test_tiles_go_as_a_whole_lowest_mean_first(text: str, tile: tuple[int, int], rng: np.random.Generator) -> None:
    w = rng.standard_normal((2, 4, 2, 9))
    grid = parse(text).on((2, 4, 2, 9), 3)
    assert isinstance(grid, Grid) and (grid.rows, grid.columns) == tile
    matrix = grid.lay(np.abs(w))
    gone = grid.spread(grid.choose(0.5)(grid.scores(matrix)))
    means = []
    for g, i, j in np.ndindex(2, 4 // tile[0], 18 // tile[1]):
        where = np.s_[g, i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
        assert gone[where].all() or not gone[where].any()
        means.append((matrix[where].mean(), bool(gone[where].all())))
    flags = [flag for _, flag in sorted(means)]
    assert flags == [True] * (len(flags) // 2) + [False] * (len(flags) // 2)


def test_laying_and_back(rng: np.random.Generator) -> None:
    w = rng.standard_normal((2, 3, 4, 5))
    for grid in (Grid(1, 1), Grid(1, 4, 2, 5)):
        np.testing.assert_array_equal(grid.unlay(grid.lay(w), 5), w)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_rounding_does_not_add_up(size: int, rng: np.random.Generator) -> None:
    quota = Quota(0.3)
    scores = rng.random(1000)
    gone = np.concatenate([quota(scores[i : i + size]) for i in range(0, 1000, size)])
    assert gone.sum() == 300
    if size == 1000:
        assert scores[gone].max() < scores[~gone].min()


def test_by_row(rng: np.random.Generator) -> None:
    scores = rng.random((2, 3, 10))
    gone = lowest_by_row(scores, 0.4)
    assert (gone.sum(axis=2) == 4).all()
    assert (np.where(gone, scores, 0).max(axis=2) < np.where(gone, 1, scores).min(axis=2)).all()


def test_holds() -> None:
    grid = Grid(1, 4, 2)
    assert grid.holds(np.array([[[1.0, 0, 2, 0, 0, 0, 3, 4]]]))
    assert not grid.holds(np.array([[[1.0, 0, 2, 5, 0, 0, 0, 0]]]))
    tiles, gone = Grid(1, 2), np.array([[[True, True, False, False]]])
    assert tiles.holds(np.array([[[0.0, 0, 1, 0]]]), gone)
    assert not tiles.holds(np.array([[[0.0, 1, 1, 0]]]), gone)


def test_what_does_not_fit_says_why() -> None:
    assert "2:4 on 3 columns" in str(parse("2:4").on((1, 8, 3, 9), 3))
    assert "16x16 blocks do not divide its 8 x 27" in str(parse("16x16").on((1, 8, 3, 9), 3))
    assert parse("kernel").on((1, 8, 3, 1), 1) == "its kernels are single weights"
    assert parse("vector").on((1, 8, 3, 3), 1) == "its kernels have no rows"


@pytest.mark.parametrize("text", ["2:x", "4:4", "0:4", "5:4", "0x4", "4x0", "rows", "", "2:4:8", "-1:2"])
def test_no_pattern(text: str) -> None:
    with pytest.raises(OptionError, match="write N:M as in 2:4"):
        parse(text)
