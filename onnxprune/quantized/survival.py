"""Whether ONNX Runtime survives a model: a crash in its optimisations ends the process, so another one tries first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnx import ModelProto

from onnxprune.errors import ModelError

TRIAL = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.disable_prepacking", "1")
source = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.buffer.read()
onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
"""
ORDERLY = (0, 1)  # exit statuses: it loads, or Python says why not


def check_survival(model: ModelProto | Path, name: str) -> None:
    """Load a model on the CPU with all optimisations, in a process of its own.

    Args:
        model: in memory or in a file.
        name: what messages call it.

    Raises:
        ModelError: ONNX Runtime crashes.
    """
    given = [str(model)] if isinstance(model, Path) else []
    data = None if isinstance(model, Path) else model.SerializeToString()
    tried = subprocess.run([sys.executable, "-c", TRIAL, *given], input=data, capture_output=True, check=False)
    if tried.returncode not in ORDERLY:
        raise ModelError(
            f"{name}: ONNX Runtime crashes when it optimises the float16 model; leave operators float32 with "
            "quantize's keep (those at a Transpose before a MatMul are known for it)"
        )
