"""Options that several verbs share, and the types that read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce
from math import isfinite
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


class Number(click.FloatRange):
    """A number in a range; `nan` and `inf`, which no range of click's keeps out, are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value} is no number to compare with; write one as in 1.5", param, ctx)
        return number


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`input=1x3x224x224`; nothing after the `=` is a scalar."""
    name, _, sizes = text.rpartition("=")
    if not name or not re.fullmatch(r"(\d+(x\d+)*)?", sizes):
        raise click.BadParameter(f"{text!r}: write the name of an input or value and its sizes, as in x=1x3x224x224")
    return name, tuple(int(n) for n in sizes.split("x") if n)


def _ratio(text: str) -> tuple[str, float]:
    """`regex=0.75`: what matches keeps that share of its units."""
    pattern, _, share = text.rpartition("=")
    try:
        return pattern, float(share)
    except ValueError:
        raise click.BadParameter(f"{text!r}: write a pattern and the share it keeps, as in layer1=0.75") from None


def several(*options: Decorator[Any]) -> Decorator[Any]:
    """Many options as one decorator, in the order of `--help`."""
    return lambda function: reduce(lambda f, option: option(f), reversed(options), function)


def examples(*lines: str) -> str:
    """An epilog that click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def shapes(given: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, tuple[int, ...]] | None:
    """What `--shape` said, as the engine takes it."""
    return dict(given) or None


model = click.argument("model")
output = click.option("-o", "out", required=True, metavar="OUT", help="Where the result goes; never MODEL itself.")
quiet = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
shape = click.option(
    "--shape",
    type=_shape,
    multiple=True,
    metavar="NAME=1x3x64x64",
    help="Size of an input, or of an inner value, that the model leaves open (repeatable).",
)
json = click.option("--json", metavar="FILE", help="Write the record as JSON; - is standard output.")
report = click.option("--report", metavar="FILE", help="Write the record as an HTML page.")
plan = click.option("--plan", metavar="FILE", help="Write the plan, for `onnxprune apply`.")
data = click.option(
    "--data",
    metavar="PATH",
    help="Inputs to check on: .npz, .npy, a folder of them or of images, test_data_set_*; or synthetic.",
)
preprocess = click.option(
    "--preprocess",
    metavar="SPEC",
    help="How images become an input: imagenet, letterbox=640, or as in resize=256,crop=224,mean=0.5,std=0.5.",
)

allow_inexact = click.option(
    "--allow-inexact", is_flag=True, help="Also cut what normalisations take their statistics over."
)
head_dims = click.option("--head-dims", is_flag=True, help="Cut inside attention heads instead of whole heads.")

runtime = several(
    click.option(
        "--provider",
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="Where the models run; see `list providers`.",
    ),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads in a node (ONNX Runtime's choice)."),
)


batch = click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="Samples in a run where latency is measured, for models that leave it open (1, or as the data have them).",
)


def recover(default: str) -> Decorator[Any]:
    """`--recover`."""
    return click.option(
        "--recover",
        type=click.Choice(["none", "bias", "channel", "full", "auto"]),
        default=default,
        show_default=True,
        help="Repair of the remaining weights: the most that is tried; auto is full, and without --data bias.",
    )


distance = click.option(
    "--distance",
    type=click.Choice(["auto", "logits", "vectors", "boxes", "values"]),
    default="auto",
    show_default=True,
    help="How answers are compared when widths and repairs are chosen; auto looks at the outputs.",
)

target = click.option(
    "--target",
    default="macs=0.5",
    show_default=True,
    metavar="WHAT",
    help="What may remain: macs=X, params=X, channels=X or latency=X with 0 < X <= 1, or X = auto for the smallest "
    "model within --max-drop; latency=5ms; threshold=X: what scores X or more, 1 being the mean of a group; or "
    "lossless.",
)

criterion = click.option(
    "--criterion",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How units are scored; see `list criteria`. A sum such as 0.7*wanda+0.3*l1 weighs several. auto: by their "
    "effect on the data, else l2.",
)
align = click.option(
    "--align", default="auto", show_default=True, metavar="auto|N", help="Widths stay multiples of this."
)
keep = click.option(
    "--keep", multiple=True, metavar="REGEX", help="Leave matching tensors and nodes whole (repeatable)."
)
seed = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of what is drawn: samples, and --criterion random.",
)

choice = several(
    criterion,
    click.option(
        "--scope",
        type=click.Choice(["auto", "global", "local", "budget", "damage"]),
        default="auto",
        show_default=True,
        help="Rank all units together, cut all groups alike, weigh importance against cost, or measure on the data "
        "what each group is worth (auto).",
    ),
    align,
    keep,
    click.option(
        "--ratio",
        "ratios",
        type=_ratio,
        multiple=True,
        metavar="REGEX=SHARE",
        help="Matching tensors and nodes keep this share; group:NAME is one group of `analyze` (repeatable).",
    ),
    click.option(
        "--combine",
        type=click.Choice(["mean", "sum", "max"]),
        default="mean",
        show_default=True,
        help="How the scores of a unit's tensors become one.",
    ),
    click.option(
        "--normalise",
        type=click.Choice(["mean", "max", "none"]),
        default="mean",
        show_default=True,
        help="How groups are made comparable.",
    ),
    seed,
    allow_inexact,
    head_dims,
    recover("auto"),
    distance,
    click.option(
        "--iterations",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Steps to the target: cut a little, repair, score again; --scope damage takes as many at least.",
    ),
    click.option(
        "--depth", is_flag=True, help="Leave out whole blocks where that keeps the answers better than less width."
    ),
)
selection = several(target, choice)
ordering = several(criterion, align, keep, seed, allow_inexact, head_dims)
inputs = several(data, preprocess, runtime, shape)

conditions = several(
    inputs,
    click.option(
        "--bench-seconds",
        "seconds",
        type=Number(0),
        default=5.0,
        show_default=True,
        metavar="S",
        help="Longest comparison of latencies; 0 leaves it out.",
    ),
)
metric = click.option(
    "--metric",
    metavar="MODULE:FUNCTION",
    help="Your own measure of a model, before and after, higher being better: metric.py:accuracy; the function is "
    "given a model to run.",
)

checks = several(
    conditions,
    click.option(
        "--min-speedup",
        type=Number(0, min_open=True),
        metavar="X",
        help="Exit 3, nothing written, if less than X times faster.",
    ),
    click.option(
        "--max-drop",
        type=Number(0),
        metavar="Y",
        help="Exit 3 likewise if a number of --metric falls by more; without one, if more than this share of top-1 "
        "answers changes (without classes: 1 - cosine).",
    ),
    metric,
    click.option("--no-validate", is_flag=True, help="Do not run the models: no proof, no figures, no gates."),
)
