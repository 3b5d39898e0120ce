"""From ties, locks and choices to units, on constraints written by hand; and against brute force."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.number import Leaf, Number, SizeOf
from onnxprune.rules.base import Alternative, Choice, Constraint, Dim, Lock, Sized, Tie
from onnxprune.solver import Solution, Solver
from onnxprune.spread import prefer

W, X, Y, Z = (Dim(name, 0) for name in "wxyz")


def index(*values: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array(values, dtype=np.intp)


def solve(
    sizes: dict[Dim, int | str | None], constraints: Iterable[Constraint], parameters: Iterable[Dim] | None = None
) -> Solution:
    """Solve; every dim is a parameter's unless told otherwise."""
    solver = Solver(sizes)
    for constraint in constraints:
        solver.add(0, constraint)
    return solver.solve(sizes if parameters is None else parameters)


def units(solution: Solution, dim: Dim) -> list[int] | None:
    found = solution.unit_of[solution.class_of[dim]]
    return None if found is None else found.tolist()


def reason(solution: Solution, dim: Dim, at: int = 0) -> str:
    state = solution.locks[solution.class_of[dim]]
    assert state is not None
    return solution.causes[state if isinstance(state, int) else int(state[at])].reason


# Ties


def test_whole_ties_make_one_class() -> None:
    solution = solve({X: 3, Y: 3, Z: 2}, [Tie(X, Y)])
    assert solution.class_of[X] == solution.class_of[Y] != solution.class_of[Z]
    assert units(solution, X) == units(solution, Y) == [0, 1, 2]
    assert units(solution, Z) == [3, 4]
    assert solution.group_of.tolist() == [0, 0, 0, 1, 1]


def test_indexed_ties_make_units() -> None:
    solution = solve({X: 4, Y: 2}, [Tie(X, Y, index(0, 1, 2, 3), index(0, 0, 1, 1))])
    assert units(solution, X) == [0, 0, 1, 1]
    assert units(solution, Y) == [0, 1]


def test_a_tie_of_an_axis_with_itself() -> None:
    solution = solve({X: 4}, [Tie(X, X, index(0, 1, 2, 3), index(0, 1, 0, 1))])
    assert units(solution, X) == [0, 1, 0, 1]


def test_ties_through_what_is_no_parameter() -> None:
    solution = solve({X: 2, Y: 2, Z: 2}, [Tie(X, Y, index(0, 1), index(1, 0)), Tie(Y, Z)], [X, Z])
    assert units(solution, X) == [0, 1] and units(solution, Z) == [1, 0]


def test_what_touches_no_parameter_is_no_unit() -> None:
    solution = solve({X: 2, Y: 2}, [], [Y])
    assert units(solution, X) == [-1, -1]
    assert units(solution, Y) == [0, 1]


def test_groups_touch_the_same_classes_equally_often() -> None:
    """Concat of X and Y in Z, and a slice W of X alone."""
    ties = [
        Tie(X, Z, index(0, 1, 2, 3), index(0, 1, 2, 3)),
        Tie(Y, Z, index(0, 1), index(4, 5)),
        Tie(W, X, index(0, 1), index(2, 3)),
    ]
    solution = solve({X: 4, Y: 2, Z: 6, W: 2}, ties)
    groups = [solution.group_of[u] for u in units(solution, Z) or ()]
    assert groups == [0, 0, 1, 1, 2, 2]


# Locks


def test_locks_spread_through_ties() -> None:
    ties = [Tie(X, Y, index(0, 1, 2), index(2, 1, 0)), Tie(Y, Z, index(0, 1), index(0, 1))]
    solution = solve({X: 3, Y: 3, Z: 3}, [*ties, Lock(X, "no", index(2))])
    assert units(solution, X) == [0, 1, -1]
    assert units(solution, Y) == [-1, 1, 0]
    assert units(solution, Z) == [-1, 1, 2]
    assert reason(solution, Z) == "no"


