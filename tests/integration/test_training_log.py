"""The encoder's log from the topics of a real broker: who was erased, and whom only a worker remembers, stay out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from headrace.export.artifact import load
from headrace.streams import cli, cli_train, kafka, logs, training_log
from headrace.streams.changelog import erased_key
from headrace.streams.errors import HeadraceError
from headrace.streams.settings import Settings
from headrace.streams.training_log import from_topics

if TYPE_CHECKING:
    from tests.conftest import MakeSettings

pytestmark = pytest.mark.kafka
T0 = 1_700_000_000_000


def send(settings: Settings, topic: str, *messages: tuple[str, Any]) -> None:
    producer = Producer(kafka.client_config(settings))
    for key, value in messages:
        raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        kafka.produce(producer, settings.topic(topic), key=key.encode(), value=raw)
    assert producer.flush(20) == 0


def event(n: int, user: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return user, {"event_id": f"e{n}", "user_id": user, "type": "view", "item_id": "a", "ts": T0 + 1_000 * n, **more}


def test_nothing_of_an_erased_user_gets_in(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_log, "cache_dir", lambda: tmp_path / "cache")
    mine = settings()
    send(
        mine,
        "items",
        ("a", {"item_id": "a", "title": "A steel spade", "price": 3}),
        ("b", {"item_id": "b", "title": "A clay pot"}),
        ("c", {"item_id": "c", "title": "Sold out and gone"}),
        ("c", None),
        ("d", {"item_id": "another id than the key", "title": "A lamp"}),
    )
    send(mine, "erasures", ("eve", {"user_id": "eve", "ts": T0 + 5_000}), ("eve", None), ("dan", None))
    # The shop has overwritten its message, Kafka has cleaned it away: a worker's hash and time remain.
    producer = Producer(kafka.client_config(mine))
    kafka.produce(
        producer, mine.topic("users-changelog"), key=erased_key("fay"), value=(T0 + 90_000).to_bytes(8, "little"),
        partition=0,
    )  # fmt: skip
    assert producer.flush(20) == 0
    send(
        mine,
        "events",
        event(1, "ann"),
        event(2, "eve"),
        event(3, "eve", type="search", item_id=None, text="a secret of eve's"),
        event(4, "ann", item_id="b"),
        event(4, "ann", item_id="b"),
        event(5, "fay"),
        event(6, "eve", item_id="b"),
        event(7, "dan", item_id="c"),
        event(8, "dan", type="search", item_id=None, text="pots"),
        event(1, "cookie-7", item_id="b", ts=T0),  # ann's before she logged in, under an event_id that she has too
        ("ann", b"no event"),
        ("ann", None),
    )
    said = {"user_id": "ann", "anonymous_id": "cookie-7", "ts": T0}
    send(mine, "identities", ("ann", said), ("dan", {**said, "user_id": "dan", "ts": T0 + 1}))  # stays with the first
    made = from_topics(mine)
    log = made.log
    assert log.users == ["ann", "dan", "eve"]
    assert [log.items[a:b].tolist() for a, b in zip(log.offsets, log.offsets[1:], strict=False)] == [
        [1, 0, 1],
        [-1, -1],
        [1],  # after the erasure: a new user's
    ]
    assert len(log.keys) == 2 and len(log.words) == 1  # what eve looked for was never encoded
    told = "\n".join(made.notes)
    assert "3 events of users who asked to be forgotten" in told and "1 events sent twice" in told
    assert "1 messages of items not read" in told and "1 messages of events not read" in told

    assert from_topics(mine, until_ms=T0 + 2_000).log.users == ["ann"]


def test_what_cannot_be_read_is_one_line(settings: MakeSettings) -> None:
    mine = settings()
    with pytest.raises(HeadraceError, match="the catalogue holds no item; load it with `headrace items load`"):
        from_topics(mine)
    with pytest.raises(HeadraceError, match="create it with `headrace topics create`"):
        from_topics(settings(create=False))


def test_export_train_from_topics_goes_on_after_a_kill(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second epoch, started again while the shop trades on: it ends with the log that it began with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_log, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    mine = settings()
    words = ("spade", "pot", "lamp", "shoe")
    ids = [f"{word}-{n}" for word in words for n in range(6)]
    send(mine, "items", *((item, {"item_id": item, "title": f"A {item.replace('-', ' no. ')}"}) for item in ids))
    send(mine, "erasures", ("u3", {"user_id": "u3", "ts": T0 + 9_000_000}))
    send(
        mine,
        "events",
        *(
            event(100 * user + n, f"u{user}", item_id=f"{words[user % 4]}-{(user + n) % 6}", ts=T0 + 60_000 * n)
            for user in range(24)
            for n in range(5)
        ),
    )
    (tmp_path / "headrace.toml").write_text(
        f'[kafka]\n"bootstrap.servers" = "{mine.bootstrap}"\n\n[topics]\nprefix = "{mine.topics.prefix}"\n'
    )

    def headrace(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "export", "train", "encoder", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    @contextmanager
    def killed() -> Iterator[Any]:
        def tell(_step: int, _steps: int, words: str, _left: float) -> None:
            if words.startswith("epoch 2"):
                raise SystemExit(137)

        yield tell

    with monkeypatch.context() as patched:
        patched.setattr(cli_train, "_progress", killed)
        assert headrace("--epochs", "3")[0] == 137
    assert not (tmp_path / "encoder").exists() and (tmp_path / "encoder.training" / "progress.json").exists()
    began_with = from_topics(mine).log
    send(mine, "events", event(9_999, "u1", item_id="shoe-1", ts=int(time.time() * 1000)))

    began = set[str]()

    @contextmanager
    def watched() -> Iterator[Any]:
        yield lambda step, steps, words, left: began.add(words[:7])

    monkeypatch.setattr(cli_train, "_progress", watched)
    code, out, err = headrace("--epochs", "3")
    assert (code, err) == (0, "") and "epoch 2" in began and "epoch 1" not in began
    assert f"{5 * 23} events of 23 users, 24 items" in out and "5 events of users who asked to be forgotten" in out
    made = load(tmp_path / "encoder", "user")
    assert made.manifest.trained_on == began_with.fingerprint() and made.version in out
    assert {"valid_ndcg10", "popular_ndcg10", "untrained_ndcg10"} <= made.manifest.metrics.keys()
    assert not (tmp_path / "encoder.training").exists()
