"""Whether files are still as they were when a model was read from them; weights may be read from them later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Stamp = tuple[int, int, int] | None  # node, bytes and time of the last change of a file; None: it is not there


def stamp(path: Path) -> Stamp:
    """Of a file as it is now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def changed(stamps: Mapping[Path, Stamp]) -> Path | None:
    """One of the files that is no longer as it was; None: all are."""
    return next((path for path, then in stamps.items() if stamp(path) != then), None)
