"""The standard load: every speed figure of headrace is measured with it.

Zipf (exponent 1) over 100,000 users and 20,000 items in 200 categories; of the events 60 % views, 25 % clicks, 10 %
carts,
5 % purchases, each making its user due; slates of 10 from 120 candidates, histories of 50. Fixed seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from headrace.streams.settings import Settings

USERS, ITEMS, CATEGORIES, SEED = 100_000, 20_000, 200, 11
_TYPES = np.array(["view", "click", "add_to_cart", "purchase"])
_SHARES = np.array([0.60, 0.25, 0.10, 0.05])
_encode = msgspec.json.Encoder().encode


def settings_of(data_dir: str, bootstrap: str, **more: Any) -> Settings:
    """Two partitions for two cores; every slate counts as shown, so that outcomes are joined and learned from.

    Set for throughput: a transaction of ingest takes what came in 100 ms, not in 10, and every role pays once for it.
    """
    return Settings(
        data_dir=data_dir,
        kafka={"bootstrap.servers": bootstrap},
        topics={"events_partitions": 2, "requests_partitions": 1, "interactions_partitions": 2},
        ingest={"linger": "100ms"},
        consumed={"default": "keep"},
        decisions={"assume_shown": True},
        policy={"name": "lints"},
        **more,
    )


def item_messages() -> Iterator[tuple[str, bytes]]:
    """(item_id, JSON). Vectors of the shop's own, around their category's: 20,000 texts would take a minute to
    encode."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((CATEGORIES, 64))
    for i in range(ITEMS):
        category = i % CATEGORIES
        vector = centres[category] + 0.7 * rng.standard_normal(64)
        yield (
            f"i{i}",
            _encode(
                {
                    "item_id": f"i{i}",
                    "category": f"c{category}",
                    "price": round(float(rng.lognormal(3, 1)), 2),
                    "vector": [round(float(v), 4) for v in vector],
                }
            ),
        )


def _zipf(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Ranks by Zipf's law with exponent 1, shuffled once, so that neighbours in number are not neighbours in rank."""
    weights = 1 / np.arange(1, n + 1)
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(size))
    return np.random.default_rng(SEED).permutation(n)[np.minimum(ranks, n - 1)]


def event_messages(count: int, *, seed: int = SEED, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """(user_id, JSON) of `count` events; the caller sends each at once, as its time is taken when it is made."""
    rng = np.random.default_rng((seed, start))
    users = _zipf(rng, USERS, count)
    items = _zipf(rng, ITEMS, count)
    types = rng.choice(_TYPES, count, p=_SHARES)
    for i, (user, item, kind) in enumerate(zip(users.tolist(), items.tolist(), types.tolist(), strict=True), start):
        now = int(time.time() * 1000)
        yield (
            f"u{user}",
            _encode({"event_id": f"e{i}", "user_id": f"u{user}", "item_id": f"i{item}", "type": kind, "ts": now}),
        )
