"""What a policy sees of decisions to take: states, candidates and their features, whichever policy will decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Query
from headrace.streams.asked import Asked
from headrace.streams.candidates import RECENT, Candidates, among
from headrace.streams.context import ContextEncoder
from headrace.streams.encoder import Encoded, History, UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.own import own_counts, own_items
from headrace.streams.policies import Policies
from headrace.streams.recent import LOST, NEAR, Recent, recent_of
from headrace.streams.records import Context, Request, item_key
from headrace.streams.rules.applied import Bound, bind, too_often
from headrace.streams.rules.exposure import Exposure
from headrace.streams.rules.in_force import InForce, NoRules, Rules
from headrace.streams.rules.pools import Pools
from headrace.streams.scalars import scalars
from headrace.streams.sections import duration_ms
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.texts import TextEncoder

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


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
class Table:
    """Decisions to take, a row each: what a policy sees (`query`), and what it was made from."""

    asks: Sequence[Ask]
    rows: I64  # (B, n) candidates
    query: Query
    recent: Recent
    encoded: Encoded
    bound: Bound

    def take(self, members: list[int]) -> Table:
        return Table(
            [self.asks[i] for i in members],
            self.rows[members],
            self.query.take(members),
            self.recent.take(members),
            self.encoded.take(members),
            self.bound.take(members),
        )


class Describer:
    """Shared by all partitions of a worker; holds no user's state but the encoder's cache."""

    def __init__(
        self, settings: Settings, *, items: ItemStore, policies: Policies, encoder: UserEncoder, texts: TextEncoder
    ) -> None:
        self.items = items
        self.policies = policies
        self.encoder = encoder
        self.asked = Asked(texts, encoder.tower)
        self._settings = settings
        self._context = ContextEncoder(settings)
        self._candidates = Candidates(items, policies, n=settings.worker.candidates)
        self._pools = Pools(items, policies)
        self.rules: Rules = NoRules()
        self._said: dict[str, dict[int, F32]] = {}  # user → history key → vector of a text, of the histories at hand
        self._rules: dict[str, int | None] = {}

    def encode(self, asks: Sequence[Ask]) -> Encoded:
        """User states; users with several asks are encoded once."""
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
                history = history._replace(generations=np.where(lost, np.uint8(LOST), history.generations))
            histories.append(history)
        encoded = self.encoder.encoded(histories, self.lookup)
        return encoded.take([place[ask.user_id] for ask in asks])

    def lookup(self, keys: NDArray[np.uint64], generations: NDArray[np.uint8]) -> F32:
        """Vectors (n, d) of history entries, of the histories just encoded."""
        if not self._said:
            return self.items.history_vectors(keys, generations)
        said = {key: vector for texts in self._said.values() for key, vector in texts.items()}
        places = [place for place, key in enumerate(keys.tolist()) if key in said]
        others = np.ones(len(keys), np.bool_)
        others[places] = False
        vectors = np.zeros((len(keys), self.items.dim), np.float32)
        vectors[others] = self.items.history_vectors(keys[others], generations[others])
        for place in places:
            if generations[place] != LOST:  # to this user it is of another text encoder, which he used before
                vectors[place] = said[int(keys[place])]
        return vectors

    def places(self, ask: Ask) -> int:
        """k of the slate asked for."""
        if ask.request is not None and ask.request.k is not None:
            return ask.request.k
        return self._settings.placements[ask.placement].k

    def describe(self, asks: Sequence[Ask], encoded: Encoded, listed: bool, now: int, exposure: Exposure) -> Table:
        """Candidates and their features, whichever policy will decide. The asks are of one placement, whose rules have
        been applied. `exposure` plans what the slates owe."""
        items = self.items
        placement, ks = asks[0].placement, [self.places(ask) for ask in asks]
        force = self.rules.at(placement, now)
        states = encoded.states
        recent = recent_of(asks, items, lambda user: self._said.get(user, {}))
        history, keys = recent.rows[:, :RECENT], recent.keys[:, :RECENT]
        streams = np.array([ask.stream for ask in asks], np.uint64)
        own = [own_items(ask.state, items.rows) for ask in asks]
        out = self._left_out(asks, now, force)
        if listed:
            rows, mask = self._listed(asks)
            mask &= ~among(rows, out, none=items.none)
            mask &= True if force.allowed is None else force.allowed[rows]
        else:
            rows, mask = self.drawn(
                asks, history, keys, streams, states=states, own=own, left_out=out,
                sources=self._settings.placements[placement].sources, anchored=recent.anchored,
                within=self._pools.within(placement, force, states=states, streams=streams, ks=ks),
            )  # fmt: skip
        bound = bind(force, placement, rows, mask, ks, exposure=exposure, penalty=self._penalty(placement, len(asks)))
        vectors = items.vectors[rows]
        counts = own_counts(own, rows)
        near = recent.near[:, : NEAR - 1]
        columns = scalars(items, self.policies, rows, vectors, history=history, recent=near, keys=keys, own=counts)
        query = Query(
            states=states,
            contexts=self._context.encode([(ask.context, ask.placement) for ask in asks]),
            keys=items.keys[rows],
            items=vectors,
            scalars=columns,
            mask=mask,
            streams=streams,
        )
        return Table(asks, rows, query, recent, encoded, bound)

    def _penalty(self, placement: str, size: int) -> F32 | None:
        """What similarity to the items above costs at the placement (B,); None where it costs nothing."""
        diversity = self._settings.placements[placement].diversity
        return np.full(size, diversity, np.float32) if diversity else None

    def drawn(
        self, asks: Sequence[Ask], history: I64, keys: NDArray[np.uint64], streams: NDArray[np.uint64], **known: Any
    ) -> tuple[I64, NDArray[np.bool_]]:
        """Candidates: see `Candidates.draw`."""
        return self._candidates.draw(history, self._latest_queries(asks), keys, streams, **known)

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

    def _left_out(self, asks: Sequence[Ask], now: int, force: InForce) -> list[list[int]]:
        """Rows of what users have consumed or in their carts, what requests exclude, what is being
        looked at, and what a rule says they have been shown often enough."""
        all_out: list[list[int]] = []
        for ask in asks:
            out: list[int] = []
            if ask.state.notes is not None:
                for key, second in ask.state.notes.consumed.items():
                    row = self.items.rows.get(key)
                    if row is not None and self._kept_back(row, second * 1000, now):
                        out.append(row)
                if self._settings.consumed.cart == "exclude":
                    out.extend(row for key in ask.state.notes.cart if (row := self.items.rows.get(key)) is not None)
                if force.frequency:
                    out.extend(too_often(force, ask.state, self.items.rows, now=now))
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


def is_listed(ask: Ask) -> bool:
    """Whether the request brings its own candidates."""
    return ask.request is not None and ask.request.candidates is not None
