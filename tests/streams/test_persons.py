"""Whose an id is, read from the topic: what the workers make of the same messages."""

import numpy as np
import pytest

from headrace.streams.changelog import ALIAS, decode_alias
from headrace.streams.erased import Erased
from headrace.streams.people.persons import Persons
from headrace.streams.settings import Settings
from tests.engine import T0
from tests.streams.test_identity import IDS, Shop, identity


def ends(shop):
    """{id: whose it is}, by the workers."""
    into = {
        key[len(ALIAS) :].decode(): decode_alias(raw).user_id
        for engine in shop.engines
        for key, raw in engine.states.items()
        if key.startswith(ALIAS)
    }

    def end(name):
        return end(into[name]) if name in into else name

    return {name: end(name) for name in IDS}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("section", [{}, {"anonymous": "a*"}])
def test_it_is_what_the_workers_make_of_it(shared, section, seed):
    shop, draw = Shop(shared, identities=section), np.random.default_rng(seed)
    told = [identity(*draw.choice(IDS, 2).tolist(), T0 + n) for n in range(12)]
    for one in told:
        shop.run(one)
    persons = Persons(shop.settings, draw.permutation(np.array(told, object)))
    assert {name: persons.user(name) for name in IDS} == ends(shop)


@pytest.mark.parametrize("who", ["u", "a"])
def test_what_was_said_before_an_erasure_says_nothing(who):
    erased = Erased()
    erased.add(who, T0 + 5)
    told = [identity("u", "a", T0 + 5), identity("u", "b", T0 + 6)]
    persons = Persons(Settings(), told, erased=erased.covers)
    assert persons.user("a") == "a" and (persons.user("b") == "u")
