"""The text cache survives a restart and whatever happens to its file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from headrace.streams.text_cache import TextCache


def open_cache(path: Path, version: str = "v1") -> TextCache:
    return TextCache(path, encoder_version=version, dim=4)


def test_it_survives_a_restart(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "deep" / "texts.sqlite")
    keys = [cache.key(f"text {n}") for n in range(1_200)]
    assert cache.get(keys) == {}
    cache.put({key: np.full(4, n / 2_048, np.float32) for n, key in enumerate(keys)})
    cache.close()
    again = open_cache(tmp_path / "deep" / "texts.sqlite")
    found = again.get([*keys, again.key("unknown")])
    assert found.keys() == set(keys) and found[keys[7]].tolist() == [7 / 2_048] * 4


@pytest.mark.parametrize("dim", [384, 768])
def test_its_file_is_bounded_and_what_is_asked_for_stays(tmp_path: Path, dim: int) -> None:
    path, most, now = tmp_path / "texts.sqlite", 4_000_000, 0
    cache = TextCache(path, encoder_version="v", dim=dim, most=most, clock=lambda: now)
    vector = np.ones(dim, np.float32)
    wanted = [cache.key(f"wanted {n}") for n in range(50)]
    cache.put(dict.fromkeys(wanted, vector))
    written, per_day = 50, 400
    for day in range(1, 31):
        now = day * 86_400
        assert len(cache.get(wanted)) == len(wanted), day
        for n in range(0, per_day, 100):
            cache.put({cache.key(f"{day} {m}"): vector for m in range(n, n + 100)})
        written += per_day
    assert path.stat().st_size < 1.1 * most
    (kept,) = cache._rows.execute("SELECT count(*) FROM texts").fetchone()
    assert most / 2 < cache._rows.execute("SELECT sum(bytes) FROM uses").fetchone()[0] <= most * 1.05
    assert kept < written / 2
    assert cache.get([cache.key(f"30 {n}") for n in range(100)]) and not cache.get([cache.key("1 0")])


def test_a_file_of_a_release_that_knew_no_bound_is_read_written_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "texts.sqlite"
    old = sqlite3.connect(path)
    old.execute("PRAGMA journal_mode=WAL")
    old.execute("CREATE TABLE texts (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
    vector = np.ones(4, "<f2").tobytes()
    cache = open_cache(tmp_path / "other.sqlite")
    keys = [cache.key(f"text {n}") for n in range(1_000)]
    old.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", [(key, vector) for key in keys[:900]])
    old.commit()
    cache = TextCache(path, encoder_version="v1", dim=4, most=100_000)
    assert len(cache.get(keys)) == 900
    old.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", [(key, vector) for key in keys[900:]])
    old.commit()
    assert len(cache.get(keys)) == 1_000
    for n in range(40):
        cache.put({cache.key(f"new {n}"): np.ones(4, np.float32)})
    assert cache._rows.execute("SELECT sum(bytes) FROM uses").fetchone()[0] <= 105_000
    assert cache._rows.execute("SELECT count(*) FROM texts").fetchone()[0] < 600


def test_another_encoder_has_other_vectors(tmp_path: Path) -> None:
    path = tmp_path / "texts.sqlite"
    first, second = open_cache(path), open_cache(path, "v2")
    first.put({first.key("a"): np.ones(4, np.float32)})
    assert second.get([second.key("a")]) == {} and first.get([first.key("a")])


@pytest.mark.parametrize("damage", [b"this is no database, not at all", b"SQLite format 3\0" + b"\xff" * 4_096])
def test_a_damaged_file_is_started_anew(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "texts.sqlite"
    path.write_bytes(damage)
    cache = open_cache(path)
    cache.put({cache.key("a"): np.ones(4, np.float32)})
    assert cache.get([cache.key("a")]) and "starting an empty one" in caplog.text
    cache.close()
    assert open_cache(path).get([cache.key("a")])


def test_where_nothing_can_be_written_it_lives_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = open_cache(tmp_path / "file" / "texts.sqlite")
    cache.put({cache.key("a"): np.ones(4, np.float32)})
    assert cache.get([cache.key("a")]) and "cannot be written" in caplog.text
