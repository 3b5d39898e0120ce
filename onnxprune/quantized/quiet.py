"""ONNX Runtime's tools without their prints and warnings."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed or logged inside, and logging is set up afterwards as it was before."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    silent = logging.NullHandler()  # where there is no handler, `logging.warning` makes one that stays
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)