def test_a_class_that_is_locked_index_by_index_is_locked_whole() -> None:
    solution = solve({X: 2, Y: 2}, [Lock(X, "first", index(0)), Lock(X, "second", index(1))])
    assert units(solution, X) is None
    assert units(solution, Y) == [0, 1]


def test_the_first_lock_is_the_reason() -> None:
    solution = solve({X: 2}, [Lock(X, "first"), Lock(X, "second")])
    assert reason(solution, X) == "first"


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "an axis of open size; give --shape"), ("N", "an axis of open size 'N'"), (1, "an axis of size one")],
)
def test_sizes_that_cannot_be_cut(size: int | str | None, text: str) -> None:
    assert reason(solve({X: size}, []), X) == text


@pytest.mark.parametrize(
    ("a", "b", "text"), [(3, 4, "the sizes of what it ties disagree"), (3, "N", "an axis of open size; give --shape")]
)
def test_whole_ties_between_sizes_that_differ(a: int, b: int | str, text: str) -> None:
    solution = solve({X: a, Y: b}, [Tie(X, Y)])
    assert units(solution, X) is None
    assert reason(solution, X) == text


# Sizes that are written in the graph


def test_a_constant_that_is_the_size_of_two_axes() -> None:
    leaf = Leaf(0, 1, 2)
    both = [Sized(X, Number(2, leaf)), Sized(Y, Number(2, leaf))]
    assert units(solve({X: 2, Y: 2}, both), X) is None
    assert units(solve({X: 2, Y: 2}, [*both, Tie(X, Y)]), X) == [0, 1]


def test_a_size_that_follows_another_axis() -> None:
    sized = [Sized(X, Number(None, SizeOf("y", 0)))]
    assert reason(solve({X: 2, Y: 2}, sized), X) == "its size is read off another axis"
    assert units(solve({X: 2, Y: 2}, sized), Y) is None
    assert units(solve({X: 2, Y: 2}, [*sized, Tie(X, Y)]), X) == [0, 1]


def test_a_size_that_is_computed() -> None:
    assert reason(solve({X: 2}, [Sized(X, Number(None))]), X) == "its size is computed in the graph"


# Choices


