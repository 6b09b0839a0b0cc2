"""Why an item stands in a slate, in a few words: what is named is that without which it would be scored lowest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from headrace.export.names import type_code
from headrace.policy.base import F32, I64
from headrace.policy.features import SCALARS
from headrace.policy.slates import boosted
from headrace.streams.items import ItemStore
from headrace.streams.reasons.words import of_items, sentences
from headrace.streams.recent import ANCHOR, Recent
from headrace.streams.rules.in_force import InForce
from headrace.streams.settings import Settings

_ENOUGH = 1e-5  # of the score: a difference below is rounding
_POPULARITY = SCALARS.index("popularity")
_POPULAR, _NEW = -1, -2
_OF_TEXTS = ("search", "comment", "post")


class Reasons:
    """Words for what attribution.py measures."""

    def __init__(self, settings: Settings) -> None:
        self._names = {type_code(name): name for name in settings.event_types} | {ANCHOR: "anchor"}
        self._said = sentences(settings.explanations.language, settings.explanations.words)
        self._of_items = of_items(self._said)
        self._bare = {key: self._said[key].format() for key in (*_OF_TEXTS, "unknown", "popular", "new")}

    def of(
        self,
        items: ItemStore,
        recent: Recent,
        lowered: F32,
        *,
        rows: I64,
        scores: F32,
        columns: F32,
        explored: NDArray[np.bool_],
        force: InForce,
        owing: Iterable[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]],
    ) -> list[list[str]]:
        """Reasons by decision and position.

        `lowered` (B, h, k) by `recent` entry; `rows`, `scores`, `explored` (B, k) and `columns` (B, k, m) are the
        slates'. `owing`: id, members by row and in which decisions (B,) of shares that had to be made up for.
        """
        best = lowered.argmax(axis=1)  # (B, k)
        most = np.take_along_axis(lowered, best[:, None], axis=1)[:, 0]
        least = _ENOUGH * (1 + np.abs(scores))
        popular = (columns[:, :, _POPULARITY] > 0) & ~explored
        named = most > least
        # Place of each position's sentence: an entry, or what is said where none is named.
        place = np.where(named, best, np.where(popular, _POPULAR, _NEW))
        told = []
        for wanted, history, codes in zip(place.tolist(), recent.rows.tolist(), recent.codes.tolist(), strict=True):
            known = {_POPULAR: self._bare["popular"], _NEW: self._bare["new"]}
            for entry in wanted:
                if entry not in known:
                    known[entry] = self._because(items, history[entry], codes[entry])
            told.append([known[entry] for entry in wanted])
        self._by_rule(told, force, owing, rows=rows, scores=scores, most=most, named=named)
        return told

    def _because(self, items: ItemStore, row: int, code: int) -> str:
        name = self._names.get(code, "")
        if row != items.none:
            return self._of_items.get(name, self._of_items["other"]).format(item=items.ids[row])
        return self._bare[name if name in _OF_TEXTS else "unknown"]

    def nothing(self, chosen: I64) -> list[list[str]]:
        """For slates (B, k) of which nothing can be told."""
        return [[self._bare["new"]] * chosen.shape[1] for _ in chosen]

    def _by_rule(
        self, told: list[list[str]], force: InForce, owing: Iterable[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]],
        *, rows: I64, scores: F32, most: F32, named: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Where a rule does more for an item than any entry: a pin always, a boost by what it adds, and a share where
        nothing else speaks for the item."""
        for rule_id, members, decisions in owing:
            self._say(told, "quota", rule_id, members[rows] & decisions[:, None] & ~named)
        if force.boosting:
            raised = most.copy()
            for rule_id, members, factor in force.boosting:
                # Of a boosted score an entry's part is as much larger as the score is.
                factors = np.where(members[rows], np.float32(factor), np.float32(1))
                adds = np.abs(boosted(scores, factors) - scores) * (factors > 1)
                of_entries = np.where(scores > 0, most * factors, most / factors)
                more = (adds > np.maximum(raised, of_entries)) & (adds > _ENOUGH)
                self._say(told, "boost", rule_id, more)
                raised = np.where(more, adds, raised)
        for rule_id, position, members in force.pins:
            if position < rows.shape[1]:
                here = np.zeros(rows.shape, np.bool_)
                here[:, position] = members[rows[:, position]]
                self._say(told, "pin", rule_id, here)

    def _say(self, told: list[list[str]], key: str, rule_id: str, where: NDArray[np.bool_]) -> None:
        sentence = self._said[key].format(rule=rule_id)
        for i, position in zip(*(found.tolist() for found in np.nonzero(where)), strict=True):
            told[i][position] = sentence
