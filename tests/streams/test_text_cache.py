"""The text cache survives a restart and whatever happens to its file."""

from __future__ import annotations

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
