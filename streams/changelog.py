"""What stands in `users-changelog`: states by user, each partition's progress, erasures."""

from __future__ import annotations

import msgspec

from headrace.streams.state import short_hash

PROGRESS = b"\0progress"  # changelog key of a partition's progress: never a user's, those begin with "u"
ERASED = b"\0erased/"  # changelog keys of erasures, by hash of the user


class Progress(msgspec.Struct, array_like=True):
    """What a partition's transaction commits beside the states: how far it is, its clock and its cumulative counts."""

    offset: int = -1
    clock: dict[str, tuple[int, bool]] = {}
    event_time: int = 0
    counts: dict[str, int] = {}
    exposure: dict[str, float] = {}  # rules/exposure.py


encode_progress = msgspec.msgpack.Encoder().encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode


def user_key(user_id: str) -> bytes:
    return b"u" + user_id.encode()


def erased_key(user_id: str) -> bytes:
    return ERASED + short_hash("erased", user_id).to_bytes(8, "little")
