"""`items load` and `events replay` on the real broker: every row is sent or reported, in the order of the times."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from headrace.streams import kafka
from headrace.streams.errors import BrokerError, HeadraceError, SettingsError, TopicsError
from headrace.streams.load import Summary, load_items, replay_events
from headrace.streams.settings import Settings

pytestmark = pytest.mark.kafka

EXAMPLES = Path(__file__).parents[2] / "examples" / "mappings"
DATA = Path(__file__).parents[3] / "shared" / "data"
T0 = 1_700_000_000_000

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not at ../shared/data")


def messages(settings: Settings, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """(key, value) of all messages, partition by partition in their order."""
    found: list[Any] = []
    kafka.read_to_end(settings, settings.topic(topic), found.append)
    found.sort(key=lambda m: (m.partition(), m.offset()))
    return [(m.key().decode(), json.loads(m.value())) for m in found]


def reasons(summary: Summary) -> dict[str, int]:
    return {reason: skipped.count for reason, skipped in summary.skipped.items()}


def jsonl(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def event(n: int, **changes: Any) -> dict[str, Any]:
    return {"event_id": f"e{n}", "user_id": f"u{n % 3}", "item_id": "i", "type": "view", "ts": T0 + n, **changes}


def test_our_own_messages_are_sent_as_they_are(settings: Any, tmp_path: Path) -> None:
    made = settings()
    rows = [
        {"item_id": "a", "title": "A", "unknown": 1},
        b"rubbish",
        {"item_id": "a", "price": 2.0},
        b"",
        {"title": "x"},
    ]
    summary = load_items(made, jsonl(tmp_path / "items.jsonl", rows))
    assert (summary.rows, summary.sent, reasons(summary)) == (4, 2, {"json": 1, "missing": 1})
    assert messages(made, "items") == [("a", rows[0]), ("a", rows[2])]
    said = str(summary).splitlines()
    assert "4 rows, 2 sent" in said[0] and "1 not sent: missing; first in row 4" in said[2]


def test_events_go_in_the_order_of_their_times_and_once(settings: Any, tmp_path: Path) -> None:
    made = settings(topics={"events_partitions": 1})
    rows = [event(n) for n in (5, 1, 3, 1, 2)] + [event(9, ts=5), event(8, type="wink")]
    path = jsonl(tmp_path / "log.jsonl", rows)
    first = replay_events(made, path)
    assert [value["ts"] - T0 for _, value in messages(made, "events")] == [1, 2, 3, 5]
    assert reasons(first) == {"time": 1, "event_type": 1, "the same event as an earlier row": 1}
    assert first.rows == first.sent + sum(reasons(first).values()) == 7
    again = replay_events(made, path)
    sent = [value["event_id"] for _, value in messages(made, "events")]
    assert again.sent == 4 and sent[:4] == sent[4:]  # a second replay brings duplicates only


def test_speed_is_kept(settings: Any, tmp_path: Path) -> None:
    made = settings()
    path = jsonl(tmp_path / "log.jsonl", [event(0), event(1, ts=T0 + 60_000), event(2, ts=T0 + 120_000)])
    began = time.monotonic()
    replay_events(made, path, speed=120.0)
    assert time.monotonic() - began >= 1.0
    times: list[int] = []
    kafka.read_to_end(made, made.topic("events"), lambda m: times.append(m.timestamp()[1]))
    times.sort()
    assert 450 < times[1] - times[0] < 5_000 and 450 < times[2] - times[1] < 5_000
    with pytest.raises(SettingsError, match="speed 0 is not above 0"):
        replay_events(made, path, speed=0)


def test_csv_by_mapping(settings: Any, tmp_path: Path) -> None:
    made = settings()
    path = tmp_path / "goods.csv"
    path.write_bytes(
        "\ufeffcode;name;in stock\r\n 1 ;Käse;yes\r\n1;Brie;no\r\n2;x\r\n;none;no\r\n3;Tee;maybe\r\n".encode()
    )
    mapping = tmp_path / "map.toml"
    mapping.write_text(
        '[csv]\ndelimiter = ";"\n[items]\nitem_id = "code"\ntitle = "name"\navailable = "in stock"\nkeep = "last"'
    )
    summary = load_items(made, path, mapping)
    assert messages(made, "items") == [("1", {"item_id": "1", "title": "Brie", "available": False})]
    assert reasons(summary) == {
        "another row of the same item, the last one is sent": 1,
        "more or fewer cells than the first line has": 1,
        "no item_id: column 'code' is empty": 1,
        "available is neither true nor false; translate the file's words with values": 1,
    }


def test_parquet_with_columns_of_our_names(settings: Any, tmp_path: Path) -> None:
    made = settings()
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    table = pyarrow.table({
        "user_id": [1, 2], "item_id": ["a", "b"], "type": ["view", "impression"], "ts": [moment, moment],
        "shown": [None, ["a", "b"]], "other": [1.0, 2.0],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    assert replay_events(made, tmp_path / "log.parquet").sent == 2
    events = {key: value for key, value in messages(made, "events")}
    assert events["1"] == {
        "event_id": events["1"]["event_id"],
        "user_id": "1",
        "item_id": "a",
        "type": "view",
        "ts": T0,
    }
    assert events["2"]["shown"] == ["a", "b"]


def test_most_frequent_row_of_an_item(settings: Any, tmp_path: Path) -> None:
    made = settings()
    rows = [{"StockCode": "1", "Description": d, "Price": 2.0} for d in ("check", "TEA POT", " TEA POT ", "TEAPOT")]
    rows += [{"StockCode": "POST", "Description": "POSTAGE", "Price": 5.0}]
    summary = load_items(made, jsonl(tmp_path / "items.jsonl", rows), EXAMPLES / "online-retail-ii.toml")
    assert messages(made, "items") == [("1", {"item_id": "1", "title": "TEA POT", "price": 2.0})]
    assert reasons(summary)["left out: postage, fees and corrections are no products"] == 1


def test_sessions_are_laid_flat(settings: Any, tmp_path: Path) -> None:
    made = settings()
    clicks = [{"aid": n, "ts": T0 + n, "type": t} for n, t in enumerate(("clicks", "carts", "orders", "stares"))]
    path = jsonl(tmp_path / "train.jsonl", [{"session": 7, "events": clicks}, {"session": 8, "events": None}])
    summary = replay_events(made, path, EXAMPLES / "otto.toml")
    assert [(key, value["type"]) for key, value in messages(made, "events")] == [
        ("7", "click"), ("7", "add_to_cart"), ("7", "purchase"),
    ]  # fmt: skip
    assert reasons(summary) == {
        "column 'type' holds a word that the mapping's values do not list": 1,
        "column 'events' holds no list": 1,
    }


def test_a_message_larger_than_the_topic_takes_is_reported(settings: Any, tmp_path: Path) -> None:
    made = settings(topics={"max_message_bytes": 65_536})
    path = jsonl(tmp_path / "items.jsonl", [{"item_id": "a", "text": "x" * 100_000}, {"item_id": "b"}])
    summary = load_items(made, path)
    assert summary.sent == 1 and reasons(summary) == {"larger than the topic takes": 1}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "none.csv: No such file or directory; check the path"),
        ("log.xlsx", b"", r"no known kind of file; give a .jsonl, .csv \(these also as .gz\) or .parquet file"),
        ("log.parquet", b"no parquet", "log.parquet: not a parquet file"),
        ("log.csv", b"a,b\n1,2\n", "no column is called user_id, type, ts; the columns are a, b"),
        ("latin.csv", b"user_id,type,ts\nu,view,1\nJ\xfcrgen,view,2\n", "line 3 is not utf-8; name its encoding"),
    ],
)
def test_files_that_cannot_be_read(settings: Any, tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadraceError, match=says) as raised:
        replay_events(settings(), tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_there(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movie,title\n1,A\n")
    with pytest.raises(SettingsError, match=r"no column 'movieId', 'genres' that .*; its columns are movie, title"):
        load_items(settings(create=False), tmp_path / "movies.csv", EXAMPLES / "movielens.toml")


def test_no_topic_and_no_broker(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "items.jsonl", [{"item_id": "a"}])
    with pytest.raises(TopicsError, match="does not exist; create it with `headrace topics create`"):
        load_items(settings(create=False), path)
    monkeypatch.setattr("headrace.streams.sender._REACH_S", 1.0)
    away = settings(create=False, kafka={"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(BrokerError, match=r"cannot be reached within 1 s .*; start it, or give its address"):
        load_items(away, path)


def test_progress_is_plain_lines_where_there_is_no_terminal(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headrace.streams.progress._EVERY_S", 0.0)
    load_items(settings(), jsonl(tmp_path / "items.jsonl", [{"item_id": f"i{n}"} for n in range(2_500)]))
    assert re.search(r"^loading items.jsonl: \d+ %, 1,000 rows$", capsys.readouterr().err, re.MULTILINE)


@needs_data
def test_the_real_files(settings: Any) -> None:
    made = settings()
    films = load_items(made, DATA / "ml-latest-small/movies.csv", EXAMPLES / "movielens.toml")
    assert films.rows == films.sent == 9_125
    toy_story = next(value for key, value in messages(made, "items") if key == "1")
    assert (toy_story["title"], toy_story["category"]) == ("Toy Story (1995)", "Adventure")
    otto = replay_events(made, DATA / "otto_sample/train.jsonl", EXAMPLES / "otto.toml")
    assert otto.rows == otto.sent == 862


@needs_data
def test_a_real_shops_weeks(settings: Any, tmp_path: Path) -> None:
    made = settings(topics={"events_partitions": 1})
    whole = pyarrow.parquet.ParquetFile(DATA / "online_retail/online_retail_II_2009_2010.parquet")
    weeks = pyarrow.Table.from_batches([next(whole.iter_batches(batch_size=40_000))])
    path = tmp_path / "weeks.parquet"
    pyarrow.parquet.write_table(weeks, path)

    items = load_items(made, path, EXAMPLES / "online-retail-ii.toml")
    assert items.rows == 40_000 == items.sent + sum(reasons(items).values())
    products = set(weeks["StockCode"].to_pylist())
    assert 0.9 * len(products) < items.sent < len(products)

    summary = replay_events(made, path, EXAMPLES / "online-retail-ii.toml")
    lines = weeks.filter(weeks["Customer ID"].is_valid())
    distinct = lines.group_by(lines.column_names).aggregate([])
    assert reasons(summary) == {
        "no user_id: column 'Customer ID' is empty": 40_000 - len(lines),
        "the same event as an earlier row": len(lines) - len(distinct),
    }
    assert summary.sent == len(distinct)
    sent = [value for _, value in messages(made, "events")]
    assert [value["ts"] for value in sent] == sorted(value["ts"] for value in sent)
    taken_back = sum(quantity < 0 for quantity in distinct["Quantity"].to_pylist())
    assert sum(value["type"] == "return" for value in sent) == taken_back > 0
    assert all(value["quantity"] > 0 and value["order_id"] and value["user_id"].isdigit() for value in sent)
