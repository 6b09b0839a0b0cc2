"""From due users to slates: encode, draw candidates, describe them, let the arm's policy decide, write the message."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Query, Slates
from headrace.streams.candidates import random_words
from headrace.streams.decisions import recommendation_name
from headrace.streams.describe import Ask, Describer, Table, is_listed
from headrace.streams.encoder import UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies, Served
from headrace.streams.reasons.attribution import Attribution
from headrace.streams.reasons.told import Reasons
from headrace.streams.recent import ENTRY_BYTES
from headrace.streams.recommendation import PolicyName, Recommendation, ShownItem, Trigger, encode_recommendation
from headrace.streams.records import Opened
from headrace.streams.rules.applied import Bound, Kept, settle, shares_of
from headrace.streams.rules.exposure import Exposure
from headrace.streams.settings import Settings
from headrace.streams.shadow import Shadow
from headrace.streams.texts import TextEncoder

log = logging.getLogger("headrace.worker")
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_LARGEST = float(np.finfo(np.float16).max)
_AT_ONCE = 128  # decisions described together: their features stay in the processor's cache


@dataclass(frozen=True)
class Decision:
    """A slate, as it is published and as it is remembered. `opened` is None for a slate without items."""

    message: bytes
    opened: Opened | None
    keys: bytes
    policy: str
    propensities: list[float]
    choices: int  # candidates of position 0: what 1/propensity is on average, if propensities are true
    beside: Sequence[tuple[str, bytes]] = ()  # (policy, message) of policies in shadow


class Recommender:
    """Shared by all partitions of a worker: holds models and catalogue, no user's state but the encoder's cache."""

    describing: type[Describer] = Describer

    def __init__(
        self, settings: Settings, *, items: ItemStore, policies: Policies, encoder: UserEncoder, texts: TextEncoder
    ) -> None:
        self.items = items
        self.policies = policies
        self.encoder = encoder
        self.texts = texts
        self.encoder_serial = 0  # of the announcement by which the encoder serves
        self._settings = settings
        self.describer = self.describing(settings, items=items, policies=policies, encoder=encoder, texts=texts)
        self._attribution, self._reasons = Attribution(self.describer, settings.explanations.entries), Reasons(settings)
        self._unexplained: set[tuple[str, int]] = set()  # versions of which it has been said
        self._shadow = Shadow(settings, items=items, policies=policies)
        self._full_below = settings.decisions.full_share * 2.0**64
        self.asked = self.describer.asked

    def evict(self, user: str) -> None:
        self.encoder.evict(user)

    def forget(self) -> None:
        """Drops every cached state: what follows is computed from the histories alone."""
        self.encoder.flush()

    # -- decide -------------------------------------------------------------------------------------------------------

    def decide(self, asks: Sequence[Ask], *, now: int, exposure: Exposure | None = None) -> list[Decision | None]:
        """Decisions in the order asked; None where an event's slate would be empty. `exposure` goes on with them."""
        exposure = exposure or Exposure()
        encoded = self.describer.encode(asks)
        decisions: list[Decision | None] = [None] * len(asks)
        alike: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            alike[is_listed(ask), ask.placement].append(i)
        for (listed, _), members in alike.items():
            for start in range(0, len(members), _AT_ONCE):
                part = members[start : start + _AT_ONCE]
                table = self.describer.describe([asks[i] for i in part], encoded.take(part), listed, now, exposure)
                for i, decision in zip(part, self._choose(table, exposure), strict=True):
                    decisions[i] = decision
        if exposure.accounts:
            at = self.describer.rules.at
            exposure.keep((name, share) for name in self._settings.placements for share in shares_of(at(name, now)))
        return decisions

    def _choose(self, table: Table, exposure: Exposure) -> list[Decision | None]:
        """Each arm's policy takes its users' decisions; those of one policy and length are taken together."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        policies: dict[str, Served] = {}
        for i, (ask, k) in enumerate(zip(table.asks, table.bound.ks, strict=True)):
            served = self.policies.serving(ask.arm, ask.user_id, ask.placement)
            policies[served.name] = served
            groups[served.name, k].append(i)
        decisions: list[Decision | None] = [None] * len(table.asks)
        for (name, k), members in groups.items():
            part = table if len(members) == len(table.asks) else table.take(members)
            slates = policies[name].policy.decide(part.query, k, part.bound.constraints)
            written = self._written(part, slates, policies[name], exposure)
            for i, decision in zip(members, written, strict=True):
                decisions[i] = decision
            for at, beside in self._shadow.beside(part, k, encoder_version=self.encoder.version).items():
                decision = decisions[members[at]]
                if decision is not None:
                    decisions[members[at]] = replace(decision, beside=beside)
        return decisions

    def _written(self, table: Table, slates: Slates, served: Served, exposure: Exposure) -> list[Decision | None]:
        """Slates as messages and as records to learn from."""
        items, query = self.items, table.query
        sizes = (slates.index >= 0).sum(axis=1).tolist()
        chosen = np.maximum(slates.index, 0)
        at = np.arange(len(table.asks))[:, None]
        rows = table.rows[at, chosen]
        vectors, columns = query.items[at, chosen], query.scalars[at, chosen]
        kept = settle(table.bound, rows, sizes, exposure)
        lowered, reasons = self._why(table, slates, served, chosen, rows, columns)
        names = items.ids
        picked = _Picked(
            ids=[[names[r] if r < len(names) else "" for r in row] for row in rows.tolist()],
            keys=items.keys[rows],
            vectors=vectors.astype(np.float16),
            scalars=columns,
            full=random_words(query.streams, 1, salt=4)[:, 0] < self._full_below,
            choices=query.mask.sum(axis=1).tolist(),
            entries=table.recent.packed(lowered.shape[1]),
            lowered=np.clip(lowered, -_LARGEST, _LARGEST).astype(np.float16),
        )
        return [
            self._decision(ask, i, sizes[i], slates, served, query, picked, reasons[i], kept[i], table.bound)
            for i, ask in enumerate(table.asks)
        ]

    def _why(
        self, table: Table, slates: Slates, served: Served, chosen: I64, rows: I64, columns: F32
    ) -> tuple[F32, list[list[str]]]:  # fmt: skip
        try:
            lowered = self._attribution.lowered(table, served.policy, chosen, slates.scores)
            return lowered, self._reasons.of(
                self.items, table.recent, lowered, rows=rows, scores=slates.scores, columns=columns,
                explored=slates.explored, force=table.bound.force, owing=table.bound.owing(),
            )  # fmt: skip
        except Exception as error:  # the slate is decided, and worth more than its reasons
            if (served.name, served.version) not in self._unexplained:
                self._unexplained.add((served.name, served.version))
                log.warning("slates of %s version %s go without reasons: %r", served.name, served.version, error)
        return np.zeros((len(chosen), 0, chosen.shape[1]), np.float32), self._reasons.nothing(chosen)

    def _decision(
        self, ask: Ask, i: int, size: int, slates: Slates, served: Served, query: Query, picked: _Picked,
        reasons: list[str], kept: Kept, bound: Bound,
    ) -> Decision | None:  # fmt: skip
        if not size and ask.request is None:
            return None
        propensities = slates.propensities[i, :size]
        ids = picked.ids[i][:size]
        name = recommendation_name(ask.recommendation)
        explored = slates.explored[i, :size]
        shown = [
            ShownItem(item, position, score, p, e, reason)
            for position, (item, score, p, e, reason) in enumerate(
                zip(
                    ids,
                    slates.scores[i, :size].tolist(),
                    propensities.tolist(),
                    explored.tolist(),
                    reasons,
                    strict=False,
                )
            )
        ]
        message = encode_recommendation(
            Recommendation(
                name, ask.user_id, ask.ts, ask.placement, Trigger(ask.trigger_kind, ask.trigger_id), shown,
                PolicyName(served.name, served.version, ask.arm), self.encoder.version,
                ask.request.request_id if ask.request else msgspec.UNSET,
                rules=kept.bound or msgspec.UNSET, unmet=kept.unmet or msgspec.UNSET,
            )
        )  # fmt: skip
        if not size:
            return Decision(message, None, b"", served.name, [], 0)
        keys, mask = picked.keys[i, :size].tobytes(), query.mask[i]
        full = picked.full[i]
        opened = Opened(
            name, ask.user_id, ask.ts, ask.sent_ms, ask.placement, ask.arm, served.name, served.version,
            self.encoder.version,
            ask.trigger_kind, ask.trigger_id, ids, propensities.tobytes(), query.states[i].tobytes(),
            query.contexts[i].tobytes(),
            picked.vectors[i, :size].tobytes(), picked.scalars[i, :size].tobytes(),
            query.keys[i][mask].tobytes(), explored.astype(np.uint8).tobytes(),
            query.items[i][mask].astype(np.float16).tobytes() if full else b"",
            query.scalars[i][mask].tobytes() if full else b"",
            encoder_serial=self.encoder_serial, rules=kept.bound, rules_at=bound.force.version,
            restricted=bound.restricts_first(i, picked.choices[i]),
            constraints=bound.logged(i, mask) if full else b"",
            entries=picked.entries[i],
            lowered=picked.lowered[i, : len(picked.entries[i]) // ENTRY_BYTES, :size].tobytes(),
        )  # fmt: skip
        return Decision(message, opened, keys, served.name, propensities.tolist(), picked.choices[i])


@dataclass(frozen=True)
class _Picked:
    """What was chosen, by decision and position."""

    ids: list[list[str]]
    keys: NDArray[np.uint64]
    vectors: NDArray[np.float16]
    scalars: F32
    full: NDArray[np.bool_]  # (B,) decisions whose whole candidate table is logged
    choices: list[int]  # (B,) candidates
    entries: list[bytes]
    lowered: NDArray[np.float16]  # (B, h, k)
