"""Text vectors that survive a restart: SQLite, shared by the processes of a machine; losing it costs time alone.

The file is bounded: vectors that were not asked for the longest go first.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger("headrace.catalogue")
_AT_ONCE = 500  # keys of one query
_MOST = 2 * 2**30  # bytes of the file: about 1.4 million vectors of 384 numbers
_PART = 20  # one part of so many is freed at a time, and may be filled before the bytes are counted again
_SAME_USE = 86_400  # seconds within which a use is not written again
# What a row takes in pages of 4,096 bytes that are seven tenths full: a long one lies on pages of its own. As `_bytes`.
_BYTES = "CASE WHEN length(vector) <= 950 THEN length(vector) * 3 / 2 + 200 ELSE length(vector) + 6000 END"


class TextCache:
    """`key` → float16 vector (dim,) by a digest of the text and the encoder's version. Used by one thread at a time.

    A file that SQLite cannot read is thrown away: all it holds can be made again. Where none can be written, the cache
    lives in memory.
    """

    def __init__(
        self, path: Path, *, encoder_version: str, dim: int, most: int = _MOST, clock: Callable[[], float] = time.time
    ) -> None:
        """`most`: bytes of the file, which several processes fill up to a twentieth more each."""
        self._path, self._version, self._dim = path, encoder_version.encode(), dim
        self._most, self._clock = most, clock
        self._added, self._left = 0, 0  # bytes since they were counted; how many may be added before they are again
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = _open(path)
        except (OSError, sqlite3.OperationalError) as error:
            self._in_memory(error)
        except sqlite3.DatabaseError as error:
            self._start_anew(error)

    def key(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), digest_size=16, person=self._version_digest()).digest()

    def _version_digest(self) -> bytes:
        return hashlib.blake2b(self._version, digest_size=16).digest()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Those that are known."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, NDArray[np.float32]] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            query = (
                f"SELECT key, vector, at FROM texts JOIN uses USING (key) WHERE key IN ({','.join('?' * len(some))})"
            )
            now = int(self._clock())
            try:
                rows = self._rows.execute(query, some).fetchall()
                for key, vector, _ in rows:
                    if len(vector) == 2 * self._dim:
                        found[key] = np.frombuffer(vector, "<f2").astype(np.float32)
                if again := [(now, key) for key, _, at in rows if at + _SAME_USE <= now]:
                    with self._rows:
                        self._rows.executemany("UPDATE uses SET at = ? WHERE key = ?", again)
            except sqlite3.DatabaseError as error:
                self._fail(error)
                return found
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        try:
            with self._rows:
                self._rows.executemany(
                    "INSERT OR REPLACE INTO texts VALUES (?, ?)",
                    ((key, vector.astype("<f2").tobytes()) for key, vector in vectors.items()),
                )
                now = int(self._clock())
                self._rows.executemany("UPDATE uses SET at = ? WHERE key = ?", ((now, key) for key in vectors))
                self._added += len(vectors) * _bytes(2 * self._dim)
                if self._added > self._left:
                    self._free()
        except sqlite3.DatabaseError as error:
            self._fail(error)

    def _free(self) -> None:
        """Counts the bytes, and where they are too many removes those of the oldest use."""
        part = self._most // _PART
        (held,) = self._rows.execute("SELECT total(bytes) FROM uses").fetchone()
        if held > self._most:
            # no more at once than keeps up, where the file is of a release that knew no bound
            over = min(held - self._most + part, 2 * self._added + part)
            oldest, freed = [], 0
            for key, size in self._rows.execute("SELECT key, bytes FROM uses ORDER BY at, key"):
                if freed >= over:
                    break
                oldest.append((key,))
                freed += size
            for table in ("texts", "uses"):
                self._rows.executemany(f"DELETE FROM {table} WHERE key = ?", oldest)
            held -= freed
        self._added, self._left = 0, min(part, self._most - held)

    def close(self) -> None:
        self._rows.close()

    def _fail(self, error: sqlite3.DatabaseError) -> None:
        """Locked for long, or no space left: go on without. Damaged: start an empty one."""
        if isinstance(error, sqlite3.OperationalError):
            _log.warning("the text cache %s: %s", self._path, error)
        elif type(error) is sqlite3.DatabaseError:
            self._rows.close()
            self._start_anew(error)
        else:
            raise error

    def _start_anew(self, error: Exception) -> None:
        _log.warning("the text cache %s cannot be read (%s): starting an empty one", self._path, error)
        try:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._rows = _open(self._path)
        except (OSError, sqlite3.DatabaseError) as again:
            self._in_memory(again)

    def _in_memory(self, error: Exception) -> None:
        _log.warning(
            "the text cache %s cannot be written (%s): texts are encoded anew after a restart", self._path, error
        )
        self._rows = _open(":memory:")


def _bytes(size: int) -> int:
    return size * 3 // 2 + 200 if size <= 950 else size + 6_000


def _open(path: Path | str) -> sqlite3.Connection:
    rows = sqlite3.connect(path, timeout=2, check_same_thread=False)
    rows.execute("PRAGMA journal_mode=WAL")
    rows.execute("PRAGMA synchronous=NORMAL")
    rows.execute("PRAGMA busy_timeout=60000")  # somebody may be filling `uses` from a large file
    with rows:
        rows.execute("BEGIN IMMEDIATE")
        rows.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
        rows.execute(
            "CREATE TABLE IF NOT EXISTS uses (key BLOB PRIMARY KEY, at INTEGER NOT NULL, bytes INTEGER NOT NULL)"
            " WITHOUT ROWID"
        )
        rows.execute("CREATE INDEX IF NOT EXISTS oldest ON uses (at)")
        # a trigger, so that what a release writes that knows no uses is counted too
        rows.execute(
            "CREATE TRIGGER IF NOT EXISTS counted AFTER INSERT ON texts BEGIN"
            f" INSERT OR REPLACE INTO uses SELECT key, 0, {_BYTES} FROM texts WHERE key = NEW.key; END"
        )
        rows.execute(
            f"INSERT OR IGNORE INTO uses SELECT key, 0, {_BYTES} FROM texts WHERE NOT EXISTS (SELECT 1 FROM uses)"
        )
    rows.execute("PRAGMA busy_timeout=2000")
    return rows
