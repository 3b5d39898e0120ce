"""Model -> model steps, a file each. A pass is a frozen dataclass; its fields are its options.

    @register("simplify")
    @dataclass(frozen=True)
    class Simplify:
        rounds: int = 1

Nothing else has to know: the first look-up imports every module beside this one, and every module that
third parties announce in the entry point group `onnxprune.passes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

# The directory stands at the top of a checkout, where Python would also find it as `passes`: a second copy.
if __name__ != "onnxprune.passes":
    raise ImportError(f"this package is imported as `onnxprune.passes`, not as `{__name__}`")

from onnxprune.registry import Registry

P = TypeVar("P")

PASSES: Registry[type[Any]] = Registry("pass", __name__)

get = PASSES.get
names = PASSES.names
load_all = PASSES.load


def name_of(step: type[Any]) -> str:
    """What a pass is called in a recipe; its class's name, where it is not registered."""
    return next((name for name, known in PASSES.items() if known is step), step.__name__.lower())


def register(name: str) -> Callable[[type[P]], type[P]]:
    """Return a class decorator that registers a frozen dataclass as the pass *name*."""

    def add(cls: type[P]) -> type[P]:
        params = getattr(cls, "__dataclass_params__", None)
        if params is None or not params.frozen:
            raise TypeError(f"{cls.__qualname__}: put @register above @dataclass(frozen=True)")
        PASSES.register(name)(cls)
        return cls

    return add