def split(wide: Dim, blocks: Dim, inside: Dim, n: int, m: int) -> Choice:
    """[n*m] -> [n, m]: whole blocks, or offsets inside them."""
    at = np.arange(n * m)
    whole = (Tie(wide, blocks, at, at // m), Lock(inside, "blocks go"))
    offsets = (Tie(wide, inside, at, at % m), Lock(blocks, "offsets go"))
    return Choice(
        (Alternative("blocks", whole, (blocks,), n), Alternative("offsets", offsets, (inside,), m)),
        (wide, blocks, inside),
    )


def test_a_choice_takes_the_first_that_leaves_room() -> None:
    solution = solve({X: 6, Y: 2, Z: 3}, [split(X, Y, Z, 2, 3)])
    assert units(solution, X) == [0, 0, 0, 1, 1, 1]
    assert reason(solution, Z) == "blocks go"


@pytest.mark.parametrize(("locked", "wanted"), [(Y, [0, 1, 2, 0, 1, 2]), (Z, [0, 0, 0, 1, 1, 1])])
def test_a_lock_settles_a_choice(locked: Dim, wanted: list[int]) -> None:
    solution = solve({X: 6, Y: 2, Z: 3}, [split(X, Y, Z, 2, 3), Lock(locked, "no")])
    assert units(solution, X) == wanted


def test_locks_on_every_side_leave_nothing() -> None:
    solution = solve({X: 6, Y: 2, Z: 3}, [split(X, Y, Z, 2, 3), Lock(Y, "no"), Lock(Z, "neither")])
    assert units(solution, X) is None
    assert reason(solution, X)


def test_a_partial_lock_reaches_through_a_choice() -> None:
    """Index 4 of X is locked: with it block 1 would be, so that one unit remains; offsets leave two."""
    solution = solve({X: 6, Y: 2, Z: 3}, [split(X, Y, Z, 2, 3), Lock(X, "this one", index(4))])
    assert units(solution, X) == [0, -1, 1, 0, -1, 1]


def test_choices_settle_one_another() -> None:
    """X splits into Y, Z and W is split the same way: heads of the one are heads of the other."""
    v, u = Dim("v", 0), Dim("u", 0)
    sizes: dict[Dim, int | str | None] = {X: 6, Y: 2, Z: 3, W: 6, u: 2, v: 3}
    constraints: list[Constraint] = [split(X, Y, Z, 2, 3), split(W, u, v, 2, 3), Tie(Z, v), Lock(u, "no")]
    solution = solve(sizes, constraints)
    assert units(solution, X) == units(solution, W) == [0, 1, 2, 0, 1, 2]


def test_a_tie_counts_against_an_alternative() -> None:
    """X's blocks are glued to one unit; its offsets are not."""
    glued = Tie(X, X, index(0, 1, 2), index(3, 4, 5))
    solution = solve({X: 6, Y: 2, Z: 3}, [glued, split(X, Y, Z, 2, 3)])
    assert units(solution, X) == [0, 1, 2, 0, 1, 2]


def test_prefer() -> None:
    narrow, wide = Alternative("narrow", (), (X,), 1), Alternative("wide", (), (X,), 4)
    assert prefer([wide, narrow]) is wide
    assert prefer([narrow, wide]) is wide
    assert prefer([narrow, narrow]) is narrow


# Brute force


@st.composite
def systems(draw: st.DrawFn) -> tuple[list[int], list[Tie], list[Lock]]:
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=5))
    dims = [Dim(f"d{i}", 0) for i in range(len(sizes))]
    ties, locks = [], []
    for _ in range(draw(st.integers(0, 7))):
        a, b = draw(st.integers(0, len(sizes) - 1)), draw(st.integers(0, len(sizes) - 1))
        if sizes[a] == sizes[b] and draw(st.booleans()):
            ties.append(Tie(dims[a], dims[b]))
            continue
        count = draw(st.integers(1, 6))
        pairs = [(draw(st.integers(0, sizes[a] - 1)), draw(st.integers(0, sizes[b] - 1))) for _ in range(count)]
        ties.append(Tie(dims[a], dims[b], index(*(p for p, _ in pairs)), index(*(q for _, q in pairs))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(sizes) - 1))
        locks.append(Lock(dims[at], "no", index(draw(st.integers(0, sizes[at] - 1)))))
    return sizes, ties, locks


@settings(max_examples=200, deadline=None, derandomize=True)
@given(systems())
def test_against_brute_force(system: tuple[list[int], list[Tie], list[Lock]]) -> None:
    """Units are the components of atoms without a locked one."""
    sizes, ties, locks = system
    dims = {Dim(f"d{i}", 0): size for i, size in enumerate(sizes)}
    label = {(dim, i): (dim, i) for dim, size in dims.items() for i in range(size)}
    for tie in ties * len(label):
        ia = range(dims[tie.a]) if tie.ia is None else tie.ia.tolist()
        ib = range(dims[tie.b]) if tie.ib is None else tie.ib.tolist()
        for i, j in zip(ia, ib, strict=True):
            label[tie.a, i] = label[tie.b, j] = min(label[tie.a, i], label[tie.b, j])
    locked = {label[lock.dim, int(i)] for lock in locks if lock.index is not None for i in lock.index}
    solution = solve(dict(dims), [*ties, *locks])
    made: dict[int, set[tuple[Dim, int]]] = {}
    for dim, size in dims.items():
        for i, unit in enumerate(units(solution, dim) or [-1] * size):
            if unit >= 0:
                made.setdefault(unit, set()).add((dim, i))
    wanted: dict[tuple[Dim, int], set[tuple[Dim, int]]] = {}
    for atom, root in label.items():
        if root not in locked:
            wanted.setdefault(root, set()).add(atom)
    assert sorted(map(sorted, made.values())) == sorted(map(sorted, wanted.values()))
