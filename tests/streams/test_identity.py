"""Anonymous ids become users: partitions told apart, one another's entries read in any order, engines that start again."""

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from headrace.streams.changelog import ALIAS, PROGRESS, alias_key, decode_progress, user_key
from headrace.streams.engine import Engine
from headrace.streams.partition import partition_of
from headrace.streams.people.identity import merged_ids
from headrace.streams.recommend import Recommender
from headrace.streams.records import Batch, Closed, Erasure, Identity, Outcome, decode_batch, decode_transitions, item_key
from headrace.streams.settings import Settings
from headrace.streams.state import Notes, UserState
from tests.engine import DAY, HOUR, MINUTE, PLACEMENTS, T0, event, ids, request

QUIET = {"view": {"due": False}}  # no slates: many merges in little time


class Shop:
    """Partitions of `interactions` with an engine each, as several workers have them. Nothing is lost when one starts again."""

    def __init__(self, shared, *, partitions=3, **sections):
        sections = {"event_types": QUIET, "placements": PLACEMENTS, **sections}
        self.settings = Settings(topics={"interactions_partitions": partitions}, **sections)
        self.recommender = Recommender(
            self.settings, items=shared.items, policies=shared.policies, encoder=shared.encoder,
            texts=shared.recommender.texts,
        )  # fmt: skip
        shared.encoder.flush()
        self.logs = [[] for _ in range(partitions)]
        self.changelogs = [{} for _ in range(partitions)]
        self.engines = [Engine(self.settings, p, self.recommender) for p in range(partitions)]
        self.slates, self.records, self.refused = [], [], []

    def of(self, user):
        return partition_of(user, len(self.logs))

    def write(self, *entries, at=T0):
        for entry in entries:
            record = Batch("events/0", at, entries=[entry])
            self.logs[self.of(entry.user_id)].append(msgspec.msgpack.encode(record))

    def tick(self, at):
        for log in self.logs:
            log.append(msgspec.msgpack.encode(Batch("events/0", at, tick=True)))

    def turn(self, partition, *, crash=False):
        """Applies the next record. A crash comes after it was applied and before it is committed."""
        engine, log = self.engines[partition], self.logs[partition]
        at = engine.applied + 1
        if at >= len(log):
            return False
        effects = engine.apply(decode_batch(log[at]), at)
        assert not effects.failed, effects.failed
        if crash:
            states = {key: value for key, value in self.changelogs[partition].items() if key != PROGRESS}
            raw = self.changelogs[partition].get(PROGRESS)
            progress = decode_progress(raw) if raw else None
            self.recommender.forget()
            self.engines[partition] = Engine(self.settings, partition, self.recommender, states=states, progress=progress)
            return True
        engine.accept(effects)
        changelog = self.changelogs[partition]
        for key, value in effects.changes.items():
            if value is None:
                changelog.pop(key, None)
            else:
                changelog[key] = value
        changelog[PROGRESS] = engine.progress()
        for other, record in effects.forwarded:
            assert other != partition
            self.logs[other].append(record)
        self.slates += [msgspec.json.decode(message) for _, message in effects.recommendations]
        self.records += [r for raw in effects.transitions for r in decode_transitions(raw).records]
        self.refused += effects.refused
        return True

    def run(self, *entries, at=T0):
        self.write(*entries, at=at)
        while any([self.turn(p) for p in range(len(self.logs))]):
            pass

    def state(self, user):
        raw = self.engines[self.of(user)].states.get(user_key(user))
        return None if raw is None else UserState.unpack(raw)

    def histories(self):
        """(user, item keys) of every user with a history."""
        found = []
        for engine in self.engines:
            for key, raw in engine.states.items():
                if key.startswith(b"u") and (state := UserState.unpack(raw)).count:
                    assert state.count == len(state.types)
                    assert (np.diff(np.frombuffer(state.seconds, np.uint32).astype(np.int64)) > 0).all(), "in time order"
                    found.append((key[1:].decode(), state.history_keys().tolist()))
        return found

    def count(self, *name):
        return sum(engine.counts["/".join(name)] for engine in self.engines)


def elsewhere(shop, user, *, name="a"):
    """An id of another partition than the user's."""
    return next(f"{name}{n}" for n in range(100) if shop.of(f"{name}{n}") != shop.of(user))


def here(shop, user, *, name="a"):
    return next(f"{name}{n}" for n in range(100) if shop.of(f"{name}{n}") == shop.of(user))


def identity(user, anonymous, at=T0):
    return Identity(user, anonymous, at, at)


def keys(*numbers):
    return [item_key(f"i{n}") for n in numbers]


IDS = [*"uv", *(f"a{n}" for n in range(5))]


@trying(max_examples=80, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_in_whatever_order_all_of_a_person_ends_in_one_history_once(shared, data):
    """Chains, rings, repeats, crashes: each group of ids has one history, the sorted union of what was sent under them."""
    shop = Shop(shared, identities={"anonymous": "a*"}, worker={"history": 500, "seen": 64})
    group = {name: {name} for name in IDS}
    sent, written = [], []
    for n in range(data.draw(st.integers(1, 30))):
        if sent and data.draw(st.integers(0, 9)) == 0:
            written.append(data.draw(st.sampled_from(sent)))  # a repeat
        elif data.draw(st.booleans()):
            user = data.draw(st.sampled_from(IDS))
            number = sum(e.user_id == user for e in sent)  # ids are unique by user
            sent.append(event(user=user, item=f"i{n}", id=f"e{number}", at=T0 + n * 1000))
            written.append(sent[-1])
        else:
            one, other = data.draw(st.sampled_from(IDS)), data.draw(st.sampled_from(IDS[2:]))
            joined = group[one] | group[other]
            if {*"uv"} <= joined:
                continue
            written.append(identity(one, other))
            for name in joined:
                group[name] = joined
    for entry in written:
        shop.write(entry)
        for _ in range(data.draw(st.integers(0, 3))):
            shop.turn(data.draw(st.integers(0, 2)), crash=data.draw(st.integers(0, 4)) == 0)
    shop.run()
    expected = {}
    for e in sent:
        expected.setdefault(frozenset(group[e.user_id]), []).append((e.ts, item_key(e.item_id)))
    found = {frozenset(group[user]): history for user, history in shop.histories()}
    assert len(found) == len(shop.histories()), "one history a person"
    assert found == {who: [key for _, key in sorted(what)] for who, what in expected.items()}
    assert not shop.refused
    for who in found:
        for user in who & {*"uv"}:
            assert shop.state(user) is not None, "it ends at the user"
