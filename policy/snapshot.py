"""A policy as bytes: safetensors and plain numbers under one SHA-256. Nothing in them can execute."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from headrace.policy.base import Arrays, Meta


class SnapshotError(ValueError):
    """The bytes are not the snapshot they are said to be."""


def pack(arrays: Arrays, meta: Meta) -> tuple[bytes, str]:
    """(safetensors bytes with `meta` in their header, SHA-256 in hex). Equal input gives equal bytes."""
    header = {"meta": json.dumps(meta, sort_keys=True, allow_nan=False)}
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    return data, hashlib.sha256(data).hexdigest()


def unpack(data: bytes, sha256: str) -> tuple[Arrays, Meta]:
    """The arrays and meta of `pack`. Raises SnapshotError where the digest differs or the bytes cannot be read."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise SnapshotError(f"snapshot is damaged: its SHA-256 is {digest[:12]}…, {sha256[:12]}… was announced")
    try:
        size = int.from_bytes(data[:8], "little")
        meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["meta"])
        return load(data), meta
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"snapshot cannot be read: {error}") from error
