"""The scalar features of shown items, had one of the latest history entries not been: scalars.py with each left out.

What lies beyond the latest ten, or five, moves up by one. B = decisions, h = entries left out, k = items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.policy.features import SCALARS
from headrace.streams.candidates import RECENT
from headrace.streams.recent import NEAR, Recent
from headrace.streams.scalars import OFTEN, Shelf, own_count
from headrace.streams.state import UserState

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_AT = {name: place for place, name in enumerate(SCALARS)}
_FIVE = NEAR - 1
_ELSE = np.where(np.eye(_FIVE, NEAR, dtype=np.bool_), -np.inf, 0).astype(np.float32)[:, :, None]


class Following(Protocol):
    """What follows what, as `policies.Policies` knows it."""

    def shares(self, recent: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[F32, F32]: ...


def _fading() -> F32:
    """Weights (5, 6) of the latest six without each of the five: 1, 1/2, 1/3, … over those left."""
    place, gone = np.arange(NEAR), np.arange(_FIVE)[:, None]
    weights = 1 / np.where(place < gone, place + 1, np.maximum(place, 1))
    weights[gone == place] = 0
    return weights.astype(np.float32)


_FADING = _fading()


def scalars_without(
    items: Shelf,
    policies: Following,
    recent: Recent,
    states: Sequence[UserState],
    rows: I64,
    vectors: F32,
    columns: F32,
    *,
    entries: int = RECENT,
) -> F32:
    """float32 (B, h, k, m) without each of the latest `entries`.

    Of the items `rows` (B, k) with `vectors` (B, k, d) and scalars `columns` (B, k, m).
    """
    out = np.empty((len(rows), len(SCALARS), entries, rows.shape[1]), np.float32)
    out[:] = columns.transpose(0, 2, 1)[:, :, None, :]
    similarity = np.matmul(recent.near, vectors.transpose(0, 2, 1))  # (B, 6, k)
    out[:, _AT["last_similarity"], 0] = similarity[:, 1]
    out[:, _AT["max_similarity"], :_FIVE] = (similarity[:, None] + _ELSE[:entries]).max(axis=2)
    known = recent.rows != items.none
    _category(out[:, _AT["category_match"]], items, recent, known, items.category[rows])
    _price(out[:, _AT["price_gap"]], items, recent, known, items.log_price[rows])
    _following(out[:, _AT["co_view"]], out[:, _AT["co_buy"]], policies, recent, items.keys[rows])
    _itself(out[:, _AT["recency"]], out[:, _AT["own_count"]], recent, known, rows, states)
    return out.transpose(0, 2, 3, 1)


def _category(out: F32, items: Shelf, recent: Recent, known: NDArray[np.bool_], category: NDArray[np.int32]) -> None:
    of_history = np.where(known, items.category[recent.rows], -2)
    same = (of_history[:, :, None] == category[:, None, :]) & (category >= 0)[:, None, :]
    left = same.sum(axis=1, dtype=np.float32)[:, None] - same[:, : out.shape[1]]
    out[:] = left / np.maximum(known.sum(axis=1)[:, None] - known[:, : out.shape[1]], 1).astype(np.float32)[:, :, None]


def _price(out: F32, items: Shelf, recent: Recent, known: NDArray[np.bool_], price: F32) -> None:
    paid = np.where(known, items.log_price[recent.rows], np.float32(0))
    count = (paid > 0).sum(axis=1)[:, None] - (paid[:, : out.shape[1]] > 0)
    mean = (paid.sum(axis=1)[:, None] - paid[:, : out.shape[1]]) / np.maximum(count, 1).astype(np.float32)
    gap = np.minimum(np.abs(price[:, None] - mean[:, :, None]) / 3, 1)
    out[:] = gap * ((count > 0)[:, :, None] & (price > 0)[:, None])


def _following(views: F32, buys: F32, policies: Following, recent: Recent, keys: NDArray[np.uint64]) -> None:
    six = recent.keys[:, :NEAR]
    weights = _FADING[: views.shape[1]] * (six != 0)[:, None]  # (B, h ≤ 5, 6)
    weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1e-9)
    for out, shares in zip((views, buys), policies.shares(six, keys), strict=True):
        out[:, :_FIVE] = np.sqrt(np.minimum(np.matmul(weights, shares), 1))


def _itself(
    recency: F32, own: F32, recent: Recent, known: NDArray[np.bool_], rows: I64, states: Sequence[UserState]
) -> None:
    """Of items that stand in the history themselves."""
    here = (recent.rows[:, :, None] == rows[:, None]) & known[:, :, None]  # (B, 11, k)
    at, item = np.nonzero(here.any(axis=1))
    if not len(at):
        return
    places = here[at, :, item]  # (q, 11)
    number = np.arange(len(at))
    first = places.argmax(axis=1)
    again = places.copy()
    again[number, first] = False
    next_ = np.where(again.any(axis=1), 1 / np.maximum(again.argmax(axis=1), 1), 0)  # it moves up by one
    gone = np.arange(own.shape[1])
    moved = np.where(gone < first[:, None], 1 / np.maximum(first, 1)[:, None], 1 / (first + 1)[:, None])
    recency[at, :, item] = np.where(gone == first[:, None], next_[:, None], moved)
    own[at, :, item] = _times_less(own[at, 0, item], places[:, : len(gone)], at, recent, states)


def _times_less(own: F32, places: NDArray[np.bool_], at: I64, recent: Recent, states: Sequence[UserState]) -> F32:
    """`own_count` (q, h) of items taken once less where their entry is gone; what was consumed stays consumed."""
    counted = places & ~(
        recent.anchored[at, None] & (np.arange(places.shape[1]) == 0)
    )  # looked at, and not in the history
    times = np.rint(np.expm1(own * np.log1p(OFTEN)))
    less = np.maximum(times - 1, 0)
    for q, i in enumerate(at.tolist()):
        notes = states[i].notes
        if notes is not None and notes.taken:
            key = int(recent.keys[i, int(places[q].argmax())])
            in_history = int((states[i].history_keys() == np.uint64(key)).sum())
            less[q] = max(in_history - 1, notes.taken.get(key, 0))
    return np.where(counted & (own < 1)[:, None], own_count(less)[:, None], own[:, None])
