"""Synthetic behaviour over real item vectors: what the default user encoder is lightly trained on.

Each user has two interests, places in the item space. He looks around one of them, searches now and then, moves on
between sessions, drifts, and clicks at random in between. There is something to learn: which events tell (a search, a
purchase) and which do not (a stray view), that a long gap may mean another interest, and that interests return.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.export.names import GAP_THRESHOLDS, type_code

_MEANT = {"view": 45, "click": 25, "add_to_cart": 10, "purchase": 7, "like": 5, "share": 3, "rating": 3, "comment": 2}
_STRAY = {"view": 70, "click": 20, "remove_from_cart": 6, "dismiss": 2, "return": 2}
_ASKED = {"search": 80, "post": 20}

_SEARCH, _STRAY_CLICK, _NEW_SESSION, _OTHER_INTEREST, _DRIFT, _UNNAMED = 0.06, 0.25, 0.15, 0.6, 0.1, 0.05
_NEIGHBOURS = 64
_SHARPNESS = 12.0  # of the choice among an interest's neighbours


@dataclass(frozen=True)
class Sequences:
    """B users, L events each."""

    items: NDArray[np.int64]  # (B, L) row of the item, -1 where the event is a text
    vectors: NDArray[np.float32]  # (B, L, d)
    types: NDArray[np.int64]  # (B, L) codes
    gaps: NDArray[np.int64]  # (B, L) buckets
    meant: NDArray[np.bool_]  # (B, L) False for a stray click


def sequences(vectors: NDArray[np.float32], n: int, length: int, *, seed: int) -> Sequences:
    """`n` users over the items whose unit vectors (N, d) are given; the same for the same seed."""
    random = np.random.default_rng(seed)
    near, weight = _neighbourhoods(vectors)
    n_items = len(vectors)
    users = np.arange(n)
    interests = random.integers(n_items, size=(n, 2))
    active = np.zeros(n, np.int64)
    items = np.full((n, length), -1, np.int64)
    tokens = np.zeros((n, length, vectors.shape[1]), np.float32)
    types = np.zeros((n, length), np.int64)
    seconds = np.zeros((n, length), np.int64)
    meant = np.ones((n, length), np.bool_)
    for step in range(length):
        session = random.random(n) < _NEW_SESSION
        active = np.where(session & (random.random(n) < _OTHER_INTEREST), 1 - active, active)
        drifts = random.random(n) < _DRIFT
        interest = interests[users, active]
        interest = np.where(drifts, near[interest, random.integers(_NEIGHBOURS // 2, size=n)], interest)
        asks = random.random(n) < _SEARCH
        interest = np.where(asks, random.integers(n_items, size=n), interest)  # a search opens something new
        interests[users, active] = interest
        stray = ~asks & (random.random(n) < _STRAY_CLICK)
        pick = (weight[interest].cumsum(axis=1) < random.random((n, 1))).sum(axis=1).clip(max=_NEIGHBOURS - 1)
        item = np.where(stray, random.integers(n_items, size=n), near[interest, pick])
        noise = random.standard_normal(tokens[:, step].shape).astype(np.float32) * (0.5 / vectors.shape[1] ** 0.5)
        words = vectors[interest] + noise
        words /= np.linalg.norm(words, axis=1, keepdims=True)
        tokens[:, step] = np.where(asks[:, None], words, vectors[item])
        items[:, step] = np.where(asks, -1, item)
        types[:, step] = np.where(
            asks, _draw(_ASKED, random, n), np.where(stray, _draw(_STRAY, random, n), _draw(_MEANT, random, n))
        )
        seconds[:, step] = np.exp(np.where(session, random.uniform(7.5, 13.5, n), random.uniform(1.0, 6.0, n))).astype(
            np.int64
        )
        meant[:, step] = ~stray & ~asks
    types[random.random(types.shape) < _UNNAMED] = 0  # code 0 learns what an event of any type says
    seconds[:, 0] = 0
    return Sequences(items, tokens, types, np.searchsorted(GAP_THRESHOLDS, seconds, side="right"), meant)


def trained_codes() -> list[int]:
    """The type codes that occur; the others are to take over what code 0 has learned."""
    return sorted({0, *(type_code(name) for name in (*_MEANT, *_STRAY, *_ASKED))})


def _neighbourhoods(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each item's nearest others (N, k), itself first, and how likely each is chosen."""
    cosine = vectors @ vectors.T
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :_NEIGHBOURS]
    weight = np.exp(_SHARPNESS * np.take_along_axis(cosine, near, axis=1).astype(np.float64))
    weight[:, 0] = weight[:, 1]  # the item in the middle is no likelier than its nearest
    return near, weight / weight.sum(axis=1, keepdims=True)


def _draw(shares: dict[str, int], random: np.random.Generator, n: int) -> NDArray[np.int64]:
    codes = np.repeat([type_code(name) for name in shares], list(shares.values()))
    return random.choice(codes, size=n)
