"""Prune exported ONNX models: exact surgery, measured speed, without training.

`prune(model, target="macs=0.5") -> Result(model, plan, record)` is the whole main job. The steps behind it can be used
alone: `load`, `couple`, `score`, `allocate`, `make_plan`, `cut`; `apply` replays a plan, `analyze` tells what each
group is worth, `sweep` compares targets and `bench` measures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.allocation import allocate
    from onnxprune.analyzing import analyze
    from onnxprune.coupling import couple
    from onnxprune.criteria.base import score
    from onnxprune.errors import OnnxPruneError
    from onnxprune.graph import Graph, load
    from onnxprune.groups import Coupling
    from onnxprune.inspection import inspect
    from onnxprune.pipeline import Pipeline, Result
    from onnxprune.plan import Plan, make_plan, read_plan
    from onnxprune.problem import Limits
    from onnxprune.pruning import apply, prune
    from onnxprune.recipe import read_recipe
    from onnxprune.rules.base import Options
    from onnxprune.sensitivity import Sensitivity
    from onnxprune.surgeon import from_graphsurgeon, to_graphsurgeon
    from onnxprune.surgery import cut, mask
    from onnxprune.sweeping import sweep
    from onnxprune.target import Target, parse_target
    from onnxprune.timing import bench
    from onnxprune.tradeoff import Curve, Point
    from onnxprune.validate import Checks
    from onnxprune.writing import save

__version__ = "0.1.0"

_HOMES = {
    "allocation": ("allocate",),
    "analyzing": ("analyze",),
    "problem": ("Limits",),
    "target": ("Target", "parse_target"),
    "timing": ("bench",),
    "coupling": ("couple",),
    "groups": ("Coupling",),
    "criteria.base": ("score",),
    "errors": ("OnnxPruneError",),
    "graph": ("Graph", "load"),
    "inspection": ("inspect",),
    "pipeline": ("Pipeline", "Result"),
    "pruning": ("apply", "prune"),
    "plan": ("Plan", "make_plan", "read_plan"),
    "recipe": ("read_recipe",),
    "rules.base": ("Options",),
    "sensitivity": ("Sensitivity",),
    "surgeon": ("from_graphsurgeon", "to_graphsurgeon"),
    "surgery": ("cut", "mask"),
    "sweeping": ("sweep",),
    "tradeoff": ("Curve", "Point"),
    "validate": ("Checks",),
    "writing": ("save",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Checks",
    "Coupling",
    "Curve",
    "Graph",
    "Limits",
    "OnnxPruneError",
    "Options",
    "Pipeline",
    "Plan",
    "Point",
    "Result",
    "Sensitivity",
    "Target",
    "__version__",
    "allocate",
    "analyze",
    "apply",
    "bench",
    "couple",
    "cut",
    "from_graphsurgeon",
    "inspect",
    "load",
    "make_plan",
    "mask",
    "parse_target",
    "prune",
    "read_plan",
    "read_recipe",
    "save",
    "score",
    "sweep",
    "to_graphsurgeon",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import onnxprune` and the command line's help stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
