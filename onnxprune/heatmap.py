"""A sensitivity analysis as a picture: a row for each group or layer, a column for each share that was cut."""

from __future__ import annotations

import io

import numpy as np

from onnxprune import numerals
from onnxprune.analyzed import number, title
from onnxprune.plot import METADATA, STYLE
from onnxprune.sensitivity import Sensitivity

NAME = 48  # characters of a name
INCH = 0.24  # height of a row
DECADES = 1e4  # between the darkest and the lightest


def heatmap(found: Sensitivity, suffix: str) -> bytes:
    """The picture: the darker, the more is lost, on a logarithmic scale; the most sensitive on top.

    Args:
        found: the analysis.
        suffix: .png or .svg.
    """
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    values = np.array([row.values for row in found.rows], dtype=float)
    finite = values[np.isfinite(values)]
    top = max(float(finite.max(initial=0.0)), 1e-12)
    drawn = np.clip(np.where(np.isfinite(values), values, top), top / DECADES, top)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's style is
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(8, 1.6 + INCH * len(drawn)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(drawn, aspect="auto", cmap="magma_r", norm=LogNorm(top / DECADES, top))
        axes.set_xticks(range(len(found.cuts)), [numerals.percent(cut) for cut in found.cuts])
        axes.set_yticks(range(len(drawn)), [numerals.tail(title(row), NAME) for row in found.rows], fontsize=8)
        axes.set(xlabel=f"units of the {found.by} that are cut, alone", title=found.model)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                dark = drawn[y, x] > top / DECADES**0.5
                axes.text(x, y, number(value), ha="center", va="center", fontsize=7, color="white" if dark else "black")
        figure.colorbar(image, ax=axes, label=found.what)
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix.lower().removeprefix("."), metadata=METADATA[suffix.lower()], dpi=150)
        return picture.getvalue()
