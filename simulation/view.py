"""The demo while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.simulation.follow import Observer
from headrace.simulation.shop import Shop

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"policy": "bold blue", "item_to_item": "yellow", "popular": "magenta", "random": "bright_black"}
_LINE_EVERY_S = 5.0
_SPANS = 16  # of the sparkline
_RECENT = 2_000  # slates over which the latest freshness is taken


class View:
    """`say` for the steps before and after trading, `show` while it goes on. Used as a context."""

    def __init__(self, console: Console, *, seconds: float, arms: list[str], policy: str) -> None:
        self._console, self._seconds, self._arms, self._policy = console, seconds, arms, policy
        self._live: Live | None = None
        self._said = float("-inf")

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def say(self, line: str) -> None:
        self.end()
        self._console.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Leaves the last picture standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, shop: Shop, observer: Observer) -> None:
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(self._picture(shop, observer), refresh=True)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            self._console.print(self._line(shop, observer), highlight=False, soft_wrap=True)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def _picture(self, shop: Shop, observer: Observer) -> Panel:
        table = Table(expand=True, box=None, padding=(0, 1))
        for name in ("arm", "slates shown", "clicks a slate", "the last quarter"):
            table.add_column(name, justify="left" if name == "arm" else "right", header_style="dim")
        table.add_column("over time", header_style="dim")
        rewards = _by_arm(shop)
        top = max([1e-9, *(max(spans, default=0.0) for spans in (_spans(rewards[a], shop) for a in self._arms))])
        for arm in self._arms:
            seen = rewards[arm]
            late = [clicks for second, clicks in seen if second > 0.75 * shop.clock.elapsed]
            table.add_row(
                Text(arm.replace("_", " "), style=_STYLES.get(arm, "")),
                f"{len(seen):,}",
                _mean([clicks for _, clicks in seen]),
                _mean(late),
                Text(_sparkline(_spans(seen, shop), top), style=_STYLES.get(arm, "")),
            )
        table.add_row(Text("oracle", style="green"), "", _mean([s.oracle for s in shop.shown]), "", "")
        bar = ProgressBar(total=self._seconds, completed=min(shop.clock.elapsed, self._seconds))
        return Panel(Group(table, Text(""), Text(self._figures(shop, observer)), bar), title="headrace demo")

    def _figures(self, shop: Shop, observer: Observer) -> str:
        elapsed = max(shop.clock.elapsed, 1e-9)
        fresh = [ms for _, ms in shop.freshness[-_RECENT:]]
        p50, p99 = np.quantile(fresh, [0.5, 0.99]) if fresh else (float("nan"), float("nan"))
        planted = shop.planted
        return (
            f"freshness p50 {p50:.0f} ms, p99 {p99:.0f} ms · {shop.sent / elapsed:,.0f} events/s ·"
            f" {shop.recommendations:,} slates · version {observer.latest(self._policy)} of the policy ·"
            f" planted {len(planted.duplicates)} duplicates, {len(planted.rubbish)} rubbish, {len(planted.late)} late"
        )

    def _line(self, shop: Shop, observer: Observer) -> str:
        rewards = _by_arm(shop)
        arms = ", ".join(f"{arm} {_mean([clicks for _, clicks in rewards[arm]])}" for arm in self._arms)
        return f"{shop.clock.elapsed:5.1f} s  clicks a slate: {arms} · {self._figures(shop, observer)}"


def _by_arm(shop: Shop) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for shown in shop.shown:
        found[shown.arm].append((shown.second, shown.clicks))
    return found


def _spans(seen: list[tuple[float, int]], shop: Shop) -> list[float]:
    """Mean clicks a slate in equal spans of the time so far."""
    if not seen:
        return []
    seconds, clicks = np.array(seen, float).T
    place = np.minimum((seconds / max(shop.clock.elapsed, 1e-9) * _SPANS).astype(int), _SPANS - 1)
    count = np.bincount(place, minlength=_SPANS)
    return list(np.bincount(place, clicks, _SPANS) / np.maximum(count, 1))


def _sparkline(values: list[float], top: float) -> str:
    return "".join(_BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] for value in values)


def _mean(values: list[int] | list[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"
