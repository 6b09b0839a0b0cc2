"""What the reports look like: one page that opens without a network, its plots inline SVG in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = files("headrace.streams.insight").joinpath("page.css").read_text("utf-8")
INK, GRID = "#010203", "#040506"  # stand for the page's own colours, so that a dark page has light axes
_PLOT: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def template(package: str, name: str) -> Template:
    """A page of a package; `style` among what it is given is STYLE."""
    return Template(files(package).joinpath(name).read_text("utf-8"))


def tile(figure: str, what: str, note: str) -> str:
    return f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span><small>{escape(note)}</small></div>'


class Drawing:
    """A figure; `svg` when it is done."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.svg = ""

    def axes(self) -> Axes:
        axes: Axes = self.figure.subplots()
        axes.tick_params(length=0)
        return axes


@contextmanager
def draw(
    name: str, alt: str, *, width: float = 5.6, height: float = 3.3, style: Mapping[str, Any] | None = None
) -> Iterator[Drawing]:
    """`width` and `height` in inches; `name` is one of its own on the page, `alt` what a screen reader says."""
    name = re.sub(r"\W+", "-", name)
    plot: Any = {**_PLOT, **(style or {}), "svg.hashsalt": name}
    with matplotlib.rc_context(plot):
        drawing = Drawing(width, height)
        yield drawing
        out = io.StringIO()
        drawing.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    # An id is the page's, not the plot's alone.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    drawing.svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
