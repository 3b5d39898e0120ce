"""The errors that a user may meet: one hierarchy, one line each, every one saying what to do next.

Raise the subclass that names the *kind* of mistake, and write for the person at the command line: the file,
node or tensor first, then what is wrong, then what to do. The command line prints `str(error)` and ends with
`error.exit_code`; anything that is not an `OnnxPruneError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

# Characters kept of a message that comes from another library.
MESSAGE_LIMIT = 300


def one_line(text: object, limit: int | None = None) -> str:
    """The text with every run of white space turned into one blank, cut to `limit` characters if given."""
    line = " ".join(str(text).split())
    if limit is not None and len(line) > limit:
        line = line[: max(limit - 3, 0)].rstrip() + "..."
    return line


class OnnxPruneError(Exception):
    """A known failure; its text is one line that says what is wrong and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: object = "") -> None:
        """Keep the message as a single line: line breaks and repeated blanks collapse into one blank."""
        super().__init__(one_line(message))


class ModelError(OnnxPruneError):
    """A model file cannot be read, is not valid ONNX, or ONNX Runtime refuses to load or run it."""


class ShapeError(OnnxPruneError):
    """A shape is missing, contradictory or cannot be inferred."""


class PlanError(OnnxPruneError):
    """A pruning plan does not fit the model it is applied to, or its file is malformed."""


class TargetError(OnnxPruneError):
    """A `--target` cannot be parsed, is out of range or cannot be reached."""


class OptionError(OnnxPruneError):
    """An option, a recipe key or a registered name is unknown, or two options contradict each other."""


def one_of(option: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices.

    Args:
        option: how messages call it: `--scope`, or in a pass `merge: scope =`.
        value: what was given.
        choices: what may be.

    Raises:
        OptionError: with the choices.
    """
    known = tuple(choices)
    if value not in known:
        shown = repr(value) if option.endswith("=") else value
        raise OptionError(f"{option} {shown}: choose one of {', '.join(known)}")


def expressions(option: str, given: str | Sequence[str]) -> list[re.Pattern[str]]:
    """Regular expressions, one or several.

    Raises:
        OptionError: one is none.
    """
    found = []
    for pattern in (given,) if isinstance(given, str) else given:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise OptionError(f"{option} {pattern!r}: not a regular expression ({error})") from error
    return found


def at_least(option: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Raises:
        OptionError: with the least.
    """
    if value < least:
        raise OptionError(f"{option} {value}: write a whole number from {least}")


class ProviderError(OnnxPruneError):
    """An execution provider is unknown, absent from this build of ONNX Runtime, or did not start."""


class DataError(OnnxPruneError):
    """Calibration or validation data are missing, unreadable or do not fit the model's inputs."""


class MetricError(OnnxPruneError):
    """The user's own measure (`--metric`) does not load, fails, or returns no number."""


class OutputError(OnnxPruneError):
    """A result cannot be written."""


class ExecutorError(OnnxPruneError):
    """Workers that the tasks of a sweep were given to died, do not answer, or lack something."""


class ParityError(OnnxPruneError):
    """A pruned model does not compute the function of the masked original."""


class GateError(OnnxPruneError):
    """A gate set by the user (`--min-speedup`, `--max-drop`) was not passed; the run itself went well."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: object = "", record: Any = None) -> None:
        """*record* has the figures of the run that did not pass."""
        super().__init__(message)
        self.record = record
