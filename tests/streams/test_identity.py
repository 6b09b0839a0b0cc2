"""Anonymous ids become users: across partitions, in whatever order these read, with engines that start again."""

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
from headrace.streams.people.merging import MERGED, absorb
from headrace.streams.recommend import Recommender
from headrace.streams.records import (
    Batch,
    Closed,
    Erasure,
    Identity,
    Outcome,
    decode_batch,
    decode_transitions,
    item_key,
)
from headrace.streams.rules.personal import ITEMS_SHOWN, note_shown
from headrace.streams.settings import Settings
from headrace.streams.state import Credit, DecisionNotes, Notes, UserState
from tests.engine import DAY, HOUR, MINUTE, PLACEMENTS, T0, event, ids, request

QUIET = {"view": {"due": False}}  # no slates: many merges in little time


class Shop:
    """Partitions of `interactions` with an engine each, as several workers have them."""

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
            self.engines[partition] = Engine(
                self.settings, partition, self.recommender, states=states, progress=progress
            )
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
                    assert (np.diff(np.frombuffer(state.seconds, np.uint32).astype(np.int64)) > 0).all(), (
                        "in time order"
                    )
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
    """Chains, rings, repeats, crashes: each group of ids has one history, the sorted union of what was sent."""
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


# -- one identity -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(shared):
    return Shop(shared, event_types={})


@pytest.mark.parametrize("where", [elsewhere, here])
def test_an_outcome_under_the_anonymous_id_still_joins_its_decision(shop, where):
    anonymous = where(shop, "u")
    shop.run(event("view", user="u", item="toys-0"), event("view", user=anonymous, item="toys-1", at=T0 + MINUTE))
    slate = next(s for s in shop.slates if s["user_id"] == anonymous)
    shop.run(identity("u", anonymous, T0 + 2 * MINUTE))
    assert shop.state(anonymous) is None and shop.state("u").pending_count == 2
    assert sum(engine.open_decisions for engine in shop.engines) == 2
    name = slate["recommendation_id"]
    shop.run(event("impression", user=anonymous, recommendation_id=name, at=T0 + 3 * MINUTE))
    shop.run(event("click", user=anonymous, item=ids(slate)[2], recommendation_id=name, at=T0 + 3 * MINUTE))
    clicks = [r for r in shop.records if isinstance(r, Outcome) and r.type == "click"]
    assert [(c.recommendation_id, c.positions, c.user_id) for c in clicks] == [(name, [2], "u")]
    shop.tick(T0 + 8 * DAY)
    shop.run()
    closed = {c.recommendation_id: c for c in shop.records if isinstance(c, Closed)}
    assert closed[name].closed_as == "shown" and closed[name].rewards[2] == 1.0
    assert sum(engine.open_decisions for engine in shop.engines) == 0


def test_a_request_under_the_anonymous_id_is_answered_once_to_the_user(shop):
    anonymous = elsewhere(shop, "u")
    shop.run(event("view", user=anonymous, item="toys-1", id="x"), identity("u", anonymous))
    asked = request(user=anonymous, id="x")  # the name is an event's too, and the user's own
    shop.run(asked, asked, request(user="u", id="x"))
    answers = [s for s in shop.slates if s["trigger"]["kind"] == "request"]
    assert [a["user_id"] for a in answers] == ["u", "u"]
    assert len({a["recommendation_id"] for a in answers}) == 2


def test_what_waits_for_its_slate_when_its_id_moves_gets_it(shop):
    """An event, a request and the identity in one record."""
    anonymous = here(shop, "u")
    entries = [event(user=anonymous, item="toys-1"), request(user=anonymous, id="q"), identity("u", anonymous)]
    shop.logs[shop.of("u")].append(msgspec.msgpack.encode(Batch("events/0", T0, entries=entries)))
    shop.run()
    assert sorted((s["user_id"], s["trigger"]["kind"]) for s in shop.slates) == [("u", "event"), ("u", "request")]


def test_two_known_users_are_not_merged_and_a_line_names_them(shop):
    a, b = elsewhere(shop, "u", name="a"), elsewhere(shop, "v", name="b")
    shop.run(event(user="u", item="toys-0"), event(user="v", item="toys-1"), identity("u", a), identity("v", b))
    shop.run(identity("v", "u"))
    ((entry, said),) = shop.refused
    assert said.startswith("u and v are both known users") and entry.user_id == "u"
    assert shop.count("identities", "refused") == 1
    assert [shop.state(user).count for user in "uv"] == [1, 1]


def test_a_device_of_two_users_stays_with_the_first(shop):
    device = elsewhere(shop, "u")
    shop.run(identity("u", device))
    shop.run(identity("v", device))
    ((_, said),) = shop.refused
    assert f"{device} is u, and v" in said
    assert merged_ids(shop.state("u")) == [device] and merged_ids(shop.state("v")) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_chain_ends_at_the_user_in_any_order(shared, order):
    """Without a word in the settings about what is anonymous."""
    shop = Shop(shared)
    links = [("c2", "c1"), ("c3", "c2"), ("u", "c3")]
    for n, user in enumerate(("c1", "c2", "c3", "u")):
        shop.run(event(user=user, item=f"i{n}", at=T0 + n * 1000))
    for n in (*order, *order):  # and again
        shop.run(identity(*links[n]))
    assert shop.histories() == [("u", keys(0, 1, 2, 3))]
    assert shop.count("identities", "merged") == 3 and not shop.refused
    assert sorted(merged_ids(shop.state("u"))) == ["c1", "c2", "c3"]


def test_an_id_is_not_merged_into_itself(shop):
    shop.run(event(user="u", item="toys-0"), identity("u", "u"))
    assert shop.count("identities", "self") == 1 and shop.state("u").count == 1


