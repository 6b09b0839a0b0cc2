"""`headrace erase`: whom it reaches and when it is done. On the changelogs of engines, without Kafka."""

import pytest

from headrace.streams.people.erasure import is_done, reached
from headrace.streams.people.subject import told_of
from headrace.streams.records import Erasure
from tests.engine import DAY, HOUR, MINUTE, T0, event
from tests.streams.test_identity import Shop, elsewhere, identity


class Asked:
    """An erasure as the command waits for it."""

    def __init__(self, shop, user, at=T0 + HOUR):
        self.shop, self.user, self.at = shop, user, at
        self.names = self.reached()

    def reached(self):
        return reached(self.look, self.user, self.shop.engines[0].lapses, self.at)

    def look(self, names):
        return {name: told_of(self.shop.changelogs[self.shop.of(name)].get, name) for name in names}

    def done(self):
        done = is_done(self.look, self.user, self.names, self.at)
        self.names |= self.reached()
        return done


def held(shop):
    """Users and aliases."""
    return [key for changelog in shop.changelogs for key in changelog if key.startswith((b"u", b"\0alias/"))]


@pytest.fixture
def merged(shared):
    """`a` became `b` and `b` became `u`, in three partitions."""
    shop = Shop(shared, identities={"anonymous_ttl": "60d"})
    b = elsewhere(shop, "u", name="b")
    a = next(f"a{n}" for n in range(100) if shop.of(f"a{n}") not in (shop.of("u"), shop.of(b)))
    shop.run(*(event(user=user, item="toys-0") for user in (a, b, "u")))
    for entry in (identity(b, a), identity("u", b)):
        shop.run(entry)
    return shop, a, b


@pytest.mark.parametrize("of", ["a", "b", "u"])
def test_it_is_done_when_nothing_of_the_person_is_left(merged, of):
    shop, a, b = merged
    user = {"a": a, "b": b, "u": "u"}[of]
    asked = Asked(shop, user)
    assert asked.names == {a, b, "u"} and not asked.done()
    shop.write(Erasure(user, T0 + HOUR, 0))
    while any(shop.turn(p) for p in range(3)):
        assert not asked.done() or not held(shop)
    assert asked.done() and not held(shop)


def test_who_comes_back_meanwhile_is_not_waited_for(merged):
    shop, a, _ = merged
    asked = Asked(shop, a)
    shop.run(Erasure(a, T0 + HOUR, 0))
    shop.run(event(user="u", item="toys-1", at=T0 + DAY), identity("u", "c", T0 + DAY), at=T0 + DAY)
    asked.done()
    assert asked.done() and "c" not in asked.names


def test_an_alias_that_has_lapsed_leads_nowhere(merged):
    shop, a, _ = merged
    at = T0 + 61 * DAY
    shop.tick(at - MINUTE)
    asked = Asked(shop, a, at)
    assert asked.names == {a}
    shop.run(Erasure(a, at, 0))
    assert asked.done()


def test_it_is_not_done_before_it_is_applied(shared):
    """Also of an id of which nothing is held."""
    shop = Shop(shared)
    asked = Asked(shop, "u")
    assert not asked.done()
    shop.run(Erasure("u", T0 + HOUR, 0))
    assert asked.done()
