"""Tests, and the processes that they start, keep statistics in a folder of their own."""

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before any module of tests is imported: some note the environment as they are."""
    folder = tempfile.TemporaryDirectory(prefix="onnxprune-tests-")
    os.environ["ONNXPRUNE_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)
