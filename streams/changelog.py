"""What stands in `users-changelog`: states by user, each partition's progress, erasures."""

from __future__ import annotations

import msgspec

from headrace.streams.state import short_hash

PROGRESS = b"\0progress"  # changelog key of a partition's progress: never a user's, those begin with "u"
ERASED = b"\0erased/"  # changelog keys of erasures, by hash of the user
ALIAS = b"\0alias/"  # changelog keys of ids that are somebody else's now


class Progress(msgspec.Struct, array_like=True):
    """What a partition's transaction commits beside the states: how far it is, its clock and its cumulative counts."""

    offset: int = -1
    clock: dict[str, tuple[int, bool]] = {}
    event_time: int = 0
    counts: dict[str, int] = {}
    exposure: dict[str, float] = {}  # rules/exposure.py


class Alias(msgspec.Struct, array_like=True, frozen=True):
    """What an id was merged into. `at`: event time (ms) of what was last heard of it. `known`: an identity has named it
    as its user."""

    user_id: str
    at: int = 0
    known: bool = False


encode_alias = msgspec.msgpack.Encoder().encode
decode_alias = msgspec.msgpack.Decoder(Alias).decode
encode_progress = msgspec.msgpack.Encoder().encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode


def user_key(user_id: str) -> bytes:
    return b"u" + user_id.encode()


def erased_key(user_id: str) -> bytes:
    return ERASED + short_hash("erased", user_id).to_bytes(8, "little")


def alias_key(user_id: str) -> bytes:
    return ALIAS + user_id.encode()
