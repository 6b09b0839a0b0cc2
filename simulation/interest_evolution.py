"""RecSim's interest evolution as SlateQ's paper used it (Ie et al. 2019, arXiv 1905.12767, section 6.1), vectorised.

A user has interests in T topics and a budget of minutes. Each document has one topic and a quality, which belongs to
the topic but for a little noise. Of a slate at most one document is consumed, by the choice model; consuming takes its
length from the budget and gives back a bonus by its quality, and moves the interest in its topic. Choosing nothing
costs a little. A session ends with its budget. What interests most is most often trash: who serves clicks alone, ends
sessions early. Numbers are those of the public google-research/recsim, `interest_evolution.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class InterestSettings:
    topics: int = 20
    trashy: float = 0.7  # share of topics whose quality is below 0
    quality: float = 3.0  # topics' qualities lie evenly in [-quality, 0] and [0, quality]
    quality_noise: float = 0.1  # standard deviation of a document's around its topic's
    length: float = 4.0  # minutes of every document
    budget: float = 200.0  # minutes
    bonus: float = 0.9 / 3.4  # of a document's length that a quality of 1 gives back
    no_choice_cost: float = 0.5  # minutes
    candidates: int = 10
    slate: int = 3
    interest_step: float = 0.3  # y of Δ(I) = y (1 - |I|) (1 - I)
    choice: str = "proportional"  # to 1 + interest; or "logit": to exp(interest)
    null: float = 2.0  # the null document's mass in the same unit: RecSim's 1 + 1, or e

    @property
    def masses_of_logit(self) -> bool:
        return self.choice == "logit"


class InterestEvolution:
    """`users` sessions side by side. Random numbers are drawn for all in equal number a step: policies that see worlds
    of one seed meet the same users, candidates and luck."""

    def __init__(self, users: int, *, seed: int, settings: InterestSettings | None = None, restart: bool) -> None:
        """`restart`: a session that ends is followed by another user's; otherwise its row stays `over`."""
        self.settings = s = settings or InterestSettings()
        if s.choice not in ("proportional", "logit"):
            raise ValueError(f"choice is {s.choice!r}: choose proportional or logit")
        self.users, self._restart = users, restart
        self._random = np.random.Generator(np.random.Philox(seed))
        trashy = int(s.topics * s.trashy)
        low, high = np.linspace(-s.quality, 0, trashy), np.linspace(0, s.quality, s.topics - trashy)
        self.topic_quality: F64 = np.concatenate([low, high])  # (T,)
        self.interests: F64 = self._new_interests()  # (U, T) in [-1, 1]
        self.budget: F64 = np.full(users, s.budget)  # (U,)
        self.over: Bool = np.zeros(users, np.bool_)
        self.topics, self.quality = self._new_candidates()  # (U, n)

    def _new_interests(self) -> F64:
        return self._random.uniform(-1, 1, (self.users, self.settings.topics))

    def _new_candidates(self) -> tuple[I64, F64]:
        shape = (self.users, self.settings.candidates)
        topics: I64 = self._random.integers(0, self.settings.topics, shape)
        return topics, self._random.normal(self.topic_quality[topics], self.settings.quality_noise)

    def appeal(self) -> F64:
        """v(s, i) of each candidate (U, n), in the unit of `settings.null`."""
        interest = np.take_along_axis(self.interests, self.topics, axis=1)
        return np.exp(interest) if self.settings.masses_of_logit else interest + 1.0

    def step(self, slates: I64) -> tuple[I64, F64, Bool]:
        """Shows slates (U, k) of candidates' indices.

        Returns the position consumed, -1 for none (U,), the minutes watched (U,), and whose session ended with it
        (U,). Rows that are over stay so: -1, 0, False. New candidates are there afterwards.
        """
        s, rows = self.settings, np.arange(self.users)
        mass = np.take_along_axis(self.appeal(), slates, axis=1)
        cumulative = np.concatenate([mass, np.full((self.users, 1), s.null)], axis=1).cumsum(axis=1)
        u = self._random.random((self.users, 2))
        position = (cumulative <= (u[:, 0] * cumulative[:, -1])[:, None]).sum(axis=1)
        took = (position < slates.shape[1]) & ~self.over
        position = np.where(took, position, -1)
        chosen = slates[rows, position]
        topic, quality = self.topics[rows, chosen], self.quality[rows, chosen]
        watched = np.where(took, np.minimum(self.budget, s.length), 0.0)
        self._move_interest(rows[took], topic[took], u[took, 1])
        spent = np.where(took, watched * (1 - s.bonus * quality), s.no_choice_cost)
        self.budget -= np.where(self.over, 0.0, spent)
        ended = ~self.over & (self.budget <= 0)
        fresh, (self.topics, self.quality) = self._new_interests(), self._new_candidates()
        if self._restart:
            self.interests[ended], self.budget[ended] = fresh[ended], s.budget
        else:
            self.over |= ended
        return position, watched, ended

    def _move_interest(self, rows: I64, topics: I64, luck: F64) -> None:
        """I ± y (1 - |I|) (1 - I), upwards with probability (I + 1) / 2."""
        interest = self.interests[rows, topics]
        step = self.settings.interest_step * (1 - np.abs(interest)) * (1 - interest)
        up = luck < (interest + 1) / 2
        self.interests[rows, topics] = np.clip(np.where(up, interest + step, interest - step), -1, 1)
