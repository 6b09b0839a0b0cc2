"""What context and placements are worth to a policy: a taste of the device, and pages that differ in what they sell.

python benchmarks/placements.py [--rounds 8000] [--seeds 3]

No Kafka: the worker's engine and the learner of the running system, fed as `simulation.loop` feeds them. Every visitor
is new and asks once; what he clicks is drawn from a probability that is known, so that a slate's expected reward is
exact, and so is the best one's.

    device      half of the categories are liked on the phone, the other half at the desk: what a policy earns with the
                field, without it, and at best
    apart       two placements with opposite tastes, one policy for both
    together    a placement that gets one visitor in ten; tastes agree but in a quarter of the categories: what it earns
                beside the large one, and as a shop of its own that has as many visitors
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.export.defaults import ensure_text, ensure_user
from headrace.simulation import catalogue as shelves
from headrace.simulation.loop import text_vectors
from headrace.simulation.settings import WorldSettings
from headrace.streams.encoder import UserEncoder
from headrace.streams.engine import Engine
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Batch, Entry, Event, Item, Request, decode_transitions
from headrace.streams.settings import Settings
from headrace.streams.texts import TextEncoder
from headrace.streams.vectors import content_hash

T0 = 1_790_000_000_000
K, AT_ONCE = 5, 20
LIKED, OTHERS = 0.30, 0.05
DEVICES = ("mobile", "desktop")
_SHELF = WorldSettings(items=300, arriving=1)
RESULT = Path(__file__).parent / "results/placements.json"
Figures = dict[str, Any]


@cache
def _world() -> tuple[shelves.Catalogue, np.ndarray]:
    catalogue = shelves.make(_SHELF)
    return catalogue, text_vectors(Settings(), catalogue)


@cache
def _encoders() -> tuple[UserEncoder, TextEncoder]:
    s = Settings()
    user = ensure_user(s.encoder.artifact, text=s.catalogue.text_model)
    return UserEncoder(user, cache_bytes=0, window=s.worker.history), TextEncoder(ensure_text(s.catalogue.text_model))


@dataclass(frozen=True)
class Visit:
    """`kind` says which column of the tastes is the visitor's."""

    placement: str
    context: dict[str, Any]
    kind: int


class Shop:
    """One partition, one worker, one learner. `tastes` (kinds, items) are the probabilities of a click."""

    def __init__(self, tastes: np.ndarray, *, seed: int, **sections: Any) -> None:
        self.settings = Settings(
            event_types={"click": {"due": False}}, decisions={"assume_shown": True},
            arms={"shares": {"policy": 1.0}, "salt": str(seed)}, **sections,
        )  # fmt: skip
        catalogue, vectors = _world()
        encoder, texts = _encoders()
        encoder.flush()
        self._items = ItemStore(encoder.tower)
        self._policies = Policies(self.settings, self._items, dim=encoder.dim)
        recommender = Recommender(
            self.settings, items=self._items, policies=self._policies, encoder=encoder, texts=texts
        )
        self._engine = Engine(self.settings, 0, recommender)
        self._learning = Learning(self.settings, dim=encoder.dim)
        self._tastes, self._random = tastes, np.random.default_rng([seed, 1])
        self._index = {item_id: i for i, item_id in enumerate(catalogue.ids)}
        self._offset = self._messages = self._number = 0
        for i, item_id in enumerate(catalogue.ids):
            raw = vectors[i].tobytes()
            category = catalogue.categories[catalogue.category[i]]
            self._items.apply(Item(item_id, 0, i, raw, content_hash(raw), float(catalogue.price[i]), category))
        self._items.settle()

    def serve(self, visits: list[Visit]) -> list[tuple[int, float]]:
        """Slates for new users, and their clicks. Of each visit its number and the slate's expected reward."""
        at = T0 + self._offset * 1_000
        names = [f"u{self._number + i}" for i in range(len(visits))]
        self._number += len(visits)
        requests: list[Entry] = [
            Request(f"q-{name}", name, at, at, k=K, placement=visit.placement, context=visit.context)
            for name, visit in zip(names, visits, strict=True)
        ]
        earned: list[tuple[int, float]] = []
        clicks: list[Entry] = []
        for user, raw in self._write(requests, at, tick=False):
            slate, number = msgspec.json.decode(raw), names.index(user)
            shown = [self._index[item["item_id"]] for item in slate["items"]]
            chances = self._tastes[visits[number].kind, shown]
            earned.append((number, float(chances.mean())))
            for position in np.flatnonzero(self._random.random(len(shown)) < chances).tolist():
                clicks.append(
                    Event(
                        f"c-{user}-{position}", user, "click", at + 500, at + 500, slate["items"][position]["item_id"],
                        recommendation_id=slate["recommendation_id"], position=position,
                    )
                )  # fmt: skip
        self._write(clicks, at + 500, tick=self._offset % 10 < 2)
        return earned

    def _write(self, entries: list[Entry], at: int, *, tick: bool) -> list[tuple[str, bytes]]:
        effects = self._engine.apply(Batch("events/0", at, False, tick, entries), self._offset)
        if effects.failed:
            raise effects.failed[0][1]
        self._engine.accept(effects)
        self._offset += 1
        for record in effects.transitions:
            for version in self._learning.apply(decode_transitions(record), self._messages):
                self._policies.apply(version)
            self._messages += 1
        return effects.recommendations


