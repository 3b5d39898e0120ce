"""Arrays kept on disk, each set under the hash of what it was computed from, in a folder of bounded size.

`ONNXPRUNE_CACHE` names another folder than the platform's, or says `off`. What goes wrong here is never said: it is as
if nothing had been kept.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from platformdirs import user_cache_path

from onnxprune.feeds import Array

VARIABLE = "ONNXPRUNE_CACHE"
OFF = "off"
LIMIT = 2 << 30  # bytes of all files; beyond, those go that were not used for the longest time
KIND = ".moments.npz"


def folder() -> Path | None:
    """Where files are; None: nothing is kept."""
    said = os.environ.get(VARIABLE, "")
    if said.lower() == OFF:
        return None
    return Path(os.path.expanduser(said)) if said else user_cache_path("onnxprune", appauthor=False)


def key_of(parts: Iterable[bytes | memoryview]) -> str:
    """The hash of a sequence of bytes; where one ends and the next begins counts, too."""
    found = hashlib.sha256()
    for part in parts:
        found.update(memoryview(part).nbytes.to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def fetch(key: str) -> dict[str, Array] | None:
    """What was kept; None: nothing, or the file is broken."""
    if (home := folder()) is None:
        return None
    path = home / f"{key}{KIND}"
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        with np.load(path) as arrays:
            found = dict(arrays)
    except Exception:  # a broken file breaks in too many ways to name them
        return None
    with suppress(OSError):
        os.utime(path)  # used now
    return found


def keep(key: str, arrays: Mapping[str, Array]) -> None:
    """Keep arrays, and let go of what is then too much. Others may read and write the same folder meanwhile."""
    home = folder()
    if home is None or sum(a.nbytes for a in arrays.values()) > LIMIT:
        return
    with suppress(OSError):
        put(home / f"{key}{KIND}", lambda file: np.savez(file, allow_pickle=False, **arrays))
        _bound(home)


def put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, and move it into place. The folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _bound(home: Path) -> None:
    """Remove the oldest files beyond the limit, those that a killed run left half written, too."""
    files = []
    for path in home.glob(f"*{KIND}*"):
        with suppress(OSError):  # another run was quicker
            about = path.stat()
            files.append((about.st_mtime_ns, about.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > LIMIT:
            with suppress(OSError):
                path.unlink()
