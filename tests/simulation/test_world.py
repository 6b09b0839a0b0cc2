"""The world keeps what docs/world.md promises: measured, not read off its settings."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from headrace.simulation.settings import DAY_MS, HOUR_MS, WorldSettings
from headrace.simulation.world import Interaction, World

START = 1_700_000_000_000


def random_slate(world: World, rng: np.random.Generator) -> list[int]:
    return [int(i) for i in rng.choice(np.flatnonzero(world.live), 10, replace=False)]


def live(world: World, pages: int, *, days: float = 7.0, seed: int = 0) -> list[Interaction]:
    """`pages` pages spread over `days`, with random slates for whoever looks."""
    rng, events = np.random.default_rng(seed), []
    for n in range(pages):
        ts = START + int(n * days * DAY_MS / pages)
        world.advance(ts)
        events += world.due(ts)
        visit = world.visit(ts)
        events += visit.events
        if visit.looks:
            events += world.show(visit.user, random_slate(world, rng), f"r{n}", ts)
    return events


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldSettings(), start_ms=START)


@pytest.fixture(scope="module")
def week() -> list[Interaction]:
    return live(World(WorldSettings(), start_ms=START), 15_000)


def test_the_shelf_reads_like_a_shop(world: World) -> None:
    catalogue = world.catalogue
    assert int(world.live.sum()) >= 5_000 and len(world.user_ids) >= 2_000
    assert len(catalogue.categories) >= 40
    assert len(set(catalogue.titles)) == len(catalogue.titles)
    for item in range(0, len(catalogue.ids), 97):
        kind, style = catalogue.category[item], catalogue.style[item]
        assert catalogue.nouns[kind][catalogue.noun[item]] in catalogue.titles[item]
        assert any(word in catalogue.titles[item] for word in catalogue.style_words[style])


def test_random_slates_are_clicked_at_most_five_times_in_a_hundred(week: list[Interaction]) -> None:
    shown = sum(len(e.shown or ()) for e in week if e.type == "impression")
    clicks = sum(e.type == "click" for e in week)
    assert shown > 30_000
    assert 0.005 < clicks / shown <= 0.05


def test_purchases_follow_at_most_five_clicks_in_a_hundred_and_late() -> None:
    # Slates of the oracle: more clicks to count than random ones bring.
    world, bought, clicks, asked = World(WorldSettings(), start_ms=START), [], 0, {}
    for n in range(9_000):
        ts = START + n * 50_000
        world.advance(ts)
        bought += [e for e in world.due(ts) if e.type == "purchase"]
        visit = world.visit(ts)
        if visit.looks:
            shown = world.show(visit.user, world.best(visit.user, ts)[1], f"r{n}", ts)
            clicks += len(shown) - 1
            asked[f"r{n}"] = ts
    bought += [e for e in world.due(ts + 30 * DAY_MS) if e.type == "purchase"]
    named = [e for e in bought if e.recommendation_id]
    anonymous_share = world.settings.anonymous_purchases
    assert clicks > 3_000
    assert 0.01 < len(named) / (1 - anonymous_share) / clicks <= 0.05
    delays = [e.ts - asked[str(e.recommendation_id)] for e in named]
    assert np.median(delays) > HOUR_MS and max(delays) < 5 * DAY_MS


def test_a_week_holds_every_kind_of_event(week: list[Interaction]) -> None:
    kinds = Counter(e.type for e in week)
    assert set(kinds) == {"view", "search", "impression", "click", "add_to_cart", "purchase", "return"}
    orders = {(e.order_id, e.item_id): e.ts for e in week if e.type == "purchase"}
    returns = [e for e in week if e.type == "return"]
    assert all(orders[e.order_id, e.item_id] < e.ts for e in returns)
    assert len({e.event_id for e in week}) == len(week)


def test_clicks_fall_with_the_position(week: list[Interaction]) -> None:
    shown, clicked = np.zeros(10), np.zeros(10)
    for event in week:
        if event.type == "impression":
            shown[: len(event.shown or ())] += 1
        elif event.type == "click":
            assert event.position is not None
            clicked[event.position] += 1
    rate = clicked / shown
    assert rate[0] > 1.5 * rate[3:6].mean() > 1.5 * 0.9 * rate[7:].mean()


def test_the_oracle_beats_every_slate_tried(world: World) -> None:
    rng, ts = np.random.default_rng(1), START
    for user in range(0, 200, 10):
        earned, best = world.best(user, ts)
        assert earned[-1] == pytest.approx(world.expected(user, best, ts))
        assert earned[3] == pytest.approx(world.expected(user, best, ts, shown=4))
        tried = [random_slate(world, rng) for _ in range(50)]
        tried += [[int(i) for i in rng.permutation(best)] for _ in range(20)]
        tried += [[*best[:-1], int(rng.choice(np.setdiff1d(np.flatnonzero(world.live), best)))] for _ in range(20)]
        assert all(world.expected(user, slate, ts) <= earned[-1] + 1e-6 for slate in tried)


def test_what_the_oracle_expects_is_what_users_do() -> None:
    """The oracle's own slates earn, on average, what it said; purchases are few, so clicks alone are compared."""
    world = World(WorldSettings(click_to_purchase=0.0), start_ms=START, seed=3)
    expected, clicks = 0.0, 0
    for n in range(9_000):
        ts = START + n * 60_000
        visit = world.visit(ts)
        if visit.looks:
            earned, best = world.best(visit.user, ts)
            impression, *clicked = world.show(visit.user, best, f"r{n}", ts)
            expected += earned[len(impression.shown or ()) - 1]
            clicks += len(clicked)
    assert clicks == pytest.approx(expected, rel=0.05)


