"""The door of `onnxprune.passes`: one name to import it by, and frozen dataclasses only."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune import passes

ROOT = Path(__file__).resolve().parent.parent


def test_plain_passes_is_refused_in_one_clear_line() -> None:
    done = subprocess.run([sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ImportError: this package is imported as `onnxprune.passes`, not as `passes`"
    )


def test_all_passes_are_found() -> None:
    passes.load_all()
    modules = {passes.get(name).__module__ for name in passes.names()}
    assert all(module.startswith("onnxprune.passes.") for module in modules)


def test_a_pass_must_be_a_frozen_dataclass() -> None:
    class Plain:
        pass

    @dataclasses.dataclass
    class Thawed:
        pass

    for cls in (Plain, Thawed):
        with pytest.raises(TypeError, match=r"put @register above @dataclass\(frozen=True\)"):
            passes.register("never")(cls)
    assert "never" not in passes.names()