def test_an_erasure_reaches_every_id_that_was_merged(shop):
    ids_ = [elsewhere(shop, "u", name=name) for name in "ab"]
    shop.run(*(event(user=user, item="toys-0") for user in (*ids_, "u")), *(identity("u", user) for user in ids_))
    shop.run(Erasure("u", T0 + HOUR, 0))
    assert shop.histories() == [] and sum(engine.users for engine in shop.engines) == 0
    assert not any(key.startswith(ALIAS) for engine in shop.engines for key in engine.states)
    shop.run(*(event(user=user, item="toys-0", at=T0 + MINUTE) for user in (*ids_, "u")))
    assert shop.histories() == [], "late events of all of them are dropped"
    shop.run(event(user=ids_[0], item="toys-0", at=T0 + 2 * HOUR))
    assert [user for user, _ in shop.histories()] == [ids_[0]], "who comes back is new"


def test_an_erasure_under_a_merged_id_erases_the_user(shop):
    anonymous = elsewhere(shop, "u")
    shop.run(event(user="u", item="toys-0"), event(user=anonymous, item="toys-1"), identity("u", anonymous))
    shop.run(Erasure(anonymous, T0 + HOUR, 0))
    assert shop.histories() == []


def test_what_is_carried_to_an_erased_user_is_erased(shop):
    """The erasure is read between the identity and what it brings."""
    anonymous = elsewhere(shop, "u")
    shop.run(event(user=anonymous, item="toys-1"))
    shop.write(identity("u", anonymous, T0))
    shop.turn(shop.of("u"))
    shop.turn(shop.of(anonymous))
    shop.logs[shop.of("u")].insert(
        1, msgspec.msgpack.encode(Batch("erasures/0", T0, entries=[Erasure("u", T0 + 1, 0)]))
    )
    shop.run()
    assert shop.histories() == [] and shop.count("identities", "erased") == 1
    assert alias_key(anonymous) not in shop.engines[shop.of(anonymous)].states
    assert sum(engine.open_decisions for engine in shop.engines) == 0


def test_no_part_of_a_state_is_forgotten_by_a_merge(shared):
    """A field that Notes get must be merged too: it is named here once it is."""
    assert {field.name for field in msgspec.structs.fields(Notes)} == {
        "consumed", "texts", "decisions", "credits", "taken", "cart", "shows", "known", "merged", "others", "last",
        "profiling", "profiling_ms",
    }  # fmt: skip
    mine, theirs, settings = UserState(), UserState(), Settings(consumed={"default": "7d", "cap": 3})
    for state, at in ((mine, 10), (theirs, 20)):
        state.append(at, type_code=1, ts=1000 * at, window=50)
        state.see(at, horizon=32)
        state.open(bytes([at]) * 12, ts=1000 * at, arm=at, keys=at.to_bytes(8, "little"))
        notes = state.note()
        notes.consumed, notes.taken, notes.cart = {at: at, 7: at, 8: at}, {7: 2, at: 1}, {at: at}
        notes.texts = {at: b"t"}
        notes.decisions[bytes([at]) * 12] = DecisionNotes(named=True, rewards={0: float(at)})
        notes.credits.append(Credit(at, bytes([at]) * 12, 0, 1.0, at))
        notes.shows, notes.last, notes.profiling = {7: [at]}, at, at if at == 10 else -at
        notes.profiling_ms = at
    theirs.note().merged, theirs.note().others = ["older"], (99).to_bytes(8, "little")
    assert absorb(mine, theirs, user="u", sent_as="a", settings=settings) == []
    notes = mine.notes
    assert (mine.count, mine.history_keys().tolist(), mine.pending_count) == (2, [10, 20], 2)
    assert [(d.ts, d.arm, d.keys) for d in mine.decisions()] == [(10_000, 10, (10,)), (20_000, 20, (20,))]
    assert not mine.see(10, horizon=32) and mine.see(20, horizon=32) and mine.saw_as("a", 20)
    assert (99).to_bytes(8, "little") in notes.others
    assert list(notes.consumed) == [20, 7, 8] and notes.taken[7] == 4 and list(notes.cart) == [10, 20]
    assert set(notes.texts) == {10, 20} and [n.rewards[0] for n in notes.decisions.values()] == [10.0, 20.0]
    assert [credit.order for credit in notes.credits] == [10, 20] and notes.shows == {7: [10, 20]}
    assert (notes.merged, notes.last, notes.profiling, notes.profiling_ms) == (["older", "a"], 20, -20, 20)


def test_a_merge_forgets_what_was_shown_least_often_as_an_event_does():
    mine, theirs = UserState(), UserState()
    mine.note().shows = {7: [1, 2], **{1000 + n: [3] for n in range(ITEMS_SHOWN - 1)}}
    theirs.note().shows = {5: [9]}
    absorb(mine, theirs, user="u", sent_as="a", settings=Settings())
    shown = mine.notes.shows
    assert len(shown) == ITEMS_SHOWN and shown[7] == [1, 2] and shown[5] == [9] and 1000 not in shown
    note_shown(mine, [6], second=10, since=0)
    shown = mine.notes.shows
    assert len(shown) == ITEMS_SHOWN and shown[7] == [1, 2] and shown[6] == [10] and 1001 not in shown


def test_beyond_the_cap_the_id_merged_longest_ago_is_let_go(shop):
    names = [f"a{n}" for n in range(MERGED + 1)]
    for n, name in enumerate(names):
        shop.run(identity("u", name, T0 + n))
    assert merged_ids(shop.state("u")) == names[1:]
    shop.run(event(user=names[0], item="toys-0"), event(user=names[1], item="toys-1"))
    assert {user for user, _ in shop.histories()} == {names[0], "u"}
