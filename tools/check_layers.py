"""Check that data flow one way: a lower room of `onnxprune` never imports a higher one, and none torch.

Usage: python tools/check_layers.py [ROOT]

Imports inside functions count; imports under `if TYPE_CHECKING:` do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# From lowest to highest. A room is a module or a package of `onnxprune`; adding one is adding a line.
ROOMS = (
    "default",
    "errors",
    "registry",
    "pareto",
    "feeds",
    "formats",
    "batches",
    "data",
    "runtime",
    "parity",
    "fidelity",
    "calls",
    "timing",
    "metric",
    "uses",
    "shapes",
    "symbolic",
    "tensors",
    "sparse",
    "wire",
    "opening",
    "inlining",
    "folding",
    "stamps",
    "graph",
    "bodies",
    "lookup",
    "writing",
    "sizes",
    "number",
    "arithmetic",
    "shapeflow",
    "resolve",
    "rules",
    "zeros",
    "spread",
    "solver",
    "groups",
    "coupling",
    "web",
    "explain",
    "surgeon",
    "rewrite",
    "noops",
    "tidying",
    "sums",
    "folds",
    "matcher",
    "fusions",
    "affine",
    "absorb",
    "patch",
    "parts",
    "blocks",
    "bypass",
    "settle",
    "padding",
    "samples",
    "solve",
    "dual",
    "moments",
    "bilinear",
    "consumers",
    "products",
    "routes",
    "meetings",
    "histogram",
    "instrument",
    "calibrate",
    "cache",
    "recall",
    "observe",
    "boxes",
    "picks",
    "answers",
    "likeness",
    "matching",
    "divergence",
    "plan",
    "shape_inputs",
    "edits",
    "surgery",
    "cost",
    "target",
    "budget",
    "problem",
    "allocation",
    "latency",
    "curves",
    "criteria",
    "trials",
    "damage",
    "refit",
    "branches",
    "renorm",
    "scores",
    "recovery",
    "shares",
    "survey",
    "look",
    "without",
    "shallow",
    "iterate",
    "stages",
    "lossless",
    "expected",
    "sparsity",
    "savings",
    "depth",
    "clusters",
    "ties",
    "kinship",
    "steps",
    "order",
    "outcome",
    "quantized",
    "merging",
    "inspection",
    "passes",
    "recipe",
    "testing",
    "validate",
    "gates",
    "smallest",
    "pipeline",
    "pruning",
    "sensitivity",
    "analyzing",
    "timetable",
    "placed",
    "numerals",
    "locked",
    "words",
    "clocked",
    "explained",
    "report",
    "tradeoff",
    "tasks",
    "compare",
    "sweeping",
    "swept",
    "analyzed",
    "plot",
    "heatmap",
    "__init__",
    "commands",
    "cli",
    "__main__",
)

# (room, package): the package alone, never one of its modules, and only inside a function.
LAZY = {("pipeline", "passes"), ("pruning", "passes")}

# A pruned model needs no framework, and neither does pruning it.
FORBIDDEN = {"torch"}


class Import(NamedTuple):
    """What is imported (`onnxprune.rules.conv`), at which line, and whether only when a function runs."""

    name: str
    line: int
    lazy: bool


def imports(node: ast.AST, package: list[str], lazy: bool = False) -> Iterator[Import]:
    """All imports below *node*; *package* is what `from . import` starts from."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = package[: len(package) - child.level + 1] if child.level else []
            base = ".".join([*start, *filter(None, [child.module])])
            yield from (Import(f"{base}.{alias.name}", child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(child.orelse, []), package, lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(child, package, lazy or inside)


def complaint(room: str, found: Import, package: Path) -> str | None:
    """What is wrong with an import in *room*, if anything."""
    top, _, rest = found.name.partition(".")
    if top in FORBIDDEN:
        return f"imports {top}: the core runs without it"
    if top != package.name:
        return None
    head, _, inner = rest.partition(".")
    if head not in ROOMS and head in {entry.stem for entry in package.iterdir()}:
        return None  # an unlisted room: one complaint is enough
    target = head if head in ROOMS else "__init__"
    if target == room:
        return None
    if ROOMS.index(target) > ROOMS.index(room):
        return f"{room} imports {target}, a higher room"
    if (room, target) in LAZY:
        if not found.lazy:
            return f"{room} imports {target} at the top: import it inside the function that needs it"
        if inner and (package / target / f"{inner.partition('.')[0]}.py").exists():
            return f"{room} imports {rest}: look it up in the registry of {target}"
    return None


def check(root: Path) -> list[str]:
    """All complaints about the package `onnxprune` below *root*, one line each."""
    package = root / "onnxprune"
    lines = []
    for entry in sorted(package.iterdir()):
        # A room may be a symlink to a directory, and a recursive glob enters it only when it starts there.
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry] if entry.suffix == ".py" else []
        room = entry.stem
        if files and room not in ROOMS:
            lines.append(f"{entry.relative_to(root)}: not in the list of rooms (tools/check_layers.py)")
            continue
        for file in files:
            path = file.relative_to(root)
            for found in imports(ast.parse(file.read_bytes(), str(path)), list(path.parent.parts)):
                if problem := complaint(room, found, package):
                    lines.append(f"{path}:{found.line}: {problem}")
    return lines


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    lines = check(root)
    print("\n".join(lines) or "layers: every import points down")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
