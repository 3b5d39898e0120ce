"""ai.onnx.ml: what scikit-learn's exporter puts around a network."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Edit, Kept, Lock, NodeView, SetAttr, Tie, fixup, rule
from onnxprune.rules.mixing import mix

ML = "ai.onnx.ml::"


@rule(f"{ML}Scaler")
def scaler(n: NodeView) -> Iterator[Constraint]:
    """(x - offset) * scale, with one of each for all features or for each of them."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)


@fixup(f"{ML}Scaler")
def scaler_features(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The offsets and scales of the features that remain."""
    index = kept(n.x(0, -1))
    if index.size == n.shape(0)[-1]:
        return
    for name in ("offset", "scale"):
        if len(values := n.attrs.get(name, ())) > 1:
            yield SetAttr(name, [values[i] for i in index])


@rule(f"{ML}Normalizer")
def normalizer(n: NodeView) -> Iterator[Constraint]:
    """The norm is taken over the features."""
    yield from mix(n, [-1], "Normalizer takes the norm over the axis")


@rule(f"{ML}ArrayFeatureExtractor")
def extractor(n: NodeView) -> Iterator[Constraint]:
    """Picks features by index, which may be computed."""
    for dim in (*n.xs(0), *n.xs(1), *n.ys()):
        yield Lock(dim, "features are picked by index")
