"""What the arms are worth, on engines with real models: whose money, whose visit; a restart loses none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from headrace.streams.changelog import decode_progress
from headrace.streams.effects import report
from headrace.streams.engine import Engine
from headrace.streams.insight.cost import prices, traffic
from headrace.streams.insight.worth import LARGEST, control, declare
from headrace.streams.metrics import Metrics
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Item, item_key
from headrace.streams.settings import Settings
from tests.engine import HOUR, ITEMS, MINUTE, PLACEMENTS, T0, Log, event, ids, request

USERS = [f"u{n}" for n in range(40)]
Make = Callable[..., Log]


@pytest.fixture
def make_log(shared: Any) -> Make:
    """An engine of two arms: `policy` and a holdout."""

    def make(states: Any = None, progress: Any = None, **sections: Any) -> Log:
        arms = {"shares": {"policy": 0.5, "holdout": 0.5}}
        settings = Settings(placements=PLACEMENTS, arms=arms, policy={"name": "linucb"}, **sections)
        policies = Policies(settings, shared.items, dim=shared.encoder.dim)
        texts = shared.recommender.texts
        recommender = Recommender(settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=texts)
        shared.encoder.flush()
        return Log(Engine(settings, 0, recommender, states=states, progress=progress))

    return make


def user_of(log: Log, arm: str) -> str:
    return next(user for user in USERS if log.engine.recommender.policies.live.shares.arm(user) == arm)


def told(log: Log, *kinds: str) -> dict[str, int]:
    """The partition's counts of these kinds."""
    return {name: n for name, n in sorted(log.engine.counts.items()) if n and name.split("/")[0] in kinds}


def test_revenue_is_attributed_to_the_decision_and_counted_whole_by_the_users_arm(make_log: Make) -> None:
    log = make_log()
    treated, held = user_of(log, "policy"), user_of(log, "holdout")
    [slate] = log.write(event(user=treated, item="toys-0"), event(user=held, item="toys-0"))
    shown = ids(slate)[0]
    other = next(item for item, _, _ in ITEMS if item not in ids(slate))
    log.write(
        event("purchase", user=treated, item=shown, value=19.99, quantity=3, order_id="o1",
              recommendation_id=slate["recommendation_id"]),
        event("purchase", user=treated, item=other, value=0.01),
        event("purchase", user=held, item=shown, value=10.0),
        event("rating", user=held, item=shown, value=5.0),
        event("purchase", user=held, item=shown, value=3.0, id="twice"),
        event("purchase", user=held, item=shown, value=3.0, id="twice"),
    )  # fmt: skip
    assert told(log, "revenue", "purchases") == {
        "purchases/holdout": 2,
        "purchases/policy": 2,
        "revenue/all/holdout": 1300,
        "revenue/all/policy": 5998,
        "revenue/attributed/policy": 5997,
    }
    log.write(
        event("purchase", user=treated, item=shown, value=19.99, quantity=3, order_id="o1",
              recommendation_id=slate["recommendation_id"])
    )  # fmt: skip
    assert told(log, "revenue")["revenue/all/policy"] == 5998  # the same order line again, under another id


def test_a_return_takes_back_what_it_says_or_the_price_of_now(make_log: Make) -> None:
    log = make_log()
    held = user_of(log, "holdout")
    log.write(event("purchase", user=held, item="toys-0", value=40.0, quantity=2, order_id="o1"))
    log.write(event("return", user=held, item="toys-0", value=40.0, order_id="o1", at=T0 + HOUR))
    assert told(log, "returned") == {"returned/holdout": 4000}
    log.write(event("return", user=held, item="toys-1", order_id="o2"))
    price = log.engine.recommender.items.price[log.engine.recommender.items.rows[item_key("toys-1")]]
    assert told(log, "returned") == {"returned/holdout": 4000 + round(100 * price)}
    assert told(log, "revenue") == {"revenue/all/holdout": 8000}


def test_what_nobody_knows_the_price_of_is_told_and_what_is_absurd_is_bounded(make_log: Make) -> None:
    log = make_log()
    held = user_of(log, "holdout")
    log.write(
        event("purchase", user=held, item="of nobody"),
        event("purchase", user=held, item="toys-0", value=-3.0),
        event("purchase", user=held, item="toys-0", value=0.0),
    )
    assert told(log, "unpriced", "revenue", "purchases") == {"unpriced/purchase": 3}
    log.write(event("purchase", user=held, item="toys-0", value=1e300, quantity=1e300))
    assert told(log, "revenue") == {"revenue/all/holdout": LARGEST}


