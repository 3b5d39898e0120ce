"""What was measured, kept on disk: small JSON files, each under the hash of the conditions that it holds for.

They lie in the folder of `cache`. A file that cannot be read is measured anew; what goes wrong is never said.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.cache import folder, key_of, put
from onnxprune.runtime import processors

KIND = ".latency.json"
VERSION = 1

Entry = dict[str, Any]


@cache
def machine() -> dict[str, Any]:
    """What a measurement depends on besides the model: processor, their number, and ONNX Runtime."""
    import onnxruntime

    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"machine": f"{platform.node()}, {name}", "cpus": processors(), "onnxruntime": onnxruntime.__version__}


def fetch(conditions: Mapping[str, Any]) -> Entry | None:
    """What was measured under these conditions; None: nothing, or the file is broken."""
    home = folder()
    return None if home is None else _read(_path(home, conditions))


def keep(conditions: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Keep what was measured."""
    if (home := folder()) is None:
        return
    text = json.dumps({"version": VERSION, "conditions": conditions, **entry})
    with suppress(OSError):
        put(_path(home, conditions), lambda file: file.write(text.encode()))


def entries() -> Iterator[Entry]:
    """All that is kept and can be read."""
    for path in _files():
        if (found := _read(path)) is not None:
            yield found


def clear() -> int:
    """Remove all that is kept; the number of files."""
    return sum(1 for path in _files() if _gone(path))


def _files() -> list[Path]:
    home = folder()
    found = [] if home is None else list(home.glob(f"*{KIND}*"))
    return sorted(found, key=lambda path: path.name)


def _gone(path: Path) -> bool:
    with suppress(OSError):
        path.unlink()
        return True
    return False


def _path(home: Path, conditions: Mapping[str, Any]) -> Path:
    return home / f"{key_of([json.dumps(conditions, sort_keys=True).encode()])}{KIND}"


def _read(path: Path) -> Entry | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and found.get("version") == VERSION else None
    except (OSError, ValueError, RecursionError):
        return None
