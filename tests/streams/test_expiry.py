"""What was not heard of again is forgotten, by event time, and nothing else is."""

from collections import Counter

import pytest

from headrace.streams.changelog import ALIAS, ERASED, PROGRESS, decode_progress, user_key
from headrace.streams.people.expiry import Buckets
from headrace.streams.records import Closed, Erasure, Identity
from headrace.streams.state import UserState
from tests.engine import DAY, HOUR, MINUTE, T0, Log, event, ids

TTL = {"anonymous_ttl": "2d"}
QUIET = {"view": {"due": False}}


def users(log):
    return sorted(key[1:].decode() for key in log.engine.states if key.startswith(b"u"))


def tick(log, at, times=1):
    for _ in range(times):
        log.write(at=at, tick=True)


def test_an_id_lapses_a_time_after_its_last_event(make):
    log = Log(make(identities=TTL))
    log.write(event(user="a", item="toys-0"), event(user="b", item="toys-0"))
    log.write(event("dismiss", user="b", item="toys-0", at=T0 + DAY), at=T0 + DAY)  # enters no history
    tick(log, T0 + 2 * DAY - HOUR)
    assert users(log) == ["a", "b"]
    tick(log, T0 + 2 * DAY + 3 * HOUR)
    assert users(log) == ["b"] and log.effects.changes[user_key("a")] is None, "a tombstone"
    assert log.engine.counts["expired/anonymous"] == 1 and log.engine.users == 1
    tick(log, T0 + 3 * DAY + 3 * HOUR)
    assert users(log) == [] and len(log.engine.lapsing) == 0


def test_open_decisions_close_first_and_are_told(make):
    log = Log(make(identities=TTL))
    (slate,) = log.write(event("click", user="a", item="toys-0"))
    name = slate["recommendation_id"]
    log.write(event("impression", user="a", recommendation_id=name))
    log.write(event("click", user="a", item=ids(slate)[1], recommendation_id=name, at=T0 + MINUTE))
    tick(log, T0 + 3 * DAY)
    closed = {c.recommendation_id: c for c in log.of(Closed)}[name]
    assert (closed.closed_as, closed.rewards[1]) == ("shown", 1.0)
    assert log.engine.open_decisions == 0 and users(log) == []
    tick(log, T0 + 9 * DAY)  # where his decisions would have closed
    assert len(log.of(Closed)) == 2


@pytest.mark.parametrize(
    ("section", "left"),
    [({}, ["a", "b"]), (TTL, ["b"]), (TTL | {"known_ttl": "5d"}, []), (TTL | {"anonymous": "b*"}, ["a", "c"])],
)
def test_users_stay(make, section, left):
    """`b` is a user by an identity; where the settings say what is anonymous that decides: `b` is."""
    log = Log(make(identities=section, topics={"interactions_partitions": 1}))
    log.write(event(user="a", item="toys-0"), event(user="b", item="toys-0"), Identity("b", "c", T0, 0))
    for day in range(1, 12):
        tick(log, T0 + day * DAY)
    assert users(log) == left


def test_who_comes_back_late_is_new_whether_or_not_he_was_swept(make):
    """What lapsed has lapsed by his last event and the clock alone: also in the record that would sweep him."""
    log = Log(make(identities=TTL))
    log.write(event(user="a", item="toys-0"), event(user="b", item="toys-0"))
    at = T0 + 3 * DAY
    log.write(event(user="a", item="toys-1", at=at), at=at)
    assert users(log) == ["a"] and UserState.unpack(log.engine.states[b"ua"]).count == 1
    assert log.engine.counts["expired/anonymous"] == 2
    tick(log, at + DAY)
    assert users(log) == ["a"], "he is looked at by his last event"
    tick(log, at + 3 * DAY)
    assert users(log) == []


def test_an_engine_that_starts_again_forgets_at_the_same_time(make):
    changelog, gone = {}, [{}, {}]
    log = Log(make(identities=TTL, event_types=QUIET))
    for n in range(200):
        at = T0 + n * 10 * MINUTE
        log.write(event(user=f"a{n % 70}", item="toys-0", at=at), at=at)
    changelog = dict(log.engine.states)
    progress = decode_progress(log.engine.progress())
    again = Log(make(identities=TTL, event_types=QUIET, states=changelog, progress=progress))
    again.offset = log.offset
    assert len(again.engine.lapsing) == 70
    for hour in range(24 * 5):
        for number, one in enumerate((log, again)):
            before = set(users(one))
            tick(one, at + hour * HOUR)
            gone[number].update(dict.fromkeys(before - set(users(one)), hour))
    assert gone[0] == gone[1] and len(gone[0]) == 70
    assert PROGRESS not in changelog


def test_aliases_and_erasure_marks_go_when_nothing_can_need_them(make):
    log = Log(make(identities=TTL, event_types=QUIET, topics={"interactions_partitions": 1}))
    log.write(event(user="a", item="toys-0"), Identity("u", "a", T0, 0), Erasure("e", T0, 0))

    def marks():
        return Counter(key[:7] for key in log.engine.states if not key.startswith(b"u"))

    assert marks() == {ALIAS[:7]: 1, ERASED[:7]: 1}
    log.write(event(user="a", item="toys-0", at=T0 + 20 * DAY), at=T0 + 20 * DAY)  # used: it lives on
    for day in range(21, 45):
        tick(log, T0 + day * DAY)
    assert marks() == {ALIAS[:7]: 1}, "an erasure's after 30 days"
    for day in range(45, 53):
        tick(log, T0 + day * DAY)
    assert marks() == {} and users(log) == ["u"]
    assert (log.engine.counts["expired/alias"], log.engine.counts["expired/erasure"]) == (1, 1)


def test_a_crowd_is_forgotten_over_several_records(make):
    log = Log(make(identities=TTL, event_types=QUIET))
    log.write(*(event(user=f"a{n}", item="toys-0") for n in range(5_000)))
    left = []
    for _ in range(4):
        tick(log, T0 + 3 * DAY)
        left.append(log.engine.users)
    assert left == [3_000, 1_000, 0, 0]


def test_a_bucket_holds_each_key_once():
    buckets = Buckets()
    for bucket, key in ((5, "a"), (3, "b"), (5, "a"), (3, "c")):
        buckets.add(bucket, key)
    assert len(buckets) == 3 and buckets.passed(2) == [] and buckets.passed(5) == [3, 5]
    buckets.take(3, ["b"])
    assert list(buckets[3]) == ["c"]
    buckets.take(3, ["c"])
    buckets.take(5)
    assert buckets.passed(9) == [] and len(buckets) == 0


def test_users_with_open_decisions_wait_once(log):
    """However often his decisions come to an end and he begins again."""
    for n in range(6):
        log.write(event("view", item="toys-0", at=T0 + n))
        log.write(Erasure("u", T0 + n, 0))
    assert len(log.engine.expiry) == 1
