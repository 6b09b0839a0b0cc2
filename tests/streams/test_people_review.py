"""What review asked of merges, opt-out, expiry and erasure where they meet."""

import pytest

from headrace.streams.changelog import erased_key, user_key
from headrace.streams.people import optout
from headrace.streams.records import Closed, Erased, Erasure, Opened
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


def test_a_mark_that_is_renewed_as_its_time_comes_stays(make):
    log = Log(make())
    log.write(Erasure("u", T0, 0))
    log.write(Erasure("u", T0 + 40 * DAY, 0), at=T0 + 40 * DAY)
    assert log.engine.states.get(erased_key("u")) == (T0 + 40 * DAY).to_bytes(8, "little")


def test_who_takes_it_back_lapses_like_anybody(make):
    log = Log(make(identities={"anonymous_ttl": "2d"}))
    log.write(refuse())
    log.write(at=T0 + 3 * DAY, tick=True)
    log.write(event("like", text="profiling", at=T0 + 3 * DAY), at=T0 + 3 * DAY)
    log.write(at=T0 + 6 * DAY, tick=True)
    log.write(at=T0 + 6 * DAY, tick=True)
    assert user_key("u") not in log.engine.states