def tastes(seed: int, *, differ: float = 1.0) -> np.ndarray:
    """(2, items): two tastes that disagree in a share of the categories; both feel the items' quality."""
    catalogue, _ = _world()
    random = np.random.default_rng([seed, 2])
    categories = random.permutation(len(catalogue.categories))
    first = np.zeros(len(categories), np.bool_)
    first[categories[: len(categories) // 2]] = True
    second = first.copy()
    other = random.permutation(len(categories))[: round(differ * len(categories))]
    second[other] = ~second[other]
    liked = np.stack([first, second])[:, catalogue.category]
    return np.minimum(np.where(liked, LIKED, OTHERS) * np.exp(0.25 * catalogue.quality), 0.9)


def best(probabilities: np.ndarray) -> float:
    """Of the best slate that the catalogue has."""
    return float(np.sort(probabilities)[::-1][:K].mean())


def play(shop: Shop, visits: list[Visit]) -> np.ndarray:
    """The expected reward of every visit's slate."""
    found = np.zeros(len(visits))
    for start in range(0, len(visits), AT_ONCE):
        for number, reward in shop.serve(visits[start : start + AT_ONCE]):
            found[start + number] = reward
    return found


# -- what is shown ----------------------------------------------------------------------------------------------------

FIELD = {"device": {"kind": "category", "values": DEVICES}}
PLACES = ("home", "cart")


def device(seed: int, rounds: int, *, field: bool = True, **policy: Any) -> np.ndarray:
    """Rewards (rounds,) where the taste is the device's."""
    kinds = np.random.default_rng([seed, 3]).integers(2, size=rounds).tolist()
    shop = Shop(tastes(seed), seed=seed, context=FIELD if field else {}, policy=policy)
    return play(shop, [Visit("default", {"device": DEVICES[kind]}, kind) for kind in kinds])


def apart(seed: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (rounds,) and which placement they are of."""
    kinds = np.random.default_rng([seed, 4]).integers(2, size=rounds)
    shop = Shop(tastes(seed), seed=seed, placements={place: {} for place in PLACES})
    return play(shop, [Visit(PLACES[kind], {}, kind) for kind in kinds.tolist()]), kinds


def together(seed: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards at the small placement, a visit each: with the policy of both, and with one that knows it alone."""
    kinds = (np.random.default_rng([seed, 5]).random(rounds) < 0.1).astype(int)
    visits = [Visit(PLACES[kind], {}, kind) for kind in kinds.tolist()]
    alike = tastes(seed, differ=0.25)
    both = play(Shop(alike, seed=seed, placements={place: {} for place in PLACES}), visits)[kinds == 1]
    alone = Shop(alike, seed=seed, placements={place: {} for place in PLACES})
    return both, play(alone, [visit for visit in visits if visit.kind])


def measured(seeds: int, rounds: int) -> Figures:
    """Means over seeds, of the last quarter of the visits where not said."""
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    last = slice(rounds * 3 // 4, None)
    for seed in range(1, seeds + 1):
        opposite = tastes(seed)
        note("device_best", float(np.mean([best(row) for row in opposite])))
        note("device_blind", best(opposite.mean(axis=0)))
        note("device_random", float(device(seed, rounds // 4, name="random").mean()))
        note("device_without", float(device(seed, rounds, field=False)[last].mean()))
        note("device_with", float(device(seed, rounds)[last].mean()))
        note("device_outer", float(device(seed, rounds, outer=True)[last].mean()))
        rewards, kinds = apart(seed, rounds)
        for kind, place in enumerate(PLACES):
            note(f"apart_{place}", float(rewards[last][kinds[last] == kind].mean()))
        both, alone = together(seed, rounds)
        note("together_best", best(tastes(seed, differ=0.25)[1]))
        for name, found in (("shared", both), ("alone", alone)):
            parts = np.array_split(found, 4)
            note(f"together_{name}", float(found.mean()))
            for quarter, part in enumerate(parts, 1):
                note(f"together_{name}_{quarter}", float(part.mean()))
    return {
        "seeds": seeds, "rounds": rounds, "small": len(both), "k": K,
        **{name: round(float(np.mean(values)), 4) for name, values in rows.items()},
        "device_with_each": [round(value, 4) for value in rows["device_with"]],
        "device_without_each": [round(value, 4) for value in rows["device_without"]],
        "together_shared_each": [round(value, 4) for value in rows["together_shared"]],
        "together_alone_each": [round(value, 4) for value in rows["together_alone"]],
    }  # fmt: skip


def section(f: Figures) -> str:
    """Of docs/benchmarks.md."""

    def row(name: str, value: float, best_: float) -> str:
        return f"| {name} | {value:.3f} | {value / best_:.0%} |"

    quarters = [f"{f[f'together_shared_{q}'] / f[f'together_alone_{q}']:.2f}" for q in range(1, 5)]
    lines = [
        "## Placements and context\n",
        _INTRODUCTION.format(**f),
        "| the taste depends on the device | expected clicks an item shown | of the best slate |",
        "|---|---|---|",
        row("slates at random", f["device_random"], f["device_best"]),
        row("`neural_linear`, the field not declared", f["device_without"], f["device_best"]),
        row("the best slate that knows no device", f["device_blind"], f["device_best"]),
        row("`neural_linear`, as shipped", f["device_with"], f["device_best"]),
        row("`neural_linear`, `policy.outer`", f["device_outer"], f["device_best"]),
        row("the best slate of the catalogue", f["device_best"], f["device_best"]),
        "",
        "| two placements, one policy | expected clicks an item shown | of the best slate |",
        "|---|---|---|",
        *(row(f"opposite tastes: {place}", f[f"apart_{place}"], f["device_best"]) for place in PLACES),
        row("one visitor in ten, all of them: with the large one", f["together_shared"], f["together_best"]),
        row("the same visitors, alone", f["together_alone"], f["together_best"]),
        "",
        f"Sharing gives the small placement {', '.join(quarters)} times what it has alone in the four quarters of its",
        f"visits, which are some {f['small']:,}: what is learned elsewhere counts while it has seen little of its own."
        f" By seed {_ratios(f, 'together_shared', 'together_alone')} times over all its visits; the field is worth"
        f" {_ratios(f, 'device_with', 'device_without')} times by seed.\n",
    ]
    m = f["machine"]
    return "\n".join([*lines, f"{m['cpu']}, {m['cores']} cores, commit {m['commit']}.\n"])


def _ratios(f: Figures, one: str, other: str) -> str:
    pairs = zip(f[f"{one}_each"], f[f"{other}_each"], strict=True)
    return ", ".join(f"{a / b:.2f}" for a, b in pairs)


_INTRODUCTION = """\
Engine and learner without Kafka, the shipped settings, {rounds:,} visitors who are all new and ask once for a slate of
{k} out of a shelf of 300, {seeds} seeds (`benchmarks/placements.py`). Half of the categories are liked, and which half
depends on the device or on the placement; figures are of the last quarter of the visits where not said otherwise. The
best slate knows every probability; a policy spends a tenth on exploring and has 120 candidates.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8_000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    from system import machine

    figures = measured(given.seeds, given.rounds) | {"machine": machine()}
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
