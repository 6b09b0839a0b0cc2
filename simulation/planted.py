"""What the simulated shop plants among its events, and knows one by one: duplicates, rubbish, late events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Rubbish:
    """A message that must end in `dead-letters`, its bytes untouched; `offset` is where Kafka put it."""

    kind: str
    reason: str  # the word its dead letter must carry
    value: bytes
    partition: int = -1
    offset: int = -1


def rubbish(number: int, *, item_id: str, now_ms: int) -> Rubbish:
    """The `number`-th piece of rubbish: kinds take turns, and no two pieces have the same bytes."""
    kind, reason = KINDS[number % len(KINDS)]
    good: dict[str, Any] = {
        "event_id": f"rubbish-{number}",
        "user_id": f"u-rubbish-{number}",
        "item_id": item_id,
        "type": "click",
        "ts": now_ms,
    }

    def changed(**fields: Any) -> bytes:
        return json.dumps({**good, **fields}).encode()

    def without(field: str) -> bytes:
        return json.dumps({name: value for name, value in good.items() if name != field}).encode()

    value = {
        "not JSON": f"<event number='{number}'/>".encode(),
        "cut off": changed()[:-9],
        "not UTF-8": changed(user_id="?").replace(b"?", b"\xff\xfe"),
        "an array": json.dumps([number, "click"]).encode(),
        "time as text": changed(ts="yesterday"),
        "item as a number": changed(item_id=17),
        "no user": without("user_id"),
        "no event id": f'{{"user_id": "u-rubbish-{number}", "type": "click", "ts": {now_ms}}}'.encode(),
        "click without an item": without("item_id"),
        "search without words": changed(type="search"),
        "unknown type": changed(type="teleport"),
        "empty id": changed(item_id=""),
        "endless id": changed(item_id="x" * 10_000),
        "control character": changed(user_id="u\u0007bell"),
        "time in seconds": changed(ts=now_ms // 1000),
        "far future": changed(ts=now_ms + 400 * 86_400_000),
        "NaN": changed(value=float("nan")),
        "huge number": changed(value=1e300),
        "negative position": changed(position=-1),
        "too deep": f'{{"event_id": "rubbish-{number}", "context": {"[" * 5_000}{"]" * 5_000}}}'.encode(),
    }[kind]
    return Rubbish(kind, reason, value)


KINDS = (
    ("not JSON", "json"),
    ("cut off", "json"),
    ("not UTF-8", "encoding"),
    ("an array", "type"),
    ("time as text", "type"),
    ("item as a number", "type"),
    ("no user", "missing"),
    ("no event id", "missing"),
    ("click without an item", "missing"),
    ("search without words", "missing"),
    ("unknown type", "event_type"),
    ("empty id", "id"),
    ("endless id", "id"),
    ("control character", "id"),
    ("time in seconds", "time"),
    ("far future", "time"),
    ("NaN", "json"),
    ("huge number", "number"),
    ("negative position", "number"),
    ("too deep", "nesting"),
)
