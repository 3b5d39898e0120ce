"""Well-known families, as both of torch's exporters write them: every cut is exact, and cuts deep enough to matter."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs torch", allow_module_level=True)

# Any: mypy need not follow into torch.
exporting: Any = importlib.import_module("models.export")
NAMES = sorted(importlib.import_module("models.architectures").ARCHITECTURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")