def test_margin_is_the_catalogues_share_of_the_price(make_log: Make) -> None:
    log = make_log()
    items, held = log.engine.recommender.items, user_of(log, "holdout")
    log.write(event("purchase", user=held, item="toys-0", value=50.0))
    assert told(log, "margin") == {}
    items.apply(Item("lamp", 0, 10_000, b"", "", 20.0, "lamps", attributes={"margin": 0.25}))
    log.write(event("purchase", user=held, item="lamp"), event("purchase", user=held, item="toys-0", value=50.0))
    assert told(log, "margin", "revenue") == {"margin/holdout": 500, "revenue/all/holdout": 12_000}


def test_a_visit_begins_after_a_while_without_a_word(make_log: Make) -> None:
    log = make_log(worth={"visit_gap": "30m"})
    held, treated = user_of(log, "holdout"), user_of(log, "policy")
    for minutes in (0, 29, 58, 88, 89):
        log.write(event(user=held, item="toys-0", at=T0 + minutes * MINUTE), at=T0 + minutes * MINUTE)
    assert told(log, "visits") == {"visits/holdout/first": 1, "visits/holdout/return": 1}
    log.write(request(user=treated), event("dwell", user=treated, item="toys-0", at=T0 + MINUTE))
    assert told(log, "visits")["visits/policy/first"] == 1
    log.write(event("return", user=treated, item="toys-0", order_id="o", value=1.0, at=T0 + 5 * HOUR), at=T0 + 5 * HOUR)
    log.write(event(user=treated, item="toys-0", at=T0 + HOUR), at=T0 + 5 * HOUR)  # comes late: not another one
    assert "visits/policy/return" not in told(log, "visits")


def test_a_restart_keeps_the_counts_and_metrics_tell_what_was_committed(make_log: Make) -> None:
    log = make_log()
    held = user_of(log, "holdout")
    log.write(event("purchase", user=held, item="toys-0", value=12.5))
    before = told(log, "revenue", "visits", "purchases", "margin", "returned")
    again = make_log(states=dict(log.engine.states), progress=decode_progress(log.engine.progress()))
    assert told(again, "revenue", "visits", "purchases", "margin", "returned") == before != {}
    again.offset = again.engine.applied
    again.write(event("purchase", user=held, item="toys-0", value=2.5, at=T0 + MINUTE))
    assert told(again, "revenue", "visits") == {"revenue/all/holdout": 1500, "visits/holdout/first": 1}

    metrics = Metrics(registry := CollectorRegistry(), "worker")
    declare(again.engine.settings, metrics)
    labels = {"arm": "holdout", "kind": "all"}
    assert registry.get_sample_value("headrace_revenue_total", labels) == 0
    report(again.effects, metrics, now_ms=T0)
    assert registry.get_sample_value("headrace_revenue_total", labels) == 2.5
    assert registry.get_sample_value("headrace_purchases_total", {"arm": "holdout"}) == 1
    assert registry.get_sample_value("headrace_worth_control", {"arm": "holdout"}) == 1


def test_the_control_is_a_holdout_else_the_gates() -> None:
    assert control(Settings(arms={"shares": {"policy": 0.8, "popular": 0.1, "holdout": 0.1}})) == "holdout"
    named = Settings(arms={"shares": {"policy": 0.8, "random": 0.1, "popular": 0.1}}, gate={"control": "popular"})
    assert control(named) == "popular"
    assert control(Settings(arms={"shares": {"policy": 1.0}})) == ""


def test_settings_name_what_brings_money() -> None:
    with pytest.raises(ValidationError, match=r"worth\.revenue names 'sale'"):
        Settings(worth={"revenue": ["sale"]})
    own = Settings(event_types={"sale": {"consumes": True}}, worth={"revenue": ["purchase", "sale"]})
    assert own.worth.revenue == ("purchase", "sale")


def test_prices_and_bytes_are_told() -> None:
    settings = Settings(cost={"core_hour": 0.04, "alert_per_million": 2})
    assert prices(settings.cost) == {
        "core_hour": 0.04, "gib_hour": 0.0, "gib_transferred": 0.0, "alert_per_million": 2.0
    }  # fmt: skip
    Metrics(registry := CollectorRegistry(), "ingest")
    before = registry.get_sample_value("headrace_kafka_bytes_total", {"direction": "written"})
    traffic.written += 7
    assert registry.get_sample_value("headrace_kafka_bytes_total", {"direction": "written"}) == before + 7
