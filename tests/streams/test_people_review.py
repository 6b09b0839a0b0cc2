"""What review asked of merges, opt-out, expiry and erasure where they meet."""

import asyncio

import pytest
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams.changelog import ALIAS, erased_key, user_key
from headrace.streams.metrics import Metrics
from headrace.streams.people import optout
from headrace.streams.people.identity import merged_ids
from headrace.streams.people.merging import MERGED
from headrace.streams.records import Closed, Erased, Erasure, Opened, Unalias
from headrace.streams.standby import PartitionState
from headrace.streams.worker import Assignment, Worker
from tests.engine import DAY, HOUR, MINUTE, T0, Log, event, request
from tests.streams.test_identity import Shop, elsewhere, here, identity


def refuse(**more):
    return event("dismiss", text="profiling", **more)


@pytest.mark.parametrize("where", [elsewhere, here])
def test_learners_forget_also_what_was_shown_under_a_merged_id(shared, where):
    shop = Shop(shared)
    anonymous = where(shop, "u")
    shop.run(request(user=anonymous), identity("u", anonymous))
    assert {r.user_id for r in shop.records if isinstance(r, Opened)} == {anonymous}
    shop.run(refuse(user="u", at=T0 + MINUTE), at=T0 + MINUTE)
    assert {r.user_id for r in shop.records if isinstance(r, Erased)} == {"u", anonymous}


@pytest.mark.parametrize("refuses", ["user", "anonymous"])
@pytest.mark.parametrize("where", [elsewhere, here])
def test_a_merge_that_ends_profiling_closes_and_forgets_what_was_open(shared, where, refuses):
    shop = Shop(shared)
    anonymous = where(shop, "u")
    who, other = ("u", anonymous) if refuses == "user" else (anonymous, "u")
    shop.run(request(user=other), refuse(user=who, at=T0 + MINUTE))
    shop.run(identity("u", anonymous, T0 + HOUR), at=T0 + HOUR)
    assert optout.refused(shop.state("u"))
    assert [c.closed_as for c in shop.records if isinstance(c, Closed)] == ["erased"]
    assert other in {r.user_id for r in shop.records if isinstance(r, Erased)}
    assert shop.state("u").pending_count == 0 and sum(e.open_decisions for e in shop.engines) == 0


def test_a_partition_that_goes_takes_what_the_encoder_keeps_of_its_users(shared):
    """Should it come back, nobody here has heard whom another worker erased."""
    shop = Shop(shared, partitions=2, event_types={})
    mine = elsewhere(shop, "u")
    shop.run(event(user="u", item="toys-0"), event(user=mine, item="toys-1"))
    cached = shared.encoder.cached_users
    engine = shop.engines[shop.of("u")]
    worker = Worker.__new__(Worker)
    worker.interactions, worker.metrics = "interactions", Metrics(CollectorRegistry(), "worker")
    worker._assignments = {engine.partition: Assignment(engine.partition, None, engine, PartitionState(), 0)}
    asyncio.run(worker._release(None, [TopicPartition("interactions", engine.partition)]))
    assert (cached, shared.encoder.cached_users) == (2, 1)
    hits = shared.encoder.hits
    shop.run(event(user=mine, item="toys-2", at=T0 + MINUTE))
    assert shared.encoder.hits == hits + 1, "those of other partitions stay"


def test_a_mark_that_is_renewed_as_its_time_comes_stays(make):
    log = Log(make())
    log.write(Erasure("u", T0, 0))
    log.write(Erasure("u", T0 + 40 * DAY, 0), at=T0 + 40 * DAY)
    assert log.engine.states.get(erased_key("u")) == (T0 + 40 * DAY).to_bytes(8, "little")


@pytest.mark.parametrize("swept", [True, False])
@pytest.mark.parametrize("where", [elsewhere, here])
def test_the_aliases_of_who_lapses_go_with_him(shared, where, swept):
    """What is left of him could not be erased: his state named them."""
    shop = Shop(shared, identities={"anonymous_ttl": "60d", "known_ttl": "2d"})
    anonymous, at = where(shop, "u"), T0 + 3 * DAY
    shop.run(event(user=anonymous, item="toys-0"), identity("u", anonymous))
    if swept:
        shop.tick(at)
    shop.run(event(user="u", item="toys-1", at=at), at=at)
    assert shop.state("u").count == 1, "he comes back, and is new"
    assert not any(key.startswith(ALIAS) for engine in shop.engines for key in engine.states)
    shop.run(event(user=anonymous, item="toys-2", at=at + MINUTE), Erasure("u", at + HOUR, 0), at=at)
    assert [user for user, _ in shop.histories()] == [anonymous]


def test_who_takes_it_back_lapses_like_anybody(make):
    log = Log(make(identities={"anonymous_ttl": "2d"}))
    log.write(refuse())
    log.write(at=T0 + 3 * DAY, tick=True)
    log.write(event("like", text="profiling", at=T0 + 3 * DAY), at=T0 + 3 * DAY)
    log.write(at=T0 + 6 * DAY, tick=True)
    log.write(at=T0 + 6 * DAY, tick=True)
    assert user_key("u") not in log.engine.states


@pytest.mark.parametrize("where", [elsewhere, here])
def test_an_id_that_is_another_users_by_now_stays_his(shared, where):
    """`u` still notes an id that lapsed and came back as `v`'s: what his partition says of it comes too late."""
    shop = Shop(shared, identities={"anonymous_ttl": "31d"})
    anonymous, at = where(shop, "u"), T0 + 80 * DAY
    shop.run(identity("u", anonymous))
    shop.tick(at)
    shop.run(identity("v", anonymous, at), at=at)
    assert merged_ids(shop.state("u")) == merged_ids(shop.state("v")) == [anonymous]
    shop.run(Unalias(anonymous, "u", T0, 0, [anonymous]), at=at)
    shop.run(Erasure("u", at, 0), at=at)
    shop.run(event(user=anonymous, item="toys-0", at=at + MINUTE), at=at)
    assert [user for user, _ in shop.histories()] == ["v"]


def test_all_aliases_of_a_chain_go_with_an_erasure(shared):
    shop = Shop(shared)
    other = elsewhere(shop, "u", name="b")
    anonymous = elsewhere(shop, other)
    for entry in (identity(other, anonymous), identity("u", other), Erasure("u", T0 + HOUR, 0)):
        shop.run(entry)
    assert not any(key.startswith(ALIAS) for engine in shop.engines for key in engine.states)


def test_an_id_of_a_chain_for_which_there_is_no_room_is_a_new_users(shared):
    shop = Shop(shared)
    other = elsewhere(shop, "u", name="b")
    anonymous = elsewhere(shop, other)
    for entry in (identity(other, anonymous), identity("u", other)):
        shop.run(entry)
    for n in range(MERGED - 1):
        shop.run(identity("u", f"c{n}", T0 + n))
    assert merged_ids(shop.state("u"))[0] == other
    shop.run(event(user=anonymous, item="toys-0"))
    assert [user for user, _ in shop.histories()] == [anonymous]