def test_taste_matters() -> None:
    """In expectation: the oracle far above what all like best, and that above random slates."""
    world, ts = World(WorldSettings(), start_ms=START), START
    rng, users = np.random.default_rng(2), range(0, 2_000, 4)
    liked = world.tastes.lasting[:, : world.settings.items].mean(axis=0)
    popular = [int(i) for i in np.argsort(-liked)[:10]]
    earned = {
        "random": np.mean([world.expected(u, random_slate(world, rng), ts) for u in users]),
        "popular": np.mean([world.expected(u, popular, ts) for u in users]),
        "oracle": np.mean([world.best(u, ts)[0][-1] for u in users]),
    }
    assert earned["oracle"] > 2.5 * earned["popular"] > 2.5 * 1.5 * earned["random"]


def test_the_same_seed_gives_the_same_world_and_another_does_not() -> None:
    settings = WorldSettings(items=600, arriving=50, users=100)
    once, again = (live(World(settings, start_ms=START), 1_000) for _ in range(2))
    assert once == again
    assert live(World(settings, start_ms=START, seed=1), 1_000) != once


def test_tastes_and_shelf_drift() -> None:
    world = World(WorldSettings(), start_ms=START)
    before, trend, on_shelf = world.tastes.lasting.copy(), world.tastes.trend.copy(), int(world.live.sum())
    changes = world.advance(START + 7 * DAY_MS)
    changed = (world.tastes.lasting != before).any(axis=1).mean()
    assert 0.1 < changed < 0.4
    assert np.corrcoef(trend, world.tastes.trend)[0, 1] < 0.5
    assert sum(c["available"] and int(c["item_id"][1:]) >= on_shelf for c in changes) > 150
    assert any(not c["available"] for c in changes)


def test_users_tire_of_what_they_see_and_do_not_buy_twice() -> None:
    world = World(WorldSettings(), start_ms=START)
    earned, best = world.best(7, START)
    for _ in range(5):
        world.show(7, best, "r", START)
    assert world.expected(7, best, START) < 0.9 * earned[-1]
    assert world.expected(7, best, START + 10 * DAY_MS) == pytest.approx(earned[-1], rel=0.02)
    world.tastes.buy(7, best[0])
    assert world.expected(7, best[:1], START + 10 * DAY_MS) == 0
