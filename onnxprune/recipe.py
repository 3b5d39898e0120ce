"""Recipes: passes and their options in a TOML file.

    [[pass]]
    name = "prune_channels"
    target = "macs=0.5"

    [[pass]]
    name = "reconstruct"

Keys are the fields of the pass. What is wrong is said with its line.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
from docstring_parser import parse

from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.order import OrderError, check_order
from onnxprune.passes import PASSES
from onnxprune.steps import Pass

TABLE = "pass"


def read_recipe(path: str | os.PathLike[str]) -> tuple[Pass, ...]:
    """The passes of a recipe, in their order: `Pipeline(read_recipe("recipe.toml")).run("model.onnx")`.

    Raises:
        OptionError: the file cannot be read, is no TOML, or names a pass or an option that there is not, or a value
            that it does not take; with the line.
    """
    file = Path(path)
    try:
        return parse_recipe(file.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: is no text in UTF-8; a recipe is a TOML file of [[{TABLE}]] tables") from error


def parse_recipe(text: str, name: str = "recipe") -> tuple[Pass, ...]:
    """The passes of a recipe that is in memory.

    Args:
        text: TOML.
        name: what the recipe is called in messages.

    Raises:
        OptionError: as for `read_recipe`.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{name}: no TOML: {error}") from error
    wrong = next((key for key, value in found.items() if key != TABLE or not _is_tables(value)), None)
    if wrong is not None:
        line = _line(text, lambda made: wrong in made)
        raise OptionError(f"{name} line {line}: {wrong!r}: a recipe has [[{TABLE}]] tables and nothing else")
    if not found.get(TABLE):
        raise OptionError(f"{name}: has no pass; write a [[{TABLE}]] table with a name for each")
    passes = tuple(_made(table, _Place(text, name, number)) for number, table in enumerate(found[TABLE]))
    try:
        check_order(passes, [table["name"] for table in found[TABLE]])
    except OrderError as error:
        raise _Place(text, name, error.number).wrong(error) from error
    return passes


@dataclass(frozen=True)
class Choice:
    """An option of a pass, for people: its name, its default as TOML has it (None: it must be given), a sentence."""

    name: str
    default: str | None
    text: str


def choices(step: type[Any]) -> list[Choice]:
    """The options of a pass, in their order."""
    said = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(step.__doc__ or "").params}
    return [Choice(each.name, _default(each), said.get(each.name, "")) for each in fields(step) if each.init]


def _default(each: Field[Any]) -> str | None:
    value = each.default if each.default_factory is MISSING else each.default_factory()
    return None if value is MISSING else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return "none" if value is None else str(msgspec.json.encode(value), "utf-8")


@dataclass(frozen=True)
class _Place:
    """The table of a pass in the text."""

    text: str
    name: str
    number: int

    def wrong(self, what: object, key: str | None = None) -> OptionError:
        """The error that names the line of a key, or of the table."""
        line = _line(self.text, lambda made: _has(made.get(TABLE), self.number, key))
        return OptionError(f"{self.name} line {line}: {what}")


def _made(table: Mapping[str, Any], place: _Place) -> Pass:
    """The pass of a table."""
    if not isinstance(table.get("name"), str):
        raise place.wrong(f'a [[{TABLE}]] needs a name, as in name = "prune_channels"; `onnxprune list passes`')
    name, given = table["name"], {key: value for key, value in table.items() if key != "name"}
    try:
        step = PASSES.get(name)
    except OptionError as error:
        raise place.wrong(error, "name") from error
    known = [each.name for each in choices(step)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise place.wrong(f"{name} has no option {key!r}: {guess}", key)
    for choice in choices(step):
        if choice.default is None and choice.name not in given:
            raise place.wrong(f"{name} needs {choice.name!r}: {choice.text}")
    try:
        made: Pass = msgspec.convert(given, step)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        field = re.match(r"`\$\.(\w+)", where)
        option = field[1] if field else None
        said = what.replace("`", "")
        raise place.wrong(f"{name}: {option}: {said}" if option else f"{name}: {said}", option) from error
    except OnnxPruneError as error:  # a value of the right type that it does not take
        mentioned = {word.replace("-", "_") for word in re.findall(r"[\w-]+", str(error).replace("--", " "))}
        said = re.sub(r"^--([\w-]+)", lambda option: f"{name}: {option[1].replace('-', '_')} =", str(error))
        raise place.wrong(said, next((each for each in given if each in mentioned), None)) from error
    return made


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _has(tables: Any, number: int, key: str | None) -> bool:
    """Whether a table of a recipe is there, and has a key."""
    return _is_tables(tables) and len(tables) > number and (key is None or key in tables[number])


def _line(text: str, there: Callable[[dict[str, Any]], bool]) -> int:
    """The line, from 1, that starts what is there once enough of a TOML text is read."""
    begun = 0  # lines that are TOML by themselves, and lack it
    for number, made in _prefixes(text):
        if there(made):
            return begun + 1
        begun = number
    return begun + 1


def _prefixes(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The first lines of a TOML text, as many as are TOML by themselves, and what they say."""
    lines = text.splitlines()
    for number in range(1, len(lines) + 1):
        try:
            yield number, tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
