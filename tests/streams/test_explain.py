"""`headrace explain`: what is told of one slate, from records that a real engine wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from headrace.streams import cli, kafka, logs
from headrace.streams.changelog import erased_key
from headrace.streams.insight.explain import as_lines, told
from headrace.streams.records import Closed, Item, Opened, Outcome, Transitions, encode, item_key
from headrace.streams.settings import Settings
from tests.engine import DAY, ITEMS, MINUTE, PLACEMENTS, T0, Log, event, ids

if TYPE_CHECKING:
    from tests.conftest import MakeSettings

TITLED = {item_key(item): (item, title) for item, _, title in ITEMS}
ALL = {"decisions": {"full_share": 1.0}, "arms": {"shares": {"policy": 0.5, "popular": 0.5}}}


def decided(log: Log) -> tuple[dict[str, Any], list[Any]]:
    """The slate after a view, clicked and closed; and the records about it."""
    log.write(event("view", item="toys-0"))
    (slate,) = log.write(event("view", item="shoes-0", at=T0 + 1))
    name = slate["recommendation_id"]
    log.write(event("impression", recommendation_id=name, at=T0 + MINUTE))
    log.write(event("click", item=ids(slate)[2], recommendation_id=name, at=T0 + MINUTE))
    log.write(at=T0 + 9 * DAY, tick=True)
    wanted = (Opened, Outcome, Closed)
    return slate, [r for r in log.records if isinstance(r, wanted) and r.recommendation_id == name]


def explained(settings: Settings, slate: dict[str, Any], records: list[Any], **more: Any) -> dict[str, Any]:
    slates = [("recommendations", slate), *more.pop("beside", ())]
    return told(settings, slate["recommendation_id"], slates, records, TITLED)


def test_a_slate_is_told_with_all_that_its_decision_was_made_of(make: Callable[..., Any]) -> None:
    settings = Settings(placements=PLACEMENTS, **ALL)
    slate, records = decided(Log(make(**ALL)))
    found = explained(settings, slate, records)
    assert (found["policy"], found["placement"], found["trigger"]) == ("popular", "default", slate["trigger"])
    assert found["state"]["norm"] == pytest.approx(1, abs=1e-3)
    assert [item["item_id"] for item in found["slate"]] == ids(slate)
    assert [item["propensity"] for item in found["slate"]] == [item["propensity"] for item in slate["items"]]
    assert all(item["title"] == TITLED[item_key(item["item_id"])][1] for item in found["slate"])
    scored = {c["item_id"]: c for c in found["candidates"]}
    assert found["candidates_without_scores"] == "" and sum(c["probability"] for c in scored.values()) == pytest.approx(
        1
    )
    first = slate["items"][0]
    assert scored[first["item_id"]]["probability"] == pytest.approx(first["propensity"])
    assert [scored[i["item_id"]]["score"] for i in slate["items"]] == pytest.approx(
        [i["score"] for i in slate["items"]]
    )
    assert [o["type"] for o in found["outcomes"]] == ["impression", "click"]
    assert found["closed"]["as"] == "shown" and found["closed"]["rewards"][2] == 1.0
    assert json.loads(json.dumps(found))["user_id"] == "u"
    lines = "\n".join(as_lines(found))
    assert "decided by popular version 0" in lines and "click at 2, reward +1" in lines
    assert slate["items"][0]["reason"] in lines and "no rule bound it" in lines


def test_what_is_not_known_is_said(make: Callable[..., Any]) -> None:
    settings = Settings(placements=PLACEMENTS)
    slate, records = decided(Log(make(decisions={"full_share": 0.0})))
    lines = "\n".join(as_lines(explained(settings, slate, records)))
    assert "without scores: their features were not logged" in lines
    lines = "\n".join(as_lines(explained(settings, slate, [])))
    assert "transitions holds no record of this decision" in lines and ids(slate)[0] in lines
    found = told(settings, slate["recommendation_id"], [], records, {})
    assert [item["item_id"] for item in found["slate"]] == ids(slate)
    assert found["slate"][0]["score"] is None and "item_key" in found["candidates"][0]
    assert list(as_lines(found))


def test_rules_and_a_policy_in_shadow_are_told(make: Callable[..., Any]) -> None:
    slate, records = decided(Log(make(**ALL)))
    other = slate | {"policy": {"name": "lints", "version": 3, "arm": "shadow"}}
    slate |= {"unmet": ["brands"]}
    [opened] = [r for r in records if isinstance(r, Opened)]
    opened.rules.extend(["new"])
    found = explained(Settings(**ALL), slate, records, beside=[("recommendations-shadow", other)])
    lines = "\n".join(as_lines(found))
    assert "rules that bound it: new" in lines and "could not be met: brands" in lines
    assert f"in shadow lints version 3 would have shown: {', '.join(ids(slate))}" in lines


@pytest.mark.kafka
def test_the_command_finds_a_slate_says_what_it_does_not_find_and_shows_no_erased_user(
    settings: MakeSettings, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any
) -> None:
    mine = settings(placements=PLACEMENTS, topics={"interactions_partitions": 1}, **ALL)
    slate, records = decided(Log(make(**ALL)))
    producer = Producer(kafka.client_config(mine))

    def send(topic: str, key: bytes, value: bytes) -> None:
        kafka.produce(producer, mine.topic(topic), key=key, value=value, partition=0)
        assert producer.flush(20) == 0

    send("recommendations", b"u", json.dumps(slate).encode())
    send("transitions", b"", encode(Transitions(0, 0, T0, False, records)))
    item = Item(ids(slate)[0], 0, 0, np.zeros(4, "<f2").tobytes(), "h", title="The first of all")
    send("item-vectors", item.item_id.encode(), encode(item))
    file = tmp_path / "headrace.toml"
    file.write_text(
        f'[kafka]\n"bootstrap.servers" = "{mine.bootstrap}"\n'
        f'[topics]\nprefix = "{mine.topics.prefix}"\ninteractions_partitions = 1\n[placements.home]\nk = 3\n'
    )
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def headrace(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "explain", *arguments, "--config", str(file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    code, out, err = headrace(slate["recommendation_id"], "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["slate"][0]["title"] == "The first of all"
    assert len(found["candidates"]) == len(ITEMS) and found["closed"]["as"] == "shown"
    code, out, err = headrace("no-such-id")
    assert (code, out) == (1, "") and err.startswith("headrace: no-such-id: no such recommendation_id in")
    send("users-changelog", erased_key("u"), (T0 + DAY).to_bytes(8, "little"))
    code, out, err = headrace(slate["recommendation_id"])
    assert (code, out) == (1, "") and "its user was erased since" in err


def test_what_each_entry_did_for_each_item_is_told(make: Callable[..., Any]) -> None:
    settings = Settings(placements=PLACEMENTS, **ALL)
    slate, records = decided(Log(make(**ALL)))
    [opened] = [record for record in records if isinstance(record, Opened)]
    keys = np.array([item_key("shoes-0"), item_key("toys-0")], np.uint64)
    assert opened.entries == keys.tobytes() + bytes([1, 1]), "two views, the latest first"
    assert len(opened.lowered) == 2 * 2 * len(opened.slate)
    lowered = np.zeros((2, len(opened.slate)), np.float16)
    lowered[:, 0] = 0.25, 0.5
    told_of = msgspec.structs.replace(opened, lowered=lowered.tobytes())
    found = explained(settings, slate, [told_of])
    first, second = found["slate"][0]["attributions"], found["slate"][1]["attributions"]
    assert [(one["item_id"], one["type"], one["place"], one["lowered"]) for one in first] == [
        ("toys-0", "view", 1, 0.5),
        ("shoes-0", "view", 0, 0.25),
    ]
    lines = list(as_lines(found))
    both = "view toys-0 (Wooden toy train) 0.5000, view shoes-0 (Trail running shoe) 0.2500"
    assert any(both in line for line in lines)
    assert not any(one["lowered"] for one in second) and any(line.endswith("1  none lowers it") for line in lines)
    older = msgspec.structs.replace(opened, entries=b"", lowered=b"")
    assert explained(settings, slate, [older])["slate"][0]["attributions"] == []
