"""What a minimum share for new items costs: `python benchmarks/new_items.py [--events N]`.

The demo's world for two weeks, 40 items arriving a day; an item is new for seven days. The rule `share` with a `least`
of 0 (none) to 30 %, the same world each time. In the second week every slate of the arm `policy` is judged by its
expected reward, which the world knows, at the moment it is made; so the noise of clicks is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy
os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np

from headrace.simulation.loop import Loop, Models, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.world import World
from headrace.streams.rules.book import RuleBook
from headrace.streams.rules.standing import Standing
from headrace.streams.settings import Settings

RESULT = Path(__file__).parent / "results" / "new_items.json"
START_MS = 1_700_000_000_000
LEAST = (0.0, 0.05, 0.1, 0.2, 0.3)
SEEDS = (0, 1)
NEW_MS, SPAN_MS, WINDOW = 7 * DAY_MS, 14 * DAY_MS, 10_000
WORLD = replace(WorldSettings(), arriving=700)


class Watched(Loop):
    """Keeps what each slate of the second half holds, and what it is expected to earn."""

    def watch(self) -> None:
        self.slates: list[tuple[int, int, float]] = []  # places, new ones, expected reward
        apply = self.engine.apply

        def watched(batch: Any, offset: int) -> Any:
            effects = apply(batch, offset)
            for user, message in effects.recommendations if self._now_ms > START_MS + SPAN_MS // 2 else ():
                self._judge(user, msgspec.json.decode(message))
            return effects

        self.engine.apply = watched  # type: ignore[method-assign]

    def _judge(self, user: str, slate: dict[str, Any]) -> None:
        items = [self.world.index[item["item_id"]] for item in slate["items"]]
        since = [self._since[item] for item in items]
        new = sum(self._now_ms - at < NEW_MS for at in since)
        worth = (
            self.world.expected(int(user[1:]), items, self._now_ms) if slate["policy"]["arm"] == "policy" else np.nan
        )
        self.slates.append((len(items), new, worth))


def run(least: float, seed: int, events: int, models: Models, settings: Settings) -> dict[str, float]:
    world = World(WORLD, start_ms=START_MS, seed=seed)
    loop = Watched(settings, world, text_vectors(settings, world.catalogue), models=models)
    book = RuleBook(settings)
    if least:
        rule = {"rule_id": "newcomers", "action": "share", "where": {"age": {"<": "7d"}}, "value": {"least": least}}
        book.put("newcomers", json.dumps(rule).encode(), 0)
    loop.recommender.describer.rules = Standing(settings, loop.items, book)
    loop.watch()
    loop.run(events=events, start_ms=START_MS, span_ms=SPAN_MS)
    places, new, worth = (np.array(column, np.float64) for column in zip(*loop.slates, strict=True))
    windows = [new[i : i + WINDOW].sum() / places[i : i + WINDOW].sum() for i in range(0, len(new) - WINDOW + 1, 500)]
    return {
        "slates": len(new),
        "share": new.sum() / places.sum(),
        "smallest_window": min(windows, default=float("nan")),
        "largest_window": max(windows, default=float("nan")),
        "reward": float(np.nanmean(worth)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=36_000)
    given = parser.parse_args()
    settings = demo_settings()
    models = Models(settings)
    started = time.time()
    runs = {least: [run(least, seed, given.events, models, settings) for seed in SEEDS] for least in LEAST}
    curve = []
    for least, made in runs.items():
        # The same world with and without the rule, seed by seed.
        kept = [one["reward"] / none["reward"] for one, none in zip(made, runs[0.0], strict=True)]
        curve.append(
            {
                "least": least,
                "share": round(float(np.mean([one["share"] for one in made])), 4),
                "smallest_window": round(min(one["smallest_window"] for one in made), 4),
                "largest_window": round(max(one["largest_window"] for one in made), 4),
                "reward": round(float(np.mean([one["reward"] for one in made])), 4),
                "cost": round(1 - float(np.mean(kept)), 4),
                "cost_by_seed": [round(1 - one, 4) for one in kept],
            }
        )
    figures = {
        "benchmark": "new_items",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "events": given.events,
        "seeds": len(SEEDS),
        "slates_judged": sum(one["slates"] for one in runs[0.0]),
        "window": WINDOW,
        "seconds": round(time.time() - started),
        "curve": curve,
    }
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(json.dumps(figures))


def demo_settings() -> Settings:
    from importlib.resources import as_file, files

    from headrace.streams import configuration

    with as_file(files("headrace.simulation").joinpath("demo.toml")) as path:
        return configuration.load(path, {})


def section(figures: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    rows = "\n".join(
        f"| {point['least']:.0%} | {point['share']:.1%} |"
        f" {point['smallest_window']:.1%} to {point['largest_window']:.1%} |"
        f" {point['reward']:.3f} | {point['cost']:+.1%} |"
        for point in figures["curve"]
    )
    return f"""## A minimum share for new items

`make bench NAME=new_items`: the demo's world for two weeks, {figures["seeds"]} seeds, {figures["slates_judged"]:,}
slates of the second week judged by the reward that the world expects of them. An item is new for seven days. Windows
are of {figures["window"]:,} slates.

| least | share shown | by window | expected reward | cost |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
