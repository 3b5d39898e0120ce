"""The layer check passes on this repository, and sees what it is there to see."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def check(root: Path) -> tuple[int, list[str]]:
    """Run the check on *root*; return its exit status and the lines it prints."""
    tool = ROOT / "tools" / "check_layers.py"
    done = subprocess.run([sys.executable, tool, root], capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def tree(root: Path, **files: str) -> Path:
    """Write `onnxprune/<name>.py` for every keyword; two underscores inside a name are a slash."""
    for name, text in files.items():
        path = root / "onnxprune" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_repository() -> None:
    assert check(ROOT) == (0, ["layers: every import points down"])


@pytest.mark.parametrize(
    "statement",
    [
        "import onnxprune.cli",
        "from onnxprune import cli",
        "from onnxprune.cli import main",
        "from . import cli",
        "from .cli import main",
        "def f():\n    from onnxprune.cli import main",
        "class A:\n    import onnxprune.cli",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import onnxprune.cli",
    ],
)
def test_upward_import(tmp_path: Path, statement: str) -> None:
    line = statement.count("\n") + 1
    expected = f"onnxprune/graph.py:{line}: graph imports cli, a higher room"
    assert check(tree(tmp_path, graph=statement)) == (1, [expected])


def test_relative_import_in_a_package(tmp_path: Path) -> None:
    source = "from ..coupling import couple\nfrom . import matmul\nfrom ..graph import Graph"
    root = tree(tmp_path, rules__conv=source)
    assert check(root) == (1, ["onnxprune/rules/conv.py:1: rules imports coupling, a higher room"])


def test_the_package_itself_is_a_high_room(tmp_path: Path) -> None:
    root = tree(tmp_path, graph="from onnxprune import prune")
    assert check(root) == (1, ["onnxprune/graph.py:1: graph imports __init__, a higher room"])


def test_allowed_imports(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        cli="import onnxprune\nfrom onnxprune import graph, pipeline\nimport onnx, json",
        coupling="import typing\nif typing.TYPE_CHECKING:\n    import torch\n    import onnxprune.cli",
        pipeline="def f():\n    from onnxprune.passes import get",
        passes__simplify="from onnxprune.passes import register\nfrom onnxprune.runtime import parity",
    )
    assert check(root)[0] == 0


def test_pipeline_knows_the_registry_of_passes_only(tmp_path: Path) -> None:
    eager = "from onnxprune.passes import get\n"
    direct = "def f():\n    from onnxprune.passes import simplify\n    import onnxprune.passes.simplify\n"
    root = tree(tmp_path, passes__simplify="", pipeline=eager + direct)
    assert check(root) == (
        1,
        [
            "onnxprune/pipeline.py:1: pipeline imports passes at the top: import it inside the function that needs it",
            "onnxprune/pipeline.py:3: pipeline imports passes.simplify: look it up in the registry of passes",
            "onnxprune/pipeline.py:4: pipeline imports passes.simplify: look it up in the registry of passes",
        ],
    )


def test_torch_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, cli="def f():\n    import torch.nn")
    assert check(root) == (1, ["onnxprune/cli.py:2: imports torch: the core runs without it"])


def test_unlisted_room(tmp_path: Path) -> None:
    remark = "not in the list of rooms (tools/check_layers.py)"
    expected = [f"onnxprune/helpers: {remark}", f"onnxprune/utils.py: {remark}"]
    users = "from onnxprune.utils import a\nfrom onnxprune import helpers"
    assert check(tree(tmp_path, utils="", helpers__a="", graph=users)) == (1, expected)


def test_a_symlinked_room_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, graph="")
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "simplify.py").write_text("import onnxprune.cli")
    (tmp_path / "onnxprune" / "passes").symlink_to("../passes")
    assert check(root) == (1, ["onnxprune/passes/simplify.py:1: passes imports cli, a higher room"])
