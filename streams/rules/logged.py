"""Constraints of one decision as its record carries them, over its candidates in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Bool
from headrace.policy.constraints import Cap, Constraints, Pin, Quota


class _Logged(msgspec.Struct, array_like=True):
    """n = candidates; arrays are little-endian bytes, boolean ones packed."""

    boosts: bytes | None  # float32 (n,)
    penalty: float | None
    caps: list[tuple[bytes, int]]  # int32 (n,), most
    pins: list[tuple[int, bytes]]  # position, packed (n,)
    quotas: list[tuple[bytes, int]]  # packed (n,), least
    places: int


_MANY = 1_000
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Logged).decode


def pack(constraints: Constraints, row: int, mask: Bool, *, places: int) -> bytes:
    """Of the decision `row`, over the candidates of its `mask` (n,), for a slate of so many places."""
    c = constraints
    logged = _Logged(
        None if c.boosts is None else c.boosts[row][mask].tobytes(),
        None if c.penalty is None else float(c.penalty[row]),
        [(cap.groups[row][mask].tobytes(), int(cap.most[row])) for cap in c.caps],
        [(pin.position, _bits(pin.members[row][mask])) for pin in c.pins if pin.position < places],
        [(_bits(quota.members[row][mask]), int(quota.least[row])) for quota in c.quotas],
        places,
    )
    return _encode(logged)


def readable(raw: bytes, n: int) -> bool:
    """Whether it is such a record, of n candidates."""
    try:
        unpack([raw], [n], n=n)
    except (msgspec.DecodeError, ValueError):
        return False
    return True


def unpack(logged: Sequence[bytes], counts: Sequence[int], *, n: int) -> Constraints | None:
    """Of several decisions with `counts` candidates each, padded to n; None where none had constraints.

    Raises msgspec.DecodeError or ValueError for what is no such record.
    """
    if not any(logged):
        return None
    size = len(counts)
    read = [_decode(raw) if raw else _Logged(None, None, [], [], [], _MANY) for raw in logged]
    boosts, penalty = np.ones((size, n), np.float32), np.zeros(size, np.float32)
    caps = [Cap(np.full((size, n), -1, np.int32), np.full(size, n, np.int64)) for _ in range(_most(read, "caps"))]
    quotas = [Quota(_none(size, n), np.zeros(size, np.int64)) for _ in range(_most(read, "quotas"))]
    pins: dict[tuple[int, int], Pin] = {}  # by position and which of its pins
    for row, (one, count) in enumerate(zip(read, counts, strict=True)):
        if one.boosts is not None:
            boosts[row, :count] = np.frombuffer(one.boosts, "<f4")
        penalty[row] = one.penalty or 0.0
        for cap, (groups, most) in zip(caps, one.caps, strict=False):
            cap.groups[row, :count], cap.most[row] = np.frombuffer(groups, "<i4"), most
        for quota, (members, least) in zip(quotas, one.quotas, strict=False):
            quota.members[row, :count], quota.least[row] = _of_bits(members, count), least
        for which, (position, members) in enumerate(one.pins):
            pin = pins.setdefault((position, which), Pin(position, _none(size, n)))
            pin.members[row, :count] = _of_bits(members, count)
    boosted = any(one.boosts is not None for one in read)
    return Constraints(
        boosts=boosts if boosted else None, penalty=penalty if penalty.any() else None, caps=tuple(caps),
        pins=tuple(pins[at] for at in sorted(pins)), quotas=tuple(quotas),
        places=np.array([one.places for one in read], np.int64),
    )  # fmt: skip


def _most(read: Sequence[_Logged], kind: str) -> int:
    return max(len(getattr(one, kind)) for one in read)


def _none(size: int, n: int) -> Bool:
    return np.zeros((size, n), np.bool_)


def _bits(members: Bool) -> bytes:
    return np.packbits(members).tobytes()


def _of_bits(raw: bytes, count: int) -> NDArray[Any]:
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(np.bool_)
