"""Ways to recover the same cut, and the section of the page that compares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.accuracy_page import Sweep


@dataclass(frozen=True)
class Ablation:
    """What is recovered otherwise than the product does it; None: as the product chose.

    Attributes:
        method: the most that is tried.
        ridge: the only one that is tried.
        steps: what becomes of the product's steps; `ORDERS` of tools/ablate_recovery.py has the words.
        rescale: whether results get their variance back.
        samples: how many are given.
    """

    about: str
    method: str = "full"
    ridge: float | None = None
    steps: str = "as they are"
    rescale: bool | None = None
    samples: int | None = None


RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # onnxprune's, which a page is made without; a test compares
METHODS = {"none": "no recovery", "bias": "biases alone", "channel": "channel maps and biases"}
ABLATIONS = {
    "as-is": Ablation("layer after layer, its ridge chosen on samples held out"),
    **{f"only-{name}": Ablation(about, method=name) for name, about in METHODS.items()},
    **{f"ridge-{ridge:g}": Ablation(f"the ridge is {ridge:g} in all layers", ridge=ridge) for ridge in RIDGES},
    "one-shot": Ablation("all layers fitted to what the original computes of kept channels", steps="one-shot"),
    "no-branch": Ablation("the error of a sum's other branch is not made up for", steps="no-branch"),
    "no-after": Ablation("biases and statistics of layers that lost nothing stay", steps="no-after"),
    "variance-off": Ablation("results do not get their variance back", rescale=False),
    "variance-on": Ablation("results get their variance back", rescale=True),
    **{f"given-{n}": Ablation(f"as it is, with {n} samples", samples=n) for n in (16, 64, 256)},
    "given-1024": Ablation("as it is, with 1024 samples, more than `onnxprune prune` takes", samples=1024),
}


def section(sweeps: Sequence[Sweep]) -> Iterator[str]:
    """A table for each model: the value and the distance of every way."""
    if not sweeps:
        return
    yield from (
        "## Ablations",
        "",
        "What is cut is the same in all rows of a table, the choice of the default; only how the weights are recovered",
        "differs (`tools/ablate_recovery.py`).",
        "",
        "- *distance*: of the answers from the original's, on samples that nothing is fitted to; comparable within a",
        "  table, but for `given-*`: their samples are drawn anew and may be like those put aside, which are chosen to",
        "  be unlike the others",
        "- *seconds*: of the recovery alone",
        "",
        "| ablation | what it is |",
        "|---|---|",
    )
    yield from (f"| {name} | {way.about} |" for name, way in ABLATIONS.items())
    yield ""
    for sweep in sweeps:
        yield from _table(sweep)


def _table(sweep: Sweep) -> Iterator[str]:
    columns = sorted({row["share"] for row in sweep.rows}, reverse=True)
    dense = "" if sweep.dense is None else f" Dense: {sweep.dense:.3f}."
    yield from (f"### {sweep.name}, ablations", "", f"{sweep.measure}.{dense}", "")
    yield f"| ablation | {' | '.join(f'{share:g} | distance' for share in columns)} | seconds |"
    yield f"|---|{'--:|' * (2 * len(columns) + 1)}"
    for name in ABLATIONS:
        cells = [sweep.cell(name, share) for share in columns]
        done = [row for cell in cells for row in cell.rows]
        if not done:
            continue
        texts = [(c.text, f"{mean(r['distance']['after'] for r in c.rows):.4g}" if c.rows else "") for c in cells]
        yield f"| {name} | {' | '.join(f'{a} | {b}' for a, b in texts)} | {median(r['seconds'] for r in done):.1f} |"
    yield ""
