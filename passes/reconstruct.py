"""Fit the weights of a cut model to the answers of the model that it was cut from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from onnx import ModelProto

from onnxprune.answers import KINDS
from onnxprune.blocks import around
from onnxprune.divergence import distance_of, off
from onnxprune.errors import OptionError, at_least, one_of
from onnxprune.expected import fold_expected
from onnxprune.graph import Graph
from onnxprune.parts import Engine
from onnxprune.passes import register
from onnxprune.patch import NOTHING, patched
from onnxprune.plan import removed_units
from onnxprune.recovery import AUTO, METHODS, Pair, recover, resolve_method, unmatched
from onnxprune.rules.base import Options
from onnxprune.samples import Turn
from onnxprune.steps import Context, Outcome


@register("reconstruct")
@dataclass(frozen=True)
class Reconstruct:
    """Restore the answers of a cut model in closed form: biases, channel maps, least squares; no labels, no gradients.

    Without data, the expected values of what was cut go into biases, as far as the weights tell them.

    Attributes:
        method: the most that is tried for a layer: none, bias, channel or full; "auto" is full, without data bias.
        seed: of the places that are sampled in the data.
        distance: how answers are compared: auto, logits, vectors, boxes or values.
    """

    alters: ClassVar[bool] = True

    method: str = AUTO
    seed: int = 0
    distance: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the model is.

        Raises:
            OptionError: an option that there is not.
        """
        one_of("--distance", self.distance, KINDS)
        resolve_method(self.method)
        at_least("--seed", self.seed, 0)

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Fit, layer after layer; the result stays if it is nearer to the original on inputs that were put aside.

        Where it is not, a method that changes less is tried.
        """
        method = resolve_method(self.method, context.data is not None)
        if context.before is None:
            raise OptionError("reconstruct: there is no cut to recover from; put it after a pass that cuts")
        if method == "none":
            return Outcome(graph.proto)
        if context.data is None:
            return self._unseen(_pair(graph, context.before, context), context)
        engine = Engine(context.provider, context.threads)
        pair = _pair(graph, context.before, context)
        original = pair.original
        samples = context.samples(original)
        tell = context.on_stage
        with context.stage("recovery"):
            distance = distance_of(original.graph, samples.aside, engine, self.distance)
            before = off(distance, graph, samples.aside, engine)
            rescale = self._rescale(pair, samples.turn(0), method, engine, tell)
            refused = dict[str, float]()
            for most in METHODS[METHODS.index(method) : 0 : -1]:
                rescale = rescale and most != "bias"
                patch, layers = recover(
                    pair, *samples.last, most, engine, self.seed, everything=True, rescale=rescale, tell=tell
                )
                after = off(distance, graph, samples.aside, engine, patch)
                if after < before:
                    break
                refused[most] = after
            worse = most in refused
            model = graph.proto if worse else context.make(lambda store: patched(graph, patch, store))
        found = {
            "samples": samples.counts,
            "source": context.data.kind if context.data else None,
            "distance": {"kind": distance.kind, "before": before, "after": after},
            "refused": refused,
            "rescaled": rescale,
            "layers": [asdict(layer) for layer in layers],
        }
        return Outcome(model, {"recover": "none" if worse else most, "recovery": found})

    def _rescale(self, pair: Pair, turn: Turn, method: str, engine: Engine, tell: Callable[[str], None]) -> bool:
        """Whether results are to have their variance back: if that is nearer on samples that neither is fitted to."""
        if method == "bias":  # weights stay as they are
            return False
        distance = distance_of(pair.original.graph, turn.choose, engine, self.distance)
        cheap = "channel" if method == "full" else method  # fades as much, and is fitted in a fraction of the time

        def far(rescale: bool) -> float:
            patch, _ = recover(pair, *turn, cheap, engine, self.seed, rescale=rescale, tell=tell)
            return off(distance, pair.cut, turn.choose, engine, patch)

        return far(True) < far(False)

    def _unseen(self, pair: Pair, context: Context) -> Outcome:
        """Fold expected values; nothing is measured."""
        graph = pair.cut
        with context.stage("recovery"):
            # What a plan with folds takes is in the weights of what stays already.
            whole = context.plan is not None and bool(context.plan.folds)
            patch, layers = (NOTHING, []) if whole else fold_expected(pair)
            changed = any(layer.method != "none" for layer in layers)
            model: ModelProto | Path = graph.path or graph.proto
            if changed:
                model = context.make(lambda store: patched(graph, patch, store))
        found = {"source": None, "distance": None, "layers": [asdict(layer) for layer in layers]}
        return Outcome(model, {"recover": "bias" if changed else "none", "recovery": found})


def _pair(graph: Graph, before: Graph, context: Context) -> Pair:
    """The model that the last cut was made of, and what it is now.

    Raises:
        OptionError: layers that lost channels are not found again.
    """
    plan = context.plan
    original = context.couple(before, Options() if plan is None else plan.options)
    removed = np.zeros(original.units, dtype=bool) if plan is None else removed_units(original, plan)
    left_out = around(b.block for b in plan.bypasses) if plan else {}
    pair = Pair(original, removed, graph, context.touched, left_out)
    if gone := unmatched(pair):
        raise OptionError(
            f"{graph.name}: reconstruct does not find {gone[0]!r}{f' and {len(gone) - 1} more' if gone[1:] else ''}, "
            "which lost channels: a pass after the cut renamed its result; put clean-up passes before the cut, or last"
        )
    return pair
