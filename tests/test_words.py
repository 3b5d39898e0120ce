"""Figures in words."""

import pytest

from onnxprune import locked, numerals, words


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (25_557_032, "25.6 M"),
    ],
)
def test_counts(number: int, text: str) -> None:
    assert numerals.count(number) == text


def test_sizes_durations_and_shares() -> None:
    assert numerals.size(512) == "512 B"
    assert numerals.size(102_145_325) == "102 MB"
    assert [numerals.milliseconds(n) for n in (0.0385, 4.217, 12.34, 240.0, 1300.0)] == [
        "38.5 us",
        "4.22 ms",
        "12.3 ms",
        "240 ms",
        "1.30 s",
    ]
    assert numerals.percent(0.4968) == "49.7 %"
    assert numerals.tail("a.very.long.name", 10) == "...ng.name"


@pytest.mark.parametrize(
    ("interval", "text", "good"),
    [
        ((1.7, 1.6, 1.8), "1.70x faster (95 %: 1.60 to 1.80)", True),
        ((1.01, 1.01, 1.01), "no faster: 1.01x (within what sessions vary)", False),
        ((0.99, 0.98, 0.99), "no faster: 0.99x (within what sessions vary)", False),
        ((1.1, 0.9, 1.3), "no faster: 1.10x (95 %: 0.90 to 1.30)", False),
        ((0.5, 0.4, 0.6), "no faster: 2.00x slower (95 %: 1.67 to 2.50)", False),
        ((1.5, None, None), "too few runs to compare: measure for longer", None),
    ],
)
def test_a_speed_up_is_one_only_if_its_whole_interval_is(
    interval: tuple[float | None, ...], text: str, good: bool | None
) -> None:
    verdict = words.speed(dict(zip(("value", "low", "high"), interval, strict=True)))
    assert verdict == words.Verdict(text, good)


def test_the_proof_in_words() -> None:
    parity = {"relative": 2e-7, "exact": True, "feeds": 2, "oracle": "the masked original"}
    assert (
        words.proof({"parity": parity}).text
        == "exact: the masked original to 2.0e-07 of the largest output, on 2 inputs"
    )
    assert words.proof({"parity": parity | {"exact": False}}).good is False
    assert "beyond measure" in words.proof({"parity": parity | {"exact": False, "relative": None}}).text
    assert words.proof({"fidelity": {}}).good is False
    assert words.proof({}).text == "none: the models were not run"


def test_fidelity_in_words() -> None:
    found = {"max_abs": 0.5, "cosine": 0.99, "sqnr_db": 17.0, "top1_agreement": 0.875, "samples": 8}
    assert words.fidelity({"fidelity": found}) == "top-1 agreement 87.5 %, cosine 0.9900, SQNR 17.0 dB, max abs 0.5"
    assert words.fidelity({"fidelity": found | {"max_abs": 0.0}}) == "outputs are identical to the original's"
    broken = words.fidelity({"fidelity": found | {"max_abs": None}})
    assert broken is not None and "cannot be compared" in broken
    assert words.fidelity({}) is None


def test_a_group_is_called_by_its_node_where_the_tensor_has_no_name_of_its_own() -> None:
    assert words.title({"name": "layer1.conv.weight", "node": "/layer1/conv/Conv"}) == "layer1.conv.weight"
    for name in ("onnx::Conv_12", "497", "497#2", "val_3", "const_fold_opt__7"):
        assert words.title({"name": name, "node": "/layer1/conv/Conv"}) == "/layer1/conv/Conv"
    assert words.title({"name": "497", "node": None}) == "497"


def test_locks_are_summed_by_operator_and_reason() -> None:
    lock = {"value": "w", "axis": 0, "node": "n1", "op": "Gemm", "reason": "a graph output", "params": 10}
    more = lock | {"value": "v", "params": 5, "node": "n2"}
    locks = [lock, lock | {"axis": 1}, more, lock | {"op": "", "params": 99, "node": ""}]
    assert locked.locks({"locked": locks}) == [
        locked.LockSum("a graph output", 99, ("w",), None),
        locked.LockSum("Gemm: a graph output", 15, ("n1", "n2"), None),
    ]


@pytest.mark.parametrize(
    ("opened", "text"),
    [
        ((None, None), "--x may open it"),
        ((True, True), "--x opens it"),
        ((True, False), "--x opens 10 of it"),
        ((False, False), "--x is not enough"),
    ],
)
def test_what_an_option_opens(opened: tuple[bool | None, ...], text: str) -> None:
    lock = {"axis": 0, "node": "n", "op": "Softmax", "reason": "mixes", "params": 10, "option": "--x"}
    tried = [{} if each is None else {"opened": each} for each in opened]
    (found,) = locked.locks({"locked": [lock | more | {"value": v} for v, more in zip("ab", tried, strict=True)]})
    assert found.hint == text


def test_stored_weights_are_counted_in_good_grammar() -> None:
    assert words.warnings({"folded": ["w"]}) == ["1 weight that the model computed from others is stored: w"]
    assert words.warnings({"folded": ["w", "v"]}) == [
        "2 weights that the model computed from others are stored: w and 1 more"
    ]


def test_a_lossless_run_may_find_nothing_to_remove() -> None:
    group = {"name": "w", "units": {"before": 4, "after": 4}, "macs": 1.0, "tensors": ["w"]}
    assert words.cut({"groups": [group], "options": {"target": "lossless"}}) == "nothing to remove"
    assert words.cut({"groups": [], "options": {"target": "lossless"}}) == "nothing to remove"
    assert words.cut({"groups": [group]}) == "nothing"
