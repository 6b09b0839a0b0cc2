"""The encoder's log holds what a worker's histories hold, and nothing of who asked to be forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.export.log import Log
from headrace.export.names import type_code
from headrace.streams import settings as settings_module
from headrace.streams import training_log
from headrace.streams.changelog import user_key
from headrace.streams.erased import Erased
from headrace.streams.errors import HeadraceError
from headrace.streams.records import Erasure, Event, item_key
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.training_log import TrainingLog, from_files
from headrace.streams.vectors import fused, projected
from tests.engine import ITEMS, T0, event

CATALOGUE: list[dict[str, Any]] = [
    {"item_id": item, "category": category, "title": title, "price": 10.0 + n}
    for n, (item, category, title) in enumerate(ITEMS)
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def message(e: Event) -> dict[str, Any]:
    fields = ("event_id", "user_id", "type", "ts", "item_id", "value", "text")
    return {name: getattr(e, name) for name in fields if getattr(e, name) is not None}


@pytest.fixture
def read(shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(training_log, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(training_log, "_text_encoder", lambda _: shared.recommender.texts)  # loaded once

    def from_events(
        *events: Event, items: list[Any] = CATALOGUE, settings: Settings | None = None, **more: Any
    ) -> TrainingLog:
        log = write(tmp_path / "events.jsonl", [message(e) for e in events])
        return from_files(settings or Settings(), [log], write(tmp_path / "items.jsonl", items), **more)

    return from_events


def histories(log: Log) -> dict[str, list[tuple[int | str, str]]]:
    """{user: (item id or row of the words, event type)}."""
    names = {type_code(name): name for name in settings_module.builtin_event_types()}
    ids = {item_key(item): item for item, _, _ in ITEMS}
    found: dict[str, list[tuple[int | str, str]]] = {}
    for u, user in enumerate(log.users):
        rows = range(int(log.offsets[u]), int(log.offsets[u + 1]))
        found[user] = [
            (ids[int(log.keys[log.items[e]])] if log.items[e] >= 0 else int(log.asked[e]), names[int(log.types[e])])
            for e in rows
        ]
    return found


def some_events() -> list[Event]:
    """Of three users: everything that makes a history what it is."""
    return [
        event("view", user="ann", item="toys-0", at=T0),
        event("search", user="ann", text="garden tools", at=T0 + 1_000),
        event("dwell", user="ann", item="toys-0", value=3.0, at=T0 + 1_500),
        event("comment", user="ann", item="garden-0", text="just what I looked for", at=T0 + 2_000),
        event("purchase", user="bob", item="coffee-1", value=11.0, at=T0 + 3_000, id="same"),
        event("purchase", user="bob", item="coffee-1", value=11.0, at=T0 + 3_500, id="same"),
        event("return", user="bob", item="coffee-1", at=T0 + 4_000),
        event("view", user="bob", item="an item that nobody loaded", at=T0 + 5_000),
        event("like", user="cleo", item="shoes-2", at=T0 + 6_000),
    ]


def test_it_holds_what_a_workers_histories_hold(read: Any, make: Any) -> None:
    events = some_events()
    log = read(*events).log
    assert histories(log) == {
        "ann": [("toys-0", "view"), (0, "search"), ("garden-0", "comment"), (1, "comment")],
        "bob": [("coffee-1", "purchase"), (-1, "view")],
        "cleo": [("shoes-2", "like")],
    }

    from tests.engine import Log as Partition

    partition = Partition(make())
    partition.write(*events)
    for u, user in enumerate(log.users):
        state = UserState.unpack(partition.engine.states[user_key(user)])
        mine = slice(log.offsets[u], log.offsets[u + 1])
        assert state.types == log.types[mine].tobytes()
        assert state.seconds == log.seconds[mine].astype(np.uint32).tobytes()
        known = log.items[mine] >= 0
        assert state.history_keys()[known].tolist() == log.keys[log.items[mine][known]].tolist()


def test_values_prices_categories_and_vectors(read: Any, shared: Any) -> None:
    vector = [0.5, -1.0, 2.0]
    items = [*CATALOGUE, {"item_id": "photo", "title": "A lamp", "vector": vector}, {"item_id": "bare"}]
    made = read(*some_events(), items=items)
    log, texts = made.log, shared.recommender.texts
    assert made.text_version == texts.version
    assert log.prices[:3].tolist() == [10.0, 11.0, 12.0] and np.isnan(log.prices[-1])
    assert log.categories[0] == "shoes" and log.categories[-1] is None
    bob = slice(log.offsets[1], log.offsets[2])
    assert log.values[bob][0] == 11.0 and np.isnan(log.values[bob][1])

    # Items as the catalogue makes them, words as the encoder does; a second reading finds the same in the cache.
    lamp = fused(texts.encode(["A lamp"])[0].astype(np.float16).astype(np.float32), projected(vector, texts.dim))
    assert log.texts[len(CATALOGUE)].tolist() == np.frombuffer(lamp, "<f2").astype(np.float32).tolist()
    assert not log.texts[-1].any() and "1 items have no words" in "\n".join(made.notes)
    asked = texts.encode(["garden tools", "just what I looked for"])
    np.testing.assert_allclose(log.words, asked, atol=1e-6)
    assert read(*some_events(), items=items).log.fingerprint() == log.fingerprint()


def test_the_order_of_arrival_says_nothing(read: Any) -> None:
    events = some_events()
    log = read(*events).log
    turned = read(*events[::-1]).log
    assert histories(turned)["bob"] == histories(log)["bob"] and turned.users == log.users
    assert turned.seconds.tolist() == log.seconds.tolist()


def test_who_asked_to_be_forgotten_is_forgotten_by_the_workers_rule(read: Any, make: Any, tmp_path: Path) -> None:
    events = [*some_events(), event("view", user="ann", item="toys-1", at=T0 + 9_000)]
    file = write(tmp_path / "erased.jsonl", [{"user_id": "ann", "ts": T0 + 2_000}, {"user_id": "cleo", "ts": T0}])
    erased = Erased()
    erased.read_file(file)
    made = read(*events, erased=erased)
    assert histories(made.log)["ann"] == [("toys-1", "view")] and "cleo" in made.log.users
    assert len(made.log.words) == 0  # what he wrote is not even encoded
    assert "4 events of users who asked to be forgotten" in "\n".join(made.notes) and erased.users_met == 1

    from tests.engine import Log as Partition

    partition = Partition(make())
    partition.write(Erasure("ann", T0 + 2_000, 0), *events)
    state = UserState.unpack(partition.engine.states[user_key("ann")])
    assert state.history_keys().tolist() == [item_key("toys-1")]

    names = tmp_path / "erased.txt"
    names.write_text("ann\n\n  cleo \n")
    forever = Erased()
    forever.read_file(names)
    assert read(*events, erased=forever).log.users == ["bob"]


def test_what_is_later_than_until_is_not_read(read: Any) -> None:
    made = read(*some_events(), until_ms=T0 + 3_000)
    assert made.log.users == ["ann"] and "5 events later than --until" in "\n".join(made.notes)


def test_a_crawler_teaches_nothing(read: Any) -> None:
    calm = [event("view", user="ann", item="toys-0", at=T0 + n * 60_000) for n in range(12)]
    hasty = [event("view", user="bot", item="toys-0", at=T0 + n * 1_000) for n in range(12)]
    made = read(*calm, *hasty, settings=Settings(worker={"busy_events": 5}))
    assert {user: len(rows) for user, rows in histories(made.log).items()} == {"ann": 12, "bot": 5}
    assert "7 events of users as busy as a crawler" in "\n".join(made.notes)
    off = read(*calm, *hasty, settings=Settings(worker={"busy_events": 5, "busy_within": "0s"}))
    assert len(off.log.items) == 24


@pytest.mark.parametrize(
    ("events", "items", "says"),
    [
        ([], CATALOGUE, "no event to learn from; check the path"),
        ([event("return", item="toys-0")], CATALOGUE, "no event to learn from .1 of a type that enters no history"),
        ([event("view", item="toys-0")], [], "the catalogue holds no item"),
        ([event("view", item="x"), event("view", item="y")], CATALOGUE, "none of 2 events is of an item of the catal"),
    ],
)
def test_what_nothing_can_be_learned_from_is_one_line(read: Any, events: Any, items: Any, says: str) -> None:
    with pytest.raises(HeadraceError, match=says) as raised:
        read(*events, items=items)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no.txt", None, "No such file"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"user_id": "u"}\nann\n', "line 2 is no erasure"),
    ],
)
def test_a_list_of_the_erased_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: Any, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadraceError, match=says):
        Erased().read_file(tmp_path / name)
