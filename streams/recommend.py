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
from headrace.streams.candidates import RECENT, Candidates
from headrace.streams.context import ContextEncoder
from headrace.streams.decisions import recommendation_name
from headrace.streams.encoder import History, UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies, Served
from headrace.streams.reasons import ANCHOR, Reasons
from headrace.streams.records import Context, Opened, Request, item_key
from headrace.streams.scalars import scalars
from headrace.streams.settings import Settings, duration_ms
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
class Decision:
    """A slate, as it is published and as it is remembered. `opened` is None for a slate without items."""

    message: bytes
    opened: Opened | None
    keys: bytes
    policy: str
    propensities: list[float]
    choices: int  # candidates of position 0: what 1/propensity is on average, if propensities are true


class _Shown(msgspec.Struct):
    item_id: str
    position: int
    score: float
    propensity: float
    explored: bool
    reason: str


class _Trigger(msgspec.Struct):
    kind: str
    id: str


class _PolicyName(msgspec.Struct):
    name: str
    version: int
    arm: str


class Recommendation(msgspec.Struct):
    """The message of the contract."""

    recommendation_id: str
    user_id: str
    ts: int
    placement: str
    trigger: _Trigger
    items: list[_Shown]
    policy: _PolicyName
    encoder_version: str
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    schema: int = 1


_encode_message = msgspec.json.Encoder().encode


