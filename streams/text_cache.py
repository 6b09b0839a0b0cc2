"""Text vectors that survive a restart: SQLite, shared by the processes of a machine; losing it costs time alone."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger("headrace.catalogue")
_AT_ONCE = 500  # keys of one query


class TextCache:
    """`key` → float16 vector (dim,) by a digest of the text and the encoder's version. Used by one thread at a time.

    A file that SQLite cannot read is thrown away: all it holds can be made again. Where none can be written, the cache
    lives in memory.
    """

    def __init__(self, path: Path, *, encoder_version: str, dim: int) -> None:
        self._path, self._version, self._dim = path, encoder_version.encode(), dim
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
            query = f"SELECT key, vector FROM texts WHERE key IN ({','.join('?' * len(some))})"
            try:
                rows = self._rows.execute(query, some).fetchall()
            except sqlite3.DatabaseError as error:
                self._fail(error)
                return found
            for key, vector in rows:
                if len(vector) == 2 * self._dim:
                    found[key] = np.frombuffer(vector, "<f2").astype(np.float32)
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        try:
            with self._rows:
                self._rows.executemany(
                    "INSERT OR REPLACE INTO texts VALUES (?, ?)",
                    ((key, vector.astype("<f2").tobytes()) for key, vector in vectors.items()),
                )
        except sqlite3.DatabaseError as error:
            self._fail(error)

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


def _open(path: Path | str) -> sqlite3.Connection:
    rows = sqlite3.connect(path, timeout=2, check_same_thread=False)
    rows.execute("PRAGMA journal_mode=WAL")
    rows.execute("PRAGMA synchronous=NORMAL")
    rows.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
    return rows
