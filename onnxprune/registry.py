"""How a rule, a criterion or a pass finds its way in: a decorator registers it, nothing else has to know.

A package owns one `Registry`. The first look-up imports every module of that package, then every module that
third parties announce in the entry point group of the same name; importing them runs their decorators:

    RULES: Registry[Rule] = Registry("rule", __name__)

    @RULES.register("Relu", "Sigmoid")
    def elementwise(node): ...
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from onnxprune.errors import MESSAGE_LIMIT, OnnxPruneError, OptionError, one_line

T = TypeVar("T")


class RegistryError(OnnxPruneError):
    """A name is taken twice, or a third party's entry point does not load."""


class Registry(Generic[T]):
    """Names and what they stand for, filled on the first look-up."""

    def __init__(self, kind: str, package: str) -> None:
        """*kind* is the word for one item in messages; *package* also names the entry point group."""
        self.kind = kind
        self.package = package
        self._items: dict[str, T] = {}
        _ALL.append(self)

    def register(self, name: str, *more: str) -> Callable[[T], T]:
        """Return a decorator that registers its target under *name* and *more*; a taken name is refused."""

        def add(item: T) -> T:
            for key in (name, *more):
                known = self._items.setdefault(key, item)
                if known is not item:
                    raise RegistryError(
                        f"{self.kind} {key!r} is registered twice, "
                        f"by {_origin(known)} and by {_origin(item)}: rename one of them"
                    )
            return item

        return add

    def find(self, name: str) -> T | None:
        """Return what *name* stands for, or None."""
        self.load()
        return self._items.get(name)

    def get(self, name: str) -> T:
        """Return what *name* stands for; an unknown name is an error that suggests a near one."""
        item = self.find(name)
        if item is None:
            near = difflib.get_close_matches(name, self._items, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            listing = self.package.rpartition(".")[2]
            raise OptionError(f"unknown {self.kind} {name!r}: {guess}`onnxprune list {listing}` shows all")
        return item

    def items(self) -> list[tuple[str, T]]:
        """Return all names with what they stand for, by name."""
        self.load()
        return sorted(self._items.items(), key=lambda entry: entry[0])

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return [name for name, _ in self.items()]

    def load(self) -> None:
        """Import everything that may register here, the first time only."""
        if error := load_package(self.package):
            raise error


_ALL: list[Registry[Any]] = []


def registered(package: str, name: str) -> bool:
    """Whether anything is registered in a package under a name: for rooms below it, which must not import it."""
    if error := load_package(package):
        raise error
    return any(each.find(name) is not None for each in _ALL if each.package == package)


@cache
def load_package(package: str) -> Exception | None:
    """Import the modules of *package* and its entry points; return what went wrong.

    Every look-up raises that error, not only the first: half a registry must not pass for a whole one, and
    importing the failed module once more would only register its names twice.
    """
    try:
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path, f"{package}."):
            importlib.import_module(module.name)
        for point in sorted(entry_points(group=package), key=lambda point: (point.name, point.value)):
            try:
                point.load()
            except Exception as error:
                raise RegistryError(_blame(point, error)) from error
    except Exception as error:
        return error
    return None


def _origin(item: object) -> str:
    name = getattr(item, "__qualname__", type(item).__qualname__)
    return f"{getattr(item, '__module__', '?')}.{name}"


def _blame(point: EntryPoint, error: Exception) -> str:
    owner = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    reason = one_line(f"{type(error).__name__}: {error}", MESSAGE_LIMIT)
    return (
        f"entry point {point.name!r} = {point.value!r}{owner}, group {point.group}, "
        f"does not load ({reason}): fix or uninstall that package"
    )
