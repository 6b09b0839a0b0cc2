"""The simulated shop as a stream of rounds: one of twenty items is shown to whoever opens a page, and clicked or not.

Users, tastes, visits and click probabilities are those of `simulation.world`; the item vectors are made of the items'
titles and descriptions. Showing an item tires nobody here: every learner meets the same users in the same mood.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
from uci import F32, Rounds

from headrace.policy.features import FeatureMap
from headrace.simulation.settings import WorldSettings
from headrace.simulation.world import Rewards, World

WINDOW = 20  # items that can be shown, others for each seed
_DIM = 16
_HISTORY = 10
_SCALARS = ("popularity", "category_match", "price", "price_gap", "last_similarity", "max_similarity")
_STEP_MS = 20_000
_SETTINGS = WorldSettings(items=1_000, arriving=1, users=500, arrivals_per_day=0.0, stockouts_per_day=0.0)


@cache
def _vectors() -> F32:
    """(I, d) of length 1: words weighed by how rare they are, projected on their largest directions."""
    catalogue = World(_SETTINGS, start_ms=0).catalogue
    texts = [f"{title} {text}".lower() for title, text in zip(catalogue.titles, catalogue.texts, strict=True)]
    words = [text.replace(",", " ").replace(".", " ").split() for text in texts]
    column = {word: i for i, word in enumerate(sorted({word for text in words for word in text}))}
    counts = np.zeros((len(words), len(column)))
    for row, text in enumerate(words):
        for word in text:
            counts[row, column[word]] += 1
    counts *= np.log(len(words) / (counts > 0).sum(axis=0))
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    counts -= counts.mean(axis=0)
    left, size, _ = np.linalg.svd(counts, full_matrices=False)
    projected = left[:, :_DIM] * size[:_DIM]
    return (projected / np.linalg.norm(projected, axis=1, keepdims=True)).astype(np.float32)


def rounds(*, seed: int, limit: int) -> Rounds:
    """`limit` looks at the shop, after a day in which nothing was shown."""
    world = World(_SETTINGS, start_ms=0, seed=seed, rewards=Rewards(click=1.0, add_to_cart=0.0, purchase=0.0))
    random = np.random.default_rng([seed, 99])
    catalogue, vectors = world.catalogue, _vectors()
    window = random.permutation(_SETTINGS.items)[:WINDOW]
    prices = np.log1p(catalogue.price)
    history: dict[int, list[int]] = defaultdict(list)
    views = np.zeros(len(catalogue.ids))
    states, scalars, expected = [], [], []
    ts = 0
    while len(expected) < limit:
        ts += _STEP_MS
        world.advance(ts)
        visit = world.visit(ts)
        for event in visit.events:
            if event.item_id is not None:
                item = world.index[event.item_id]
                history[visit.user] = [item, *history[visit.user]][:_HISTORY]
                views[item] += 1
        if not visit.looks or ts < 24 * 3_600_000:
            continue
        seen = np.array(history[visit.user], np.int64)
        near = vectors[window] @ vectors[seen[:5]].T if len(seen) else np.zeros((WINDOW, 1), np.float32)
        gap = np.abs(prices[window] - prices[seen].mean()) / 3 if len(seen) else np.zeros(WINDOW)
        match = (catalogue.category[window][:, None] == catalogue.category[seen]).mean(axis=1) if len(seen) else gap
        popular = np.log1p(views[window]) / np.log1p(views.max())
        states.append(vectors[seen].mean(axis=0) if len(seen) else np.zeros(_DIM, np.float32))
        scalars.append(
            np.stack([popular, match, prices[window] / 10, np.minimum(gap, 1), near[:, 0], near.max(axis=1)], axis=1)
        )
        expected.append([world.expected(visit.user, [int(item)], ts) for item in window])
    map_ = FeatureMap(dim=_DIM, scalars=_SCALARS)
    user, candidate, items = np.array(states, np.float32), np.array(scalars, np.float32), vectors[window]
    shown = np.broadcast_to(items, (limit, *items.shape))
    features = map_.joint(user[:, None], np.zeros((limit, 1, 0), np.float32), shown, candidate)
    length = np.linalg.norm(user, axis=1, keepdims=True)
    # One model an action knows nothing of an action's features: it sees which of the twenty are of the user's kinds.
    kinds = candidate[:, :, _SCALARS.index("category_match")]
    return Rounds(
        name="shop",
        contexts=np.hstack([user / np.where(length > 0, length, 1), kinds]),
        states=user,
        items=items,
        scalars=candidate,
        scalar_names=_SCALARS,
        features=np.delete(features, range(map_.blocks["place"].start, map_.size), axis=2),
        expected=np.array(expected),
        uniforms=random.random(limit),
    )
