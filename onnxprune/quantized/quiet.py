"""Other people's tools without their prints and warnings, and what ONNX Runtime's refuse in one line."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from onnxprune.errors import MESSAGE_LIMIT, ModelError, one_line

WARNINGS, SILENT = 2, 4  # severities of ONNX Runtime


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed or logged inside, and Python's logging is set up afterwards as it was before.

    ONNX Runtime does not tell how much it logs: afterwards that is what it is where nobody says anything.
    """
    import onnxruntime

    root, disabled = logging.getLogger(), logging.root.manager.disable
    silent = logging.NullHandler()  # where there is no handler, `logging.warning` makes one that stays
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(SILENT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)
        logging.disable(disabled)
        root.removeHandler(silent)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Whatever the tools raise is about the model of this name: they have no errors of their own.

    Raises:
        ModelError: what they say.
    """
    try:
        yield
    except Exception as error:
        text = one_line(f"{type(error).__name__}: {error}", MESSAGE_LIMIT)
        raise ModelError(
            f"{name}: ONNX Runtime's tools cannot quantize it ({text}); see quantize's keep and ops"
        ) from error


@contextmanager
def called(name: str, path: Path) -> Iterator[None]:
    """Errors about a file that nobody knows are about the model of this name.

    Raises:
        ModelError: what was raised, with the name.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).replace(str(path), name)) from error
