"""From due users to slates: encode, draw candidates, describe them, let the arm's policy decide, write the message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Query, Slates
from headrace.streams.asked import Asked
from headrace.streams.candidates import RECENT, Candidates, among, random_words
from headrace.streams.context import ContextEncoder
from headrace.streams.decisions import recommendation_name
from headrace.streams.encoder import History, UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.own import own_counts, own_items
from headrace.streams.policies import Policies, Served
from headrace.streams.reasons import ANCHOR, Reasons
from headrace.streams.recommendation import PolicyName, Recommendation, ShownItem, Trigger, encode_recommendation
from headrace.streams.records import Context, Opened, Request, item_key
from headrace.streams.scalars import scalars
from headrace.streams.settings import Settings, duration_ms
from headrace.streams.state import UserState
from headrace.streams.texts import TextEncoder

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_LOST = 255  # in place of the generation, of a text that another text encoder has encoded
_AT_ONCE = 128  # decisions described together: their features stay in the processor's cache


@dataclass(frozen=True)
class Ask:
    """One decision to take."""

    user_id: str
    state: UserState
    arm: str
    trigger_kind: str
    trigger_id: str
    ts: int
    sent_ms: int
    placement: str
    context: Context
    recommendation: bytes
    stream: int
    request: Request | None


@dataclass(frozen=True)
class Decision:
    """A slate, as it is published and as it is remembered. `opened` is None for a slate without items."""

    message: bytes
    opened: Opened | None
    keys: bytes
    policy: str
    propensities: list[float]
    choices: int  # candidates of position 0: what 1/propensity is on average, if propensities are true


class Recommender:
    """Shared by all partitions of a worker: holds models and catalogue, no user's state but the encoder's cache."""

    def __init__(
        self, settings: Settings, *, items: ItemStore, policies: Policies, encoder: UserEncoder, texts: TextEncoder
    ) -> None:
        self.items = items
        self.policies = policies
        self.encoder = encoder
        self.texts = texts
        self.encoder_serial = 0  # of the announcement by which the encoder serves
        self._settings = settings
        self._context = ContextEncoder(settings)
        self._candidates = Candidates(items, policies, n=settings.worker.candidates)
        self._reasons = Reasons(settings)
        self._full_below = settings.decisions.full_share * 2.0**64
        self.asked = Asked(texts, encoder.tower)
        self._said: dict[str, dict[int, F32]] = {}  # user → history key → vector of a text, of the histories at hand
        self._rules: dict[str, int | None] = {}

    def evict(self, user: str) -> None:
        self.encoder.evict(user)

    def forget(self) -> None:
        """Drops every cached state: what follows is computed from the histories alone."""
        self.encoder.flush()

    # -- decide -------------------------------------------------------------------------------------------------------

    def decide(self, asks: Sequence[Ask], *, now: int) -> list[Decision | None]:
        """Decisions in the order asked; None where an event's slate would be empty."""
        states = self._encode(asks)
        decisions: list[Decision | None] = [None] * len(asks)
        for listed in (False, True):
            members = [i for i, ask in enumerate(asks) if _listed(ask) is listed]
            for start in range(0, len(members), _AT_ONCE):
                part = members[start : start + _AT_ONCE]
                table = self._describe([asks[i] for i in part], states[part], listed, now)
                for i, decision in zip(part, self._choose(table), strict=True):
                    decisions[i] = decision
        return decisions

    def _k(self, ask: Ask) -> int:
        if ask.request is not None and ask.request.k is not None:
            return ask.request.k
        return self._settings.placements[ask.placement].k

    def _encode(self, asks: Sequence[Ask]) -> F32:
        """User states (B, d); users with several asks are encoded once."""
        self.encoder.changed(self.items.take_stale())
        place: dict[str, int] = {}
        histories: list[History] = []
        self._said = {}
        for ask in asks:
            if ask.user_id in place:
                continue
            place[ask.user_id] = len(histories)
            state = ask.state
            history = History(
                ask.user_id,
                state.count,
                state.history_keys(),
                np.frombuffer(state.types, np.uint8),
                np.frombuffer(state.seconds, np.uint32),
                np.frombuffer(state.generations, np.uint8),
            )
            if state.notes is not None and state.notes.texts:
                self._said[ask.user_id] = said = self.asked.vectors(state.notes)
                lost = [key not in said and key in state.notes.texts for key in history.keys.tolist()]
                history = history._replace(generations=np.where(lost, np.uint8(_LOST), history.generations))
            histories.append(history)
        encoded = self.encoder.encode(histories, self._lookup)
        return encoded[[place[ask.user_id] for ask in asks]]

    def _lookup(self, keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> F32:
        if not self._said:
            return self.items.history_vectors(keys, generations)
        said = {key: vector for texts in self._said.values() for key, vector in texts.items()}
        places = [place for place, key in enumerate(keys.tolist()) if key in said]
        others = np.ones(len(keys), np.bool_)
        others[places] = False
        vectors = np.zeros((len(keys), self.items.dim), np.float32)
        vectors[others] = self.items.history_vectors(keys[others], generations[others])
        for place in places:
            if generations[place] != _LOST:  # to this user it is of another text encoder, which he used before
                vectors[place] = said[int(keys[place])]
        return vectors

    def _describe(self, asks: Sequence[Ask], states: F32, listed: bool, now: int) -> _Table:
        """Candidates and their features, whichever policy will decide."""
        items = self.items
        history, recent, keys, codes = self._recent(asks)
        streams = np.array([ask.stream for ask in asks], np.uint64)
        own = [own_items(ask.state, items.rows) for ask in asks]
        out = self._left_out(asks, now)
        if listed:
            rows, mask = self._listed(asks)
            mask &= ~among(rows, out, none=items.none)
        else:
            rows, mask = self._drawn(asks, history, keys, streams, states=states, own=own, left_out=out)
        vectors = items.vectors[rows]
        counts = own_counts(own, rows)
        columns = scalars(items, self.policies, rows, vectors, history=history, recent=recent, keys=keys, own=counts)
        query = Query(
            states=states,
            contexts=self._context.encode([(ask.context, ask.placement) for ask in asks]),
            keys=items.keys[rows],
            items=vectors,
            scalars=columns,
            mask=mask,
            streams=streams,
        )
        return _Table(asks, rows, query, history, codes, recent)

    def _drawn(
        self, asks: Sequence[Ask], history: I64, keys: NDArray[np.uint64], streams: NDArray[np.uint64], **known: Any
    ) -> tuple[I64, NDArray[np.bool_]]:
        """Candidates: see `Candidates.draw`."""
        return self._candidates.draw(history, self._latest_queries(asks), keys, streams, **known)

    def _choose(self, table: _Table) -> list[Decision | None]:
        """Each arm's policy takes its users' decisions; those of one policy and length are taken together."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        policies: dict[str, Served] = {}
        for i, ask in enumerate(table.asks):
            served = self.policies.serving(ask.arm, ask.user_id)
            policies[served.name] = served
            groups[served.name, self._k(ask)].append(i)
        decisions: list[Decision | None] = [None] * len(table.asks)
        for (name, k), members in groups.items():
            part = table if len(members) == len(table.asks) else table.take(members)
            slates = policies[name].policy.decide(part.query, k)
            for i, decision in zip(members, self._written(part, slates, policies[name]), strict=True):
                decisions[i] = decision
        return decisions

    def _written(self, table: _Table, slates: Slates, served: Served) -> list[Decision | None]:
        """Slates as messages and as records to learn from."""
        items, query = self.items, table.query
        sizes = (slates.index >= 0).sum(axis=1).tolist()
        chosen = np.maximum(slates.index, 0)
        at = np.arange(len(table.asks))[:, None]
        rows = table.rows[at, chosen]
        vectors, columns = query.items[at, chosen], query.scalars[at, chosen]
        reasons = self._reasons.of(
            items, rows, vectors, columns, table.history, table.codes, table.recent, slates.explored
        )
        names = items.ids
        picked = _Picked(
            ids=[[names[r] if r < len(names) else "" for r in row] for row in rows.tolist()],
            keys=items.keys[rows],
            vectors=vectors.astype(np.float16),
            scalars=columns,
            full=random_words(query.streams, 1, salt=4)[:, 0] < self._full_below,
        )
        return [
            self._decision(ask, i, sizes[i], slates, served, query, picked, reasons[i])
            for i, ask in enumerate(table.asks)
        ]

    def _recent(self, asks: Sequence[Ask]) -> tuple[I64, F32, NDArray[np.uint64], NDArray[np.uint8]]:
        """Rows (B, RECENT), vectors (B, 5, d), keys and type codes (B, RECENT) of the latest history entries, latest
        first."""
        codes = np.full((len(asks), RECENT), 255, np.uint8)
        keys = np.zeros((len(asks), RECENT), np.uint64)
        for i, ask in enumerate(asks):
            latest = ask.state.history_keys()[: -RECENT - 1 : -1]
            kinds = np.frombuffer(ask.state.types[: -RECENT - 1 : -1], np.uint8)
            anchor = ask.request.anchor_item_id if ask.request else None
            if anchor is not None:  # what is being looked at counts as the latest
                latest = np.concatenate([np.array([item_key(anchor)], np.uint64), latest])[:RECENT]
                kinds = np.concatenate([np.array([ANCHOR], np.uint8), kinds])[:RECENT]
            keys[i, : len(latest)] = latest
            codes[i, : len(kinds)] = kinds
        rows = self.items.rows_of(keys.reshape(-1).tolist()).reshape(keys.shape)
        near = keys[:, :5]
        vectors = self.items.vectors[rows[:, :5]]
        for i, ask in enumerate(asks if self._said else ()):
            if said := self._said.get(ask.user_id):
                for j, key in enumerate(near[i].tolist()):
                    if key in said:
                        vectors[i, j] = said[key]
        return rows, vectors, keys, codes

    def _latest_queries(self, asks: Sequence[Ask]) -> list[tuple[int, F32] | None]:
        found: list[tuple[int, F32] | None] = []
        for ask in asks:
            said = self._said.get(ask.user_id, {})
            latest = ask.state.history_keys()[: -RECENT - 1 : -1].tolist() if said else []
            found.append(next(((key, said[key]) for key in latest if key in said), None))
        return found

    def _listed(self, asks: Sequence[Ask]) -> tuple[I64, NDArray[np.bool_]]:
        """The requests' own candidates: unknown and unavailable items are left out."""
        lists = []
        for ask in asks:
            assert ask.request is not None and ask.request.candidates is not None
            lists.append(list(dict.fromkeys(ask.request.candidates)))
        width = max(1, *(len(names) for names in lists))
        rows = np.full((len(asks), width), self.items.none, np.int64)
        for i, names in enumerate(lists):
            rows[i, : len(names)] = self.items.rows_of([item_key(name) for name in names])
        return rows, self.items.available[rows]

    def _left_out(self, asks: Sequence[Ask], now: int) -> list[list[int]]:
        """Rows of what the users have consumed, what the requests exclude, and the items being looked at."""
        all_out: list[list[int]] = []
        for ask in asks:
            out: list[int] = []
            if ask.state.notes is not None:
                for key, second in ask.state.notes.consumed.items():
                    row = self.items.rows.get(key)
                    if row is not None and self._kept_back(row, second * 1000, now):
                        out.append(row)
            if ask.request is not None:
                named = list(ask.request.exclude or ())
                if ask.request.anchor_item_id is not None:
                    named.append(ask.request.anchor_item_id)
                out.extend(self.items.rows_of([item_key(name) for name in named]).tolist())
            all_out.append(out)
        return all_out

    def _kept_back(self, row: int, consumed_ms: int, now: int) -> bool:
        """Whether an item consumed then is still left out: by its own rule, its category's, or the default."""
        rules = self._settings.consumed
        code = int(self.items.category[row])
        category = self.items.category_names[code] if code >= 0 else ""
        rule = rules.items.get(self.items.ids[row])
        while rule is None and category:
            rule = rules.categories.get(category)
            category = category.rpartition("/")[0]
        rule = rule if rule is not None else rules.default
        if rule in ("exclude", "keep"):
            return rule == "exclude"
        if rule not in self._rules:
            self._rules[rule] = duration_ms(rule)
        return consumed_ms + (self._rules[rule] or 0) > now

    def _decision(
        self, ask: Ask, i: int, size: int, slates: Slates, served: Served, query: Query, picked: _Picked,
        reasons: list[str],
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
            encoder_serial=self.encoder_serial,
        )  # fmt: skip
        return Decision(message, opened, keys, served.name, propensities.tolist(), int(mask.sum()))


@dataclass(frozen=True)
class _Table:
    """Decisions to take, a row each: what a policy sees (`query`), and what it was made from."""

    asks: Sequence[Ask]
    rows: I64  # (B, n) candidates
    query: Query
    history: I64  # (B, RECENT) rows of the latest history entries
    codes: NDArray[np.uint8]  # (B, RECENT) their event types
    recent: F32  # (B, 5, d) vectors of the latest five

    def take(self, members: list[int]) -> _Table:
        q = self.query
        query = Query(
            states=q.states[members],
            contexts=q.contexts[members],
            keys=q.keys[members],
            items=q.items[members],
            scalars=q.scalars[members],
            mask=q.mask[members],
            streams=q.streams[members],
        )
        asks = [self.asks[i] for i in members]
        return _Table(asks, self.rows[members], query, self.history[members], self.codes[members], self.recent[members])


@dataclass(frozen=True)
class _Picked:
    """What was chosen, by decision and position."""

    ids: list[list[str]]
    keys: NDArray[np.uint64]
    vectors: NDArray[np.float16]
    scalars: F32
    full: NDArray[np.bool_]  # (B,) decisions whose whole candidate table is logged


def _listed(ask: Ask) -> bool:
    """Whether the request brings its own candidates."""
    return ask.request is not None and ask.request.candidates is not None
