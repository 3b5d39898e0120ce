"""Recipes: passes from TOML, and errors that name the line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxprune.errors import OptionError
from onnxprune.passes import get, names
from onnxprune.recipe import choices, parse_recipe, read_recipe

GOOD = """
# half, and repaired
[[pass]]
name = "prune_channels"
target = "macs=0.5"
align = 8
keep = ["^stem", "head$"]
ratios = [
    ["conv1", 0.5],
    ["conv2", 1],
]

[[pass]]
name = "reconstruct"
method = "bias"
"""


def test_passes_in_order_with_their_options() -> None:
    first, second = parse_recipe(GOOD)
    ratios = (("conv1", 0.5), ("conv2", 1.0))
    made = get("prune_channels")(target="macs=0.5", align=8, keep=["^stem", "head$"], ratios=list(ratios))
    assert first == made
    assert second == get("reconstruct")(method="bias")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"r.toml: has no pass; write a \[\[pass\]\] table"),
        ("pass = []", r"r.toml: has no pass; write a \[\[pass\]\] table"),
        ("a = ", r"r.toml: no TOML: Invalid value \(at "),
        ("\n[passes]\nname = 1", r"r.toml line 2: 'passes': a recipe has \[\[pass\]\] tables and nothing else"),
        ('[pass]\nname = "reconstruct"', r"r.toml line 1: 'pass': a recipe has \[\[pass\]\] tables"),
        ("pass = 3", r"r.toml line 1: 'pass': a recipe has"),
        ('[[pass]]\nnam = "reconstruct"', r"r.toml line 1: a \[\[pass\]\] needs a name"),
        ("\n[[pass]]\n\nname = 3", r"r.toml line 2: a \[\[pass\]\] needs a name"),
        ('[[pass]]\n# the last\n\nname = "recontruct"', r"r.toml line 4: unknown pass 'recontruct': did you mean"),
        (
            '[[pass]]\nname = "reconstruct"\n[[pass]]\nmetod = "full"\nname = "reconstruct"',
            "r.toml line 4: reconstruct has no option 'metod': did you mean 'method'",
        ),
        ('[[pass]]\nname = "reconstruct"\nx = 1', "r.toml line 3: reconstruct has no option 'x': it has method, seed"),
        (
            '[[pass]]\nname = "reconstruct"\nseed = "one"',
            r"r.toml line 3: reconstruct: seed: Expected int, got str",
        ),
        ('[[pass]]\nname = "reconstruct"\nseed = 1.5', r"r.toml line 3: reconstruct: seed: Expected int, got float"),
        (
            '[[pass]]\nname = "prune_channels"\nkeep = ["a"]\nratios = [\n  ["a"],\n]\nseed = 1',
            r"r.toml line 4: prune_channels: ratios: Expected array of length 2, got 1",
        ),
        (
            '[[pass]]\nname = "prune_channels"\nseed = 1\ntarget = "macs=2"',
            r"r.toml line 4: prune_channels: target = macs=2: write channels=X",
        ),
        (
            '[[pass]]\nname = "prune_channels"\ncriterion = """\nl3"""\nscope = "local"',
            r"r.toml line 3: unknown criterion",
        ),
        (
            '[[pass]]\nname = "prune_channels"\nscope = "all"',
            r"r.toml line 3: prune_channels: scope = all: choose one of auto",
        ),
        (
            '[[pass]]\nname = "prune_channels"\nhead_dims = 1',
            r"r.toml line 3: prune_channels: head_dims: Expected bool",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=f"^{said}"):
        parse_recipe(text, "r.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none.toml: cannot be read \(No such file or directory\); check the path"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "model.toml").write_bytes(b"\x08\xff\xfe")
    with pytest.raises(OptionError, match=r"model.toml: is no text in UTF-8"):
        read_recipe(tmp_path / "model.toml")


def test_choices_have_defaults_and_sentences() -> None:
    @dataclass(frozen=True)
    class Drop:
        """Drop something.

        Attributes:
            count: how many;
                at least one.
            names: of what.
            most: at most; none: any number.
        """

        count: int
        names: tuple[str, ...] = ("a", "b")
        most: float | None = None

    assert [(c.name, c.default, c.text) for c in choices(Drop)] == [
        ("count", None, "how many; at least one."),
        ("names", '["a", "b"]', "of what."),
        ("most", "none", "at most; none: any number."),
    ]


@pytest.mark.parametrize("name", names())
def test_every_option_of_our_passes_has_a_sentence(name: str) -> None:
    assert all(choice.text and choice.default is not None for choice in choices(get(name)))
