"""What slates are worth in the simulated world, before any policy: expectations, not a run. Prints one line of JSON.

    python benchmarks/world_expectations.py

`popular` and `item_to_item` know the users' true behaviour (endless data): what such controls can reach at best.
`knows_*` are slates made from parts of the truth: what there is to learn, and from where.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from headrace.simulation.settings import WorldSettings
from headrace.simulation.world import World

K = 10


def main() -> None:
    settings = WorldSettings()
    start = 1_700_000_000_000
    world = World(settings, start_ms=start)
    tastes, catalogue, live = world.tastes, world.catalogue, world.live
    rng = np.random.default_rng(0)
    users = settings.users
    intents = np.array([tastes.choose_intent(u) for u in range(users)])
    shown = np.array([np.mean([depth > j for depth in settings.depths]) for j in range(K)])
    weight = world.examination[:K] * shown  # expected examination of each position
    traffic = np.diff(np.concatenate([[0.0], world._activity]))
    value = np.stack([world._click(tastes.logits(u, int(intents[u]), start)) * world._worth() for u in range(users)])
    value[:, ~live] = 0

    def earns(slates: NDArray[np.int64]) -> float:
        return float(((np.take_along_axis(value, slates, 1) * weight).sum(1) * traffic).sum())

    def top(scores: NDArray[np.float64]) -> NDArray[np.int64]:
        scores = np.where(live, scores, -np.inf) + rng.uniform(0, 1e-6, scores.shape)
        return np.argsort(-scores, axis=1)[:, :K]

    kind = tastes._strength[:, catalogue.category]
    style = tastes.style[:, catalogue.style]
    now = settings.intent * (catalogue.category == intents[:, None])
    quality = np.broadcast_to(settings.quality * catalogue.quality + tastes.trend, value.shape)
    views = _views(world)
    latest = np.stack([rng.choice(len(live), size=4, p=_in_session(views[u], catalogue.category, intents[u], settings))
                       for u in range(users)])  # fmt: skip
    together = views.T @ (views * traffic[:, None])  # who viewed this viewed that, over all users
    popular = np.broadcast_to((value * traffic[:, None]).sum(0), value.shape)

    earned = {
        "random": earns(np.stack([rng.choice(np.flatnonzero(live), K, replace=False) for _ in range(users)])),
        "popular": earns(top(popular)),
        "item_to_item": earns(top(together[latest].sum(1) / np.sqrt(np.maximum(together.diagonal(), 1e-12)))),
        "knows_favourites": earns(top(kind)),
        "knows_intent": earns(top(kind + now)),
        "knows_intent_and_quality": earns(top(kind + now + quality)),
        "knows_intent_and_style": earns(top(kind + now + style)),
        "knows_all_but_the_hidden": earns(top(kind + now + style + quality)),
        "oracle": earns(top(value)),
    }
    per_slate = float(shown.sum())
    print(
        json.dumps(
            {
                "reward_per_decision": {name: round(v, 4) for name, v in earned.items()},
                "reward_per_shown_item": {name: round(v / per_slate, 4) for name, v in earned.items()},
                "oracle_to_popular": round(earned["oracle"] / earned["popular"], 2),
                "items_shown_per_slate": per_slate,
            }
        )
    )


def _views(world: World) -> NDArray[np.float64]:
    """(U, I): each user's distribution of organic views over all his sessions."""
    tastes, catalogue, settings = world.tastes, world.catalogue, world.settings
    wish = np.exp(tastes.lasting.astype(np.float64) + tastes.trend) * world.live
    of_kind = np.zeros((settings.users, len(catalogue.categories)))
    for user in range(settings.users):
        mine = tastes.favourites[user]
        weight = np.exp(tastes._strength[user, mine].astype(np.float64))
        of_kind[user, mine] = weight / weight.sum()
    views = np.zeros_like(wish)
    for kind, members in enumerate(world._members):
        inside = wish[:, members]
        views[:, members] = of_kind[:, [kind]] * inside / inside.sum(1, keepdims=True)
    return views


def _in_session(
    views: NDArray[np.float64], category: NDArray[np.int64], intent: np.int64, settings: WorldSettings
) -> NDArray[np.float64]:
    """One user's views in a session about `intent`."""
    inside = views * (category == intent)
    return settings.intent_views * inside / inside.sum() + (1 - settings.intent_views) * views


if __name__ == "__main__":
    main()
