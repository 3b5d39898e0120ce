"""Arithmetic on sizes that are known, open, or a known multiple of what is open.

A size is an int or a text such as `batch`, `4*batch` or `(seq + 1)*batch`. Texts are canonical: the same product or sum
has the same text, however it was computed, so that sizes can be compared, multiplied and divided exactly. What is no
polynomial (a rounded quotient, say) is an atom named after what it is.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from math import gcd, prod
from typing import NamedTuple

Size = int | str
LARGEST = 4096  # indices of a multiple of an open size that are enumerated


class Product(NamedTuple):
    """`factor` times the atoms (sorted, repeated as powers)."""

    factor: int
    atoms: tuple[str, ...]


@lru_cache(maxsize=4096)
def parse(size: Size) -> Product:
    """A size as a product."""
    if isinstance(size, int):
        return Product(size, ())
    try:
        return _value(ast.parse(size, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return Product(1, (_named(size),))


def text(size: Product) -> Size:
    """The canonical text of a product, an int where it is known."""
    if not size.atoms or not size.factor:
        return size.factor
    if size.factor == 1 and len(size.atoms) == 1:
        return _plain(size.atoms[0])
    return "*".join([str(size.factor)] * (size.factor != 1) + list(size.atoms))


def canonical(size: Size) -> Size:
    """The one way in which this size is written."""
    return text(parse(size))


def declared(name: str) -> Size:
    """The size that a model calls so: open, even where its name is a number."""
    found = parse(name)
    return text(found if found.atoms and found.factor > 0 else Product(1, (_named(name),)))


def product(sizes: Iterable[Size]) -> Size:
    """All sizes multiplied."""
    parts = [parse(s) for s in sizes]
    return text(Product(prod(p.factor for p in parts), tuple(sorted(a for p in parts for a in p.atoms))))


def quotient(a: Size, b: Size) -> Size | None:
    """a / b where that is exact for every value of what is open, else None."""
    found = _divide(parse(a), parse(b))
    return None if found is None else text(found)


def total(a: Size, b: Size, sign: int = 1) -> Size:
    """a + b, or a - b."""
    return text(_sum([(1, parse(a)), (sign, parse(b))]))


def summed(sizes: Iterable[Size]) -> Size:
    """All sizes added."""
    return text(_sum([(1, parse(s)) for s in sizes]))


def applied(name: str, *sizes: Size) -> Size:
    """An atom: what the function called `name` makes of sizes."""
    return f"{name}({', '.join(str(text(parse(s))) for s in sizes)})"


def clamped(size: Size, start: Size, end: Size) -> Size:
    """What a slice from `start` to `end` keeps of a size that may be less."""
    return applied("kept", size, start, end)


def bound(size: Size) -> Size | None:
    """What a slice keeps at most, if `size` is `clamped`."""
    if not isinstance(size, str) or not size.startswith("kept("):
        return None
    call = ast.parse(size, mode="eval").body
    if not isinstance(call, ast.Call) or len(call.args) != 3:
        return None
    _, start, end = (text(_value(a)) for a in call.args)
    return total(end, start, -1)


def factor(size: Size | None) -> int:
    """The known factor of a size: 4 of `4*batch`."""
    return abs(parse(size).factor) if size is not None else 1


class Instance:
    """Stand-ins for what is open: primes that divide none of the known sizes.

    A multiple of an open size is a row of blocks; which indices go together in it can be enumerated with any number
    of blocks that has no factor in common with the sizes it may be regrouped with.
    """

    def __init__(self, known: Iterable[int]) -> None:
        """`known`: all the sizes that are known."""
        self._known = frozenset(known)
        self._primes = (p for p in range(11, 10**6, 2) if all(p % d for d in range(3, int(p**0.5) + 1, 2)))
        self._of: dict[str, int] = {}

    def __call__(self, size: Size) -> int:
        """A size with stand-ins for its atoms."""
        if isinstance(size, int):
            return size
        found = parse(size)
        return abs(found.factor) * prod(self._prime(a) for a in found.atoms)  # -1 * (n - 512) is a size, too

    def _prime(self, atom: str) -> int:
        if atom not in self._of:
            self._of[atom] = next(p for p in self._primes if all(k % p for k in self._known if k))
        return self._of[atom]


def _value(node: ast.expr) -> Product:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Product(int(node.value), ())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _times(Product(-1, ()), _value(node.operand))
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Mult):
            return _times(a, b)
        if isinstance(node.op, ast.Add | ast.Sub):
            return _sum([(1, a), (1 if isinstance(node.op, ast.Add) else -1, b)])
        if isinstance(node.op, ast.FloorDiv) and b.factor:
            exact = _divide(a, b)
            return exact if exact is not None else parse(applied("floor", text(a), text(b)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "size":
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            raise ValueError("no name")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Product(1, (f"{node.func.id}({', '.join(str(text(_value(a))) for a in node.args)})",))
    return Product(1, (node.id if isinstance(node, ast.Name) else ast.unparse(node),))


@cache
def _named(name: str) -> str:
    """A name that is no Python name, as one that can be read back."""
    return f"size({name!r})"


def _plain(atom: str) -> str:
    if not atom.startswith("size("):
        return atom
    name = str(ast.literal_eval(atom[5:-1]))
    return name if parse(name) == Product(1, (atom,)) else atom


def _times(a: Product, b: Product) -> Product:
    return Product(a.factor * b.factor, tuple(sorted(a.atoms + b.atoms)))


def _divide(a: Product, b: Product) -> Product | None:
    if not b.factor or a.factor % b.factor:
        return None
    left = Counter(a.atoms)
    left.subtract(b.atoms)
    if any(n < 0 for n in left.values()):
        return None
    return Product(a.factor // b.factor, tuple(sorted(left.elements())))


def _sum(parts: Sequence[tuple[int, Product]]) -> Product:
    """A sum as its common factor times one atom: its terms in order."""
    terms: Counter[tuple[str, ...]] = Counter()
    for sign, part in parts:
        for term in _terms(part):
            terms[term.atoms] += sign * term.factor
    left = [Product(n, atoms) for atoms, n in sorted(terms.items(), reverse=True) if n]
    if len(left) < 2:
        return left[0] if left else Product(0, ())
    common = gcd(*(t.factor for t in left))
    if left[0].factor < 0:
        common = -common
    shared = Counter(left[0].atoms)
    for term in left[1:]:
        shared &= Counter(term.atoms)
    whole = Product(common, tuple(sorted(shared.elements())))
    rest = [found for t in left if (found := _divide(t, whole)) is not None]
    inner = " + ".join(_term(t) for t in rest)
    return _times(whole, Product(1, (f"({inner})",)))


def _term(term: Product) -> str:
    return "*".join([str(term.factor)] * (term.factor != 1 or not term.atoms) + list(term.atoms))


def _terms(size: Product) -> list[Product]:
    """The terms of a sum times a number; anything else is one term."""
    if len(size.atoms) != 1 or not size.atoms[0].startswith("("):
        return [size]
    found: list[Product] = []
    node = ast.parse(size.atoms[0], mode="eval").body
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found.append(_value(node.right))
        node = node.left
    return [_times(Product(size.factor, ()), t) for t in (*found, _value(node))]