class Recommender:
    """Shared by all partitions of a worker: holds models and catalogue, no user's state but the encoder's cache."""

    def __init__(
        self, settings: Settings, *, items: ItemStore, policies: Policies, encoder: UserEncoder, texts: TextEncoder
    ) -> None:
        self.items = items
        self.policies = policies
        self.encoder = encoder
        self.texts = texts
        self._settings = settings
        self._context = ContextEncoder(settings)
        self._candidates = Candidates(items, policies, n=settings.worker.candidates)
        self._reasons = Reasons(settings)
        self._asked: dict[int, F32] = {}  # vectors of the queries in the histories at hand
        self._rules: dict[str, int | None] = {}

    def text_vector(self, text: str) -> bytes:
        """A query or comment in the state's space: float16 (d,)."""
        vector = self.encoder.project(self.texts.encode_one(text)[None, :])[0]
        return vector.astype(np.float16).tobytes()

    def evict(self, user: str) -> None:
        self.encoder.evict(user)

    def forget(self) -> None:
        """Drops every cached state: what follows is computed from the histories alone."""
        self.encoder.flush()

    # -- decide -------------------------------------------------------------------------------------------------------

    def decide(self, asks: Sequence[Ask], *, now: int) -> list[Decision | None]:
        """Decisions in the order asked; None where an event's slate would be empty."""
        states = self._encode(asks)
        groups: dict[tuple[str, int, bool], list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            listed = ask.request is not None and ask.request.candidates is not None
            groups[ask.arm, self._k(ask), listed].append(i)
        decisions: list[Decision | None] = [None] * len(asks)
        for (arm, k, listed), members in groups.items():
            group = [asks[i] for i in members]
            served = self.policies.serving(arm)
            for i, decision in zip(members, self._decide(group, states[members], served, k, listed, now), strict=True):
                decisions[i] = decision
        return decisions

    def _k(self, ask: Ask) -> int:
        if ask.request is not None and ask.request.k is not None:
            return ask.request.k
        return self._settings.placements[ask.placement].k

    def _encode(self, asks: Sequence[Ask]) -> F32:
        """User states (B, d); users with several asks are encoded once."""
        place: dict[str, int] = {}
        histories = []
        self._asked.clear()
        for ask in asks:
            if ask.user_id in place:
                continue
            place[ask.user_id] = len(histories)
            state = ask.state
            if state.notes is not None:
                for key, raw in state.notes.texts.items():
                    self._asked[key] = np.frombuffer(raw, np.float16).astype(np.float32)
            histories.append(
                History(
                    ask.user_id,
                    state.count,
                    state.history_keys(),
                    np.frombuffer(state.types, np.uint8),
                    np.frombuffer(state.seconds, np.uint32),
                )
            )
        encoded = self.encoder.encode(histories, self._lookup)
        return encoded[[place[ask.user_id] for ask in asks]]

    def _lookup(self, keys: NDArray[np.uint64]) -> F32:
        vectors = self.items.history_vectors(keys)
        if self._asked:
            for i, key in enumerate(keys.tolist()):
                if key in self._asked:
                    vectors[i] = self._asked[key]
        return vectors

    def _decide(
        self, asks: Sequence[Ask], states: F32, served: Served, k: int, listed: bool, now: int
    ) -> list[Decision | None]:
        items = self.items
        history, recent, history_keys, codes = self._recent(asks)
        streams = np.array([ask.stream for ask in asks], np.uint64)
        if listed:
            rows, mask = self._listed(asks)
        else:
            rows, mask = self._candidates.draw(history, self._latest_queries(asks), history_keys, streams)
        self._exclude(asks, rows, mask, now)
        vectors = items.vectors[rows]
        columns = scalars(items, self.policies, rows, vectors, history=history, recent=recent, keys=history_keys)
        contexts = self._context.encode([(ask.context, ask.placement) for ask in asks])
        query = Query(
            states=states,
            contexts=contexts,
            keys=items.keys[rows],
            items=vectors,
            scalars=columns,
            mask=mask,
            streams=streams,
        )
        slates = served.policy.decide(query, k)
        sizes = (slates.index >= 0).sum(axis=1)
        chosen = np.maximum(slates.index, 0)
        at = np.arange(len(asks))[:, None]
        chosen_rows = rows[at, chosen]
        reasons = self._reasons.of(
            items, chosen_rows, vectors[at, chosen], columns[at, chosen], history, codes, recent, slates.explored
        )
        picked = _Picked(
            ids=[[items.ids[r] if r < len(items.ids) else "" for r in row] for row in chosen_rows.tolist()],
            keys=items.keys[chosen_rows],
            vectors=vectors[at, chosen].astype(np.float16),
            scalars=columns[at, chosen],
            contexts=contexts,
            candidates=query.keys,
            mask=mask,
        )
        return [
            self._decision(ask, i, int(sizes[i]), slates, served, states[i], picked, reasons[i])
            for i, ask in enumerate(asks)
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
        if self._asked:
            for i, row in enumerate(near.tolist()):
                for j, key in enumerate(row):
                    if key in self._asked:
                        vectors[i, j] = self._asked[key]
        return rows, vectors, keys, codes

    def _latest_queries(self, asks: Sequence[Ask]) -> list[tuple[int, F32] | None]:
        found: list[tuple[int, F32] | None] = []
        for ask in asks:
            notes = ask.state.notes
            latest = None
            if notes is not None and notes.texts:
                for key in ask.state.history_keys()[: -RECENT - 1 : -1].tolist():
                    if key in notes.texts:
                        latest = key, np.frombuffer(notes.texts[key], np.float16).astype(np.float32)
                        break
            found.append(latest)
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

    def _exclude(self, asks: Sequence[Ask], rows: I64, mask: NDArray[np.bool_], now: int) -> None:
        """Takes out what the user has consumed, what the request excludes, and the item being looked at."""
        for i, ask in enumerate(asks):
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
            if out:
                mask[i] &= ~np.isin(rows[i], out)

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
        self, ask: Ask, i: int, size: int, slates: Slates, served: Served, state: F32, picked: _Picked,
        reasons: list[str],
    ) -> Decision | None:  # fmt: skip
        if not size and ask.request is None:
            return None
        propensities = slates.propensities[i, :size]
        ids = picked.ids[i][:size]
        name = recommendation_name(ask.recommendation)
        explored = slates.explored[i, :size]
        shown = [
            _Shown(item, position, score, p, e, reason)
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
        message = _encode_message(
            Recommendation(
                name, ask.user_id, ask.ts, ask.placement, _Trigger(ask.trigger_kind, ask.trigger_id), shown,
                _PolicyName(served.name, served.version, ask.arm), self.encoder.version,
                ask.request.request_id if ask.request else msgspec.UNSET,
            )
        )  # fmt: skip
        if not size:
            return Decision(message, None, b"", served.name, [], 0)
        keys = picked.keys[i, :size].tobytes()
        opened = Opened(
            name, ask.user_id, ask.ts, ask.sent_ms, ask.placement, ask.arm, served.name, served.version,
            self.encoder.version,
            ask.trigger_kind, ask.trigger_id, ids, propensities.tobytes(), state.tobytes(),
            picked.contexts[i].tobytes(),
            picked.vectors[i, :size].tobytes(), picked.scalars[i, :size].tobytes(),
            picked.candidates[i][picked.mask[i]].tobytes(), explored.astype(np.uint8).tobytes(),
        )  # fmt: skip
        return Decision(message, opened, keys, served.name, propensities.tolist(), int(picked.mask[i].sum()))


@dataclass(frozen=True)
class _Picked:
    """What was chosen, as arrays over the batch."""

    ids: list[list[str]]
    keys: NDArray[np.uint64]
    vectors: NDArray[np.float16]
    scalars: F32
    contexts: F32
    candidates: NDArray[np.uint64]
    mask: NDArray[Any]
