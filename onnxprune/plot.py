"""The curves of a sweep as a picture: what remains of the answers over latency, and over the size of the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OptionError
from onnxprune.tradeoff import Curve, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
# The same curves, the same bytes; letters stay text.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "onnxprune",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
}
METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def check(path: str) -> None:
    """Refuse a plot that cannot be drawn, before there is anything to draw.

    Raises:
        OptionError: the name tells no format, or matplotlib is missing.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise OptionError(f"--plot {path}: write a name that ends in {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise OptionError("--plot is drawn by matplotlib, which is missing; pip install matplotlib")


def plot(curves: Sequence[Curve], suffix: str) -> bytes:
    """The picture.

    Points on the front are filled, those that another dominates are hollow, and a ring is around the knee. Where
    latencies were not measured, the share that the target bounds stands in for them.

    Args:
        curves: those of a sweep.
        suffix: .png or .svg.
    """
    import matplotlib
    from matplotlib.figure import Figure

    timed = any(point.latency is not None for curve in curves for point in curve.points)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's style is
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, curve in enumerate(curves):
            _line(left, number, curve, _latency if timed else _cost)
            _line(right, number, curve, _size)
        left.set(
            xlabel="latency relative to the original" if timed else f"{_bounded(curves)} kept",
            ylabel="cosine of answers",
        )
        right.set(xlabel="size of the file relative to the original")
        for axes in (left, right):
            axes.grid(alpha=0.3)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix.lower().removeprefix("."), metadata=METADATA[suffix.lower()], dpi=150)
        return picture.getvalue()


def _latency(point: Point) -> float | None:
    return None if point.latency is None else point.latency.value


def _size(point: Point) -> float | None:
    return point.file_bytes


def _cost(point: Point) -> float | None:
    return None if point.error is not None else point.share


def _bounded(curves: Sequence[Curve]) -> str:
    cost = curves[0].cost
    return "MACs" if cost == "macs" else cost


def _line(axes: Axes, number: int, curve: Curve, x: Callable[[Point], float | None]) -> None:
    """The points of a model that have both figures."""
    colour = f"C{number % 10}"
    drawn = [(n, at, p.cosine) for n, p in enumerate(curve.points) if (at := x(p)) is not None and p.cosine is not None]
    axes.plot([at for _, at, _ in drawn], [y for *_, y in drawn], color=colour, linewidth=1.2, label=curve.model)
    for n, at, cosine in drawn:
        latency = curve.points[n].latency
        if x is _latency and latency is not None:
            axes.hlines(cosine, latency.low, latency.high, color=colour)
        filled = colour if n in curve.front else "white"
        axes.plot(at, cosine, marker="o", markersize=5, color=colour, markerfacecolor=filled)
        if n == curve.knee:
            axes.plot(at, cosine, marker="o", markersize=12, color=colour, fillstyle="none")
            axes.annotate(curve.points[n].target, (at, cosine), (8, -14), textcoords="offset points", fontsize=9)
