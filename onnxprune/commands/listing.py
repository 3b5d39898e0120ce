"""`list`: what there is to choose from, third parties' additions included."""

from __future__ import annotations

from collections.abc import Iterator

import click

from onnxprune.commands import options
from onnxprune.commands.output import show_names


@click.command("list", epilog=options.examples("onnxprune list criteria", "onnxprune list rules | grep -i conv"))
@click.argument("what", type=click.Choice(["rules", "criteria", "passes", "providers"]))
def listing(what: str) -> None:
    """List rules, criteria, passes or execution providers."""
    entries = {"rules": _rules, "criteria": _criteria, "passes": _passes, "providers": _providers}
    show_names(entries[what]())


def _rules() -> Iterator[tuple[str, str]]:
    from onnxprune.rules.base import RULES

    return ((name, _first_line(rule)) for name, rule in RULES.items())


def _criteria() -> Iterator[tuple[str, str]]:
    from onnxprune.criteria.base import CRITERIA

    return ((name, _first_line(criterion)) for name, criterion in CRITERIA.items())


def _passes() -> Iterator[tuple[str, str]]:
    """Every pass, and under it its options with their defaults, as a recipe has them."""
    from onnxprune.passes import PASSES
    from onnxprune.recipe import choices

    for name, step in PASSES.items():
        yield name, _first_line(step)
        for choice in choices(step):
            yield f"  {choice.name}" + (f" = {choice.default}" if choice.default is not None else ""), choice.text


def _providers() -> Iterator[tuple[str, str]]:
    from onnxprune.runtime import providers

    return ((short, f"{'available' if there else 'absent   '}  {name}") for short, name, there in providers())


def _first_line(item: object) -> str:
    return (item.__doc__ or "").strip().partition("\n")[0]
