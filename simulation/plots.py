"""The report's plots as inline SVG. Ink and grid take the page's colours, so that a dark page has light axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from headrace.simulation.intervals import Estimate
from headrace.streams.insight.page import INK, Drawing, draw

COLOURS = {  # told apart also by people who do not see every colour (Okabe & Ito 2008)
    "policy": "#0072b2",
    "item_to_item": "#e69f00",
    "popular": "#cc79a7",
    "random": "#8c8c8c",
    "oracle": "#009e73",
}


_STYLE = {"axes.grid": True, "axes.grid.axis": "y", "lines.linewidth": 2.0, "lines.solid_capstyle": "round"}


@dataclass(frozen=True)
class Course:
    """One arm over time: the middle of each span in days, its mean reward and interval, each (T,)."""

    days: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def _draw(name: str, alt: str, *, width: float = 5.6, height: float = 3.1) -> AbstractContextManager[Drawing]:
    return draw(name, alt, width=width, height=height, style=_STYLE)


def reward(courses: Mapping[str, Course]) -> str:
    """Reward per decision of each arm over the shop's days, with intervals."""
    with _draw("reward", "Reward per decision of each arm over time", width=9.6, height=3.9) as drawing:
        axes = drawing.axes()
        for name, course in courses.items():
            if not len(course.days):
                continue
            colour, oracle = COLOURS.get(name, "#888888"), name == "oracle"
            axes.fill_between(course.days, course.low, course.high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(course.days, course.mean, color=colour, linestyle=(0, (4, 2)) if oracle else "-", zorder=3)
        _name_lines(axes, {n: (c.days[-1], c.mean[-1]) for n, c in courses.items() if len(c.days)})
        axes.set_ylim(bottom=0)
        axes.set_xlabel("days of the shop")
        axes.set_ylabel("reward per decision")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawing.svg


def _name_lines(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Writes each line's name at its end, moved apart where two would overlap."""
    if not ends:
        return
    top = max(axes.get_ylim()[1], 1e-9)
    placed = -np.inf
    for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        placed = max(y, placed + 0.065 * top)
        axes.annotate(
            name.replace("_", " "),
            (x, y),
            xytext=(x, placed),
            textcoords="data",
            va="center",
            ha="left",
            color=COLOURS.get(name, "#888888"),
            fontweight="bold",
            annotation_clip=False,
        ).set_x(x + 0.012 * (axes.get_xlim()[1] - axes.get_xlim()[0]))


def arms(estimates: Mapping[str, Estimate]) -> str:
    """The last third: a point and an interval each arm."""
    shown = {name: e for name, e in estimates.items() if e.decisions}
    with _draw("arms", "Reward per decision in the last third", width=5.2, height=2.9) as drawing:
        axes = drawing.axes()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        for place, (name, e) in enumerate(reversed(shown.items())):
            colour = COLOURS.get(name, "#888888")
            axes.plot([e.low, e.high], [place, place], color=colour, linewidth=5, alpha=0.35)
            axes.plot([e.mean], [place], "o", color=colour, markersize=9)
            axes.annotate(
                f"{e.mean:.3f}", (e.mean, place), xytext=(0, 9), textcoords="offset points", ha="center", color=INK
            )
        axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in reversed(shown)])
        axes.set_ylim(-0.5, max(len(shown) - 0.4, 0.5))
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("reward per decision, 95 % interval")
    return drawing.svg


def freshness(measured: Sequence[tuple[float, float]]) -> str:
    """Median and 99th percentile of each second, over the whole run's distribution."""
    with _draw("freshness", "Freshness over time") as drawing:
        axes = drawing.axes()
        if measured:
            seconds, ms = np.array(measured).T
            bins = seconds.astype(int)
            whole = np.unique(bins)
            p50 = [np.quantile(ms[bins == b], 0.5) for b in whole]
            p99 = [np.quantile(ms[bins == b], 0.99) for b in whole]
            axes.scatter(seconds[:: max(1, len(ms) // 4000)], ms[:: max(1, len(ms) // 4000)], s=2, color="#8c8c8c",
                         alpha=0.25, linewidths=0, rasterized=True)  # fmt: skip
            axes.plot(whole + 0.5, p99, color="#d55e00", label="p99 of the second")
            axes.plot(whole + 0.5, p50, color="#0072b2", label="median of the second")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, fontsize=9.5)
        axes.set_xlabel("second of the demo")
        axes.set_ylabel("ms")
    return drawing.svg


def delays(ms: NDArray[np.float64]) -> str:
    """How long outcomes waited for the first policy version that knows them."""
    with _draw("delays", "Outcome to policy") as drawing:
        axes = drawing.axes()
        if len(ms):
            top = float(np.quantile(ms, 0.999))
            axes.hist(np.clip(ms, 0, top), bins=60, color="#0072b2", alpha=0.85)
            for q, label, line in ((0.5, "median", 1), (0.99, "p99", 2)):  # on two lines: they may stand close
                x = float(np.quantile(ms, q))
                axes.axvline(x, color=INK, linewidth=1, linestyle=":")
                side = ("right", -4) if x > 0.7 * top else ("left", 4)
                axes.annotate(
                    f"{label} {x:,.0f} ms",
                    (x, axes.get_ylim()[1]),
                    xytext=(side[1], -12 * line),
                    textcoords="offset points",
                    ha=side[0],
                    fontsize=9.5,
                )
        axes.set_xlabel("ms to the first committed version that knows the outcome")
        axes.set_ylabel("outcomes")
    return drawing.svg


def throughput(sent: NDArray[np.float64], slates: NDArray[np.float64]) -> str:
    """Events sent and slates received in each second."""
    with _draw("throughput", "Events and slates a second") as drawing:
        axes = drawing.axes()
        axes.plot(np.arange(len(sent)) + 0.5, sent, color="#0072b2", label="events sent")
        axes.plot(np.arange(len(slates)) + 0.5, slates, color="#009e73", label="slates received")
        axes.set_ylim(0, 1.25 * max([1.0, *sent, *slates]))
        axes.set_xlabel("second of the demo")
        axes.set_ylabel("a second")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, fontsize=9.5)
    return drawing.svg


def versions(published: Sequence[tuple[float, int]]) -> str:
    """The learning policy's version as it grew."""
    with _draw("versions", "Policy versions over time") as drawing:
        axes = drawing.axes()
        if published:
            seconds, version = np.array(published, float).T
            axes.step(seconds, version, where="post", color="#0072b2")
            axes.set_ylim(bottom=0)
        axes.set_xlabel("second of the demo")
        axes.set_ylabel("version of the policy")
    return drawing.svg
