"""Sizes with open parts: equal where they are computed in other ways, divided only where that is exact."""

import pytest

from onnxprune.sizes import Instance, Size, canonical, factor, product, quotient, total


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("4*batch", "batch*4"),
        ("s0*s1", "s1*s0"),
        ("s0 + 1", "1 + s0"),
        ("2*s0 + 2", "2*(s0 + 1)"),
        ("s0 - 1 + 1", "s0"),
        ("s0*s1 + s0", "s0*(s1 + 1)"),
        ("(s0 + 1) + 2", "s0 + 3"),
        ("s0 - s0 + 3", 3),
        ("(8*s0)//8", "s0"),
        ("(s0 + 7)//8", "(7 + s0)//8"),
        ("batch size", "batch size"),
        ("x[0]", "x[0]"),
    ],
)
def test_one_way_to_write_a_size(a: Size, b: Size) -> None:
    assert canonical(a) == canonical(b)
    assert canonical(canonical(a)) == canonical(a)


@pytest.mark.parametrize(("a", "b"), [("s0", "s1"), ("s0 + 1", "s0"), ("s0//2", "s0"), ("s0//2", "s0//3"), (4, "4*s")])
def test_others_differ(a: Size, b: Size) -> None:
    assert canonical(a) != canonical(b)


def test_names_that_are_no_python_names_survive_arithmetic() -> None:
    four = product(["batch size", 4])
    assert quotient(four, 4) == "batch size"
    assert quotient(canonical(four), "batch size") == 4
    assert product(["/layer/Reshape[0]", "a.0"]) == product(["a.0", "/layer/Reshape[0]"])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("12*b*s", "4*s", "3*b"),
        ("12*b", 8, None),
        ("b", "s", None),
        (12, 4, 3),
        (12, 5, None),
        ("2*b*(s + 1)", "s + 1", "2*b"),
        ("b", 0, None),
    ],
)
def test_division_is_exact(a: Size, b: Size, expected: Size | None) -> None:
    assert quotient(a, b) == expected


def test_sums() -> None:
    assert total("s", 1) == canonical("s + 1")
    assert total(total("s", 1), 1, -1) == "s"
    assert total("8*a", "8*b") == product([8, canonical("a + b")])


def test_stand_ins_have_no_factor_in_common_with_what_is_known() -> None:
    instance = Instance([22, 13, 4])
    batch = instance("batch")
    assert all(k % batch for k in (22, 13, 4))
    assert instance("4*batch") == 4 * batch
    assert instance("seq") != batch
    assert instance(7) == 7
    assert factor("6*batch*seq") == 6
