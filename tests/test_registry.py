"""Names register themselves, are found on the first look-up, and every failure names its culprit."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from onnxprune.errors import OptionError
from onnxprune.registry import Registry, RegistryError, load_package

Rule = Callable[[], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package `toy` with a registry TOYS; modules written into it are its own."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "toy"
    path.mkdir()
    (path / "__init__.py").write_text("from onnxprune.registry import Registry\nTOYS = Registry('toy', __name__)\n")
    yield path
    load_package.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in {"toy", "acme"}]:
        del sys.modules[name]


def toys() -> Registry[Rule]:
    """Import the package and return its registry."""
    importlib.invalidate_caches()
    module: ModuleType = importlib.import_module("toy")
    registry: Registry[Rule] = module.TOYS
    return registry


def rule(*names: str, returns: str) -> str:
    """The source of a module that registers a rule."""
    return f"from toy import TOYS\n@TOYS.register(*{names})\ndef rule():\n    return {returns!r}\n"


def distribution(root: Path, entry_point: str, source: str) -> None:
    """Pretend that somebody installed `acme`, with one entry point in the group `toy`."""
    info = root / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[toy]\n{entry_point}\n")
    (root / "acme.py").write_text(source)


def test_modules_are_imported_on_the_first_look_up(package: Path) -> None:
    (package / "b.py").write_text(rule("Relu", "Elu", returns="b"))
    (package / "a.py").write_text(rule("Conv", returns="a"))
    registry = toys()
    assert "toy.a" not in sys.modules
    assert registry.names() == ["Conv", "Elu", "Relu"]
    assert registry.get("Elu")() == "b"
    assert [(name, item()) for name, item in registry.items()] == [("Conv", "a"), ("Elu", "b"), ("Relu", "b")]


def test_find_returns_none_for_an_unknown_name(package: Path) -> None:
    assert toys().find("Conv") is None


def test_get_suggests_a_near_name(package: Path) -> None:
    (package / "a.py").write_text(rule("magnitude", returns="a"))
    with pytest.raises(OptionError, match="unknown toy 'magnitud': did you mean 'magnitude'"):
        toys().get("magnitud")
    with pytest.raises(OptionError, match="unknown toy 'zzz': `onnxprune list toy` shows all"):
        toys().get("zzz")


def test_a_taken_name_is_refused(package: Path) -> None:
    (package / "a.py").write_text(rule("Conv", returns="a"))
    (package / "b.py").write_text(rule("Conv", returns="b"))
    expected = r"toy 'Conv' is registered twice, by toy\.a\.rule and by toy\.b\.rule"
    for _ in range(2):
        with pytest.raises(RegistryError, match=expected):
            toys().names()


def test_a_broken_module_is_never_half_a_registry(package: Path) -> None:
    (package / "a.py").write_text(rule("Conv", returns="a"))
    (package / "b.py").write_text(rule("Relu", returns="b") + "1 / 0\n")
    registry = toys()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            registry.find("Conv")


def test_a_module_may_look_names_up_while_it_is_imported(package: Path) -> None:
    (package / "a.py").write_text(rule("Conv", returns="a"))
    (package / "b.py").write_text("from toy import TOYS\nTOYS.register('Alias')(TOYS.get('Conv'))\n")
    assert toys().names() == ["Alias", "Conv"]


def test_entry_points_register_too(package: Path) -> None:
    distribution(package.parent, "acme-rules = acme", rule("Acme", returns="acme"))
    assert toys().get("Acme")() == "acme"


@pytest.mark.parametrize(
    ("entry_point", "source", "reason"),
    [
        ("acme-rules = acme.missing", "", "ModuleNotFoundError"),
        ("acme-rules = acme", "1 / 0", "ZeroDivisionError: division by zero"),
        ("acme-rules = acme", rule("Conv", returns="acme"), "toy 'Conv' is registered twice"),
    ],
)
def test_a_broken_entry_point_is_named(package: Path, entry_point: str, source: str, reason: str) -> None:
    (package / "a.py").write_text(rule("Conv", returns="a"))
    distribution(package.parent, entry_point, source)
    with pytest.raises(RegistryError) as caught:
        toys().load()
    message = str(caught.value)
    assert "'acme-rules'" in message and "acme 1.2" in message and "group toy" in message
    assert reason in message
    assert "\n" not in message
