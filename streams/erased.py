"""Who asked to be forgotten, or wants no profiling, for commands that read a log: the worker's own rule, over the log.

What a user did up to the time of the erasure is left out; what comes after it is a new user's.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from headrace.streams import kafka
from headrace.streams.changelog import ERASED
from headrace.streams.errors import HeadraceError
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.people.optout import refused
from headrace.streams.settings import Settings
from headrace.streams.state import UserState, short_hash

_FOREVER = 2**63 - 1


class Erased:
    """Times of erasures by the hash of the user: no name is kept."""

    def __init__(self) -> None:
        self._until: dict[int, int] = {}
        self._seen: set[int] = set()
        self.unreadable = 0  # messages of `erasures` that are none: they lie in `dead-letters` too

    def __len__(self) -> int:
        return len(self._until)

    @property
    def users_met(self) -> int:
        """Of these, users of whom something was left out."""
        return len(self._seen)

    def add(self, user_id: str, ts: int = _FOREVER) -> None:
        """`ts` in Unix ms; without it nothing of the user is ever read."""
        self._add(_hash(user_id), ts)

    def covers(self, user_id: str, ts: int) -> bool:
        """Whether what this user did at `ts` must not be read."""
        if not self._until:
            return False
        user = _hash(user_id)
        if ts > self._until.get(user, -1):
            return False
        self._seen.add(user)
        return True

    def read_topics(self, settings: Settings) -> None:
        """All of `erasures`, and what the workers remember of those that the topic holds no more.

        A worker's changelog keeps a hash and a time of every erasure, also where the shop has overwritten its message,
        and who wants no profiling: nothing of them is read either. Raises Fatal where a topic is missing.
        """
        self.read_messages(settings)
        private: dict[bytes, list[str]] = {}  # by changelog key: the user and the ids that were merged into him

        def on_change(message: kafka.Message) -> None:
            key, value = message.key() or b"", message.value()
            if key.startswith(ERASED) and value:
                self._add(int.from_bytes(key[len(ERASED) :], "little"), int.from_bytes(value, "little"))
            elif key.startswith(b"u"):
                state = UserState.unpack(value) if value else None
                if state is not None and state.notes is not None and refused(state):
                    private[key] = [key[1:].decode(), *state.notes.merged]
                else:
                    private.pop(key, None)

        kafka.read_to_end(settings, settings.topic("users-changelog"), on_change)
        for names in private.values():
            for name in names:
                self.add(name)

    def read_messages(self, settings: Settings) -> None:
        """All of `erasures`. Raises Fatal where the topic is missing."""
        decoder = Decoder(settings)

        def on_erasure(message: kafka.Message) -> None:
            raw = message.value()
            if raw is None:
                return  # the contract: ignored, it takes no erasure back
            erasure = decoder.erasure(raw, now_ms=_FOREVER, sent_ms=0)
            if isinstance(erasure, Rejection):
                self.unreadable += 1
            else:
                self.add(erasure.user_id, erasure.ts)

        kafka.read_to_end(settings, settings.topic("erasures"), on_erasure)

    def read_file(self, path: Path) -> None:
        """One user id a line, of whom nothing is read; in a .jsonl file erasures as the topic takes them.

        Raises HeadraceError, one line that names the line.
        """
        try:
            lines = path.read_bytes().decode().splitlines()
        except OSError as error:
            raise HeadraceError(f"{path}: {error.strerror or error}; check the path") from None
        except UnicodeDecodeError:
            raise HeadraceError(f"{path}: is not UTF-8; write one user id a line") from None
        messages = path.suffix.lower() in (".jsonl", ".ndjson")
        for number, line in enumerate(lines, start=1):
            if not (line := line.strip()):
                continue
            if not messages:
                self.add(line)
                continue
            try:
                erasure = _decode(line)
            except msgspec.DecodeError as error:
                raise HeadraceError(
                    f'{path}: line {number:,} is no erasure ({error}); write {{"user_id": "u42", "ts": …}}, or a .txt '
                    "file with one user id a line"
                ) from None
            self.add(erasure.user_id, _FOREVER if erasure.ts is None else math.floor(erasure.ts))

    def _add(self, user: int, ts: int) -> None:
        self._until[user] = max(ts, self._until.get(user, -1))


class _Line(msgspec.Struct):
    user_id: str
    ts: float | None = None


_decode = msgspec.json.Decoder(_Line).decode


def _hash(user_id: str) -> int:
    return short_hash("erased", user_id)
