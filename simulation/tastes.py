"""What the users of the simulated shop feel: latent tastes, their drift, and what wears off.

U users, I items, K categories, S styles. Everything is in logits; `ceiling · σ(logit)` is the probability that a user
who looks at an item clicks it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.simulation.catalogue import Catalogue
from headrace.simulation.settings import DAY_MS, WorldSettings

F32 = NDArray[np.float32]


class Tastes:
    def __init__(self, settings: WorldSettings, catalogue: Catalogue, rng: np.random.Generator) -> None:
        self._settings, self._catalogue, self._rng = settings, catalogue, rng
        users, items = settings.users, len(catalogue.ids)
        kinds, styles = len(catalogue.categories), len(catalogue.styles)
        # A few categories have many friends: what makes a popular baseline worth anything.
        self._fashion = rng.permutation(1.0 / np.arange(1, kinds + 1) ** 0.5)
        self.favourites: list[list[int]] = []  # (U,) categories, the dearest first
        self._strength = np.zeros((users, kinds), np.float32)  # (U, K) of the favourites
        self.style = np.zeros((users, styles), np.float32)  # (U, S)
        low, high = settings.favourite_categories
        for user in range(users):
            chosen: list[int] = []
            for _ in range(int(rng.integers(low, high + 1))):
                chosen.append(self._another_favourite(chosen))
            for kind in chosen:
                self._strength[user, kind] = rng.uniform(*settings.favourite_category)
            self.favourites.append(sorted(chosen, key=lambda kind: -self._strength[user, kind]))
            liked = rng.choice(styles, size=settings.favourite_styles + 1, replace=False)
            self.style[user, liked[:-1]] = rng.uniform(*settings.favourite_style, settings.favourite_styles)
            self.style[user, liked[-1]] = settings.disliked_style
        self._hidden = rng.normal(0, settings.hidden_taste / settings.hidden**0.5, (users, settings.hidden))
        self._purse = rng.normal(np.log(settings.price_median), 0.5, users)
        self.trend = rng.normal(0, settings.trend, items)  # (I,) passing popularity
        self.lasting = np.empty((users, items), np.float32)  # (U, I) what drifts slowly
        for user in range(users):
            self._feel(user)
        self._tired = np.zeros((users, items), np.float32)  # (U, I) as of `_tired_at`
        self._tired_at = np.zeros(users, np.int64)
        self._bought: list[set[int]] = [set() for _ in range(users)]

    def _another_favourite(self, chosen: list[int]) -> int:
        """A category in fashion, more likely from a department the user is already in."""
        weight = self._fashion.copy()
        if chosen:
            weight[np.isin(self._catalogue.department, self._catalogue.department[chosen])] *= 4
            weight[chosen] = 0
        return int(self._rng.choice(len(weight), p=weight / weight.sum()))

    def _feel(self, user: int) -> None:
        """Works a user's tastes out into one number an item."""
        settings, catalogue = self._settings, self._catalogue
        by_kind = self._strength[user].copy()
        near = np.isin(catalogue.department, catalogue.department[self.favourites[user]]) & (by_kind == 0)
        by_kind[near] = settings.same_department
        self.lasting[user] = (
            settings.bias
            + by_kind[catalogue.category]
            + self.style[user][catalogue.style]
            + settings.quality * catalogue.quality
            + catalogue.hidden @ self._hidden[user]
            - settings.price_gap * np.abs(np.log(catalogue.price) - self._purse[user])
        )

    def logits(self, user: int, intent: int, ts: int) -> F32:
        """(I,) of one user now; `intent` is the category this session is about."""
        logits: F32 = self.lasting[user] + self.trend.astype(np.float32) - self.tired(user, ts)
        logits[self._catalogue.category == intent] += self._settings.intent
        if self._bought[user]:
            logits[list(self._bought[user])] = -np.inf
        return logits

    def tired(self, user: int, ts: int) -> F32:
        """(I,) how tired the user is of each item now, a view to be added to."""
        row: F32 = self._tired[user]
        if ts > self._tired_at[user]:
            row *= 0.5 ** ((ts - self._tired_at[user]) / (self._settings.rest_days * DAY_MS))
            self._tired_at[user] = ts
        return row

    def buy(self, user: int, item: int) -> None:
        """A bought item is not wanted again."""
        self._bought[user].add(item)

    def drift(self, days: float) -> None:
        """Lets `days` pass: some users change a favourite category, items come into fashion and go out of it."""
        settings, rng = self._settings, self._rng
        for user in np.flatnonzero(rng.random(settings.users) < settings.drift_per_day * days):
            lost = int(rng.integers(len(self.favourites[user])))
            won = self._another_favourite(self.favourites[user])
            self._strength[user, self.favourites[user][lost]] = 0
            self._strength[user, won] = rng.uniform(*settings.favourite_category)
            self.favourites[user][lost] = won
            self.favourites[user].sort(key=lambda kind: -self._strength[user, kind])
            self._feel(int(user))
        kept = np.exp(-days / settings.trend_days)
        self.trend = kept * self.trend + settings.trend * (1 - kept**2) ** 0.5 * rng.standard_normal(len(self.trend))

    def choose_intent(self, user: int) -> int:
        """What a user comes for: a favourite, the dearer the likelier."""
        mine = self.favourites[user]
        return mine[int(np.argmax(self._strength[user, mine] + self._rng.gumbel(size=len(mine))))]
