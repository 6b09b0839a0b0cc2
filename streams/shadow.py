"""Slates that nobody is shown: what policies in shadow would have put in a decision's place, for the side topic."""

from __future__ import annotations

import logging

import numpy as np

from headrace.policy.base import Slates
from headrace.streams.candidates import random_words
from headrace.streams.decisions import recommendation_name
from headrace.streams.describe import Ask, Table
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.recommendation import PolicyName, Recommendation, ShownItem, Trigger, encode_recommendation
from headrace.streams.settings import NONE, Settings

log = logging.getLogger("headrace.worker")
ARM = "shadow"  # what such a slate's message calls its arm
_SALT = 6


class Shadow:
    """Of a share of the decisions, by a random number of the decision's own, every policy in shadow decides too: on
    the same query, so that nothing is described or encoded twice, and after the decision, which it cannot touch."""

    def __init__(self, settings: Settings, *, items: ItemStore, policies: Policies) -> None:
        self._items, self._policies = items, policies
        self._below = settings.live.shadow_share * 2.0**64
        self._asked = bool(settings.live.shadow)
        self._failed: set[tuple[str, int]] = set()  # versions of which it has been said

    def beside(self, table: Table, k: int, *, encoder_version: str) -> dict[int, list[tuple[str, bytes]]]:
        """(policy, message) by row of the table. The message bears the `recommendation_id` of the decision itself."""
        found: dict[int, list[tuple[str, bytes]]] = {}
        served = self._policies.in_shadow() if self._asked else []
        if not served:
            return found
        members = np.flatnonzero(random_words(table.query.streams, 1, salt=_SALT)[:, 0] < self._below).tolist()
        if not members:
            return found
        part = table.take(members)
        for policy in served:
            try:
                slates = policy.policy.decide(part.query, k, part.bound.constraints)
            except Exception as error:  # nobody waits for it, and what is served is decided
                if (policy.name, policy.version) not in self._failed:
                    self._failed.add((policy.name, policy.version))
                    log.warning("%s version %s fails in shadow: %r", policy.name, policy.version, error)
                continue
            name = PolicyName(policy.name, policy.version, ARM)
            for at, row in enumerate(members):
                message = self._message(part, slates, at, name, encoder_version)
                found.setdefault(row, []).append((policy.name, message))
        return found

    def _message(self, table: Table, slates: Slates, at: int, policy: PolicyName, encoder_version: str) -> bytes:
        size = int((slates.index[at] >= 0).sum())
        ids, rows = self._items.ids, table.rows[at, slates.index[at, :size]].tolist()
        shown = [
            ShownItem(ids[row] if row < len(ids) else "", position, score, p, explored, "")
            for position, (row, score, p, explored) in enumerate(
                zip(
                    rows,
                    slates.scores[at, :size].tolist(),
                    slates.propensities[at, :size].tolist(),
                    slates.explored[at, :size].tolist(),
                    strict=True,
                )
            )
        ]
        return encode_recommendation(_about(table.asks[at], shown, policy, encoder_version))


def unanswered(ask: Ask, *, encoder_version: str) -> bytes:
    """The answer to a holdout's request: a slate without items, so that nobody waits for one."""
    return encode_recommendation(_about(ask, [], PolicyName(NONE, 0, ask.arm), encoder_version))


def _about(ask: Ask, shown: list[ShownItem], policy: PolicyName, encoder_version: str) -> Recommendation:
    found = Recommendation(
        recommendation_name(ask.recommendation), ask.user_id, ask.ts, ask.placement,
        Trigger(ask.trigger_kind, ask.trigger_id), shown, policy, encoder_version,
    )  # fmt: skip
    if ask.request is not None:
        found.request_id = ask.request.request_id
    return found
