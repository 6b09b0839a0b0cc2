"""Queries, comments and posts as a user's state keeps them: in the text encoder's space, so that whichever user encoder
serves can take them into its own.

    4 bytes of the text encoder's version, then int8 (T,): the vector, scaled until its largest component is ±127
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from headrace.export.item_tower import ItemTower
from headrace.streams.state import Notes
from headrace.streams.texts import TextEncoder

F32 = NDArray[np.float32]
_VERSION = 4  # bytes
_KEPT = 16_384  # texts whose vector in the state's space is kept at hand


class Asked:
    """Texts to bytes, and such bytes to vectors (d,) by the `tower` that serves."""

    def __init__(self, texts: TextEncoder, tower: ItemTower) -> None:
        self._texts, self._tower = texts, tower
        self._version = hashlib.blake2b(texts.version.encode(), digest_size=_VERSION).digest()
        self._made: dict[int, F32] = {}

    def pack(self, text: str) -> bytes:
        vector = self._texts.encode_one(text)
        largest = float(np.abs(vector).max())
        scaled = np.rint(vector * (127 / largest)) if largest else vector
        packed: bytes = self._version + scaled.astype(np.int8).tobytes()
        return packed

    def vectors(self, notes: Notes | None) -> dict[int, F32]:
        """Unit vectors by history key. Texts that another text encoder has encoded are not among them: nobody can take
        them into the space that serves, and they go with time."""
        if notes is None or not notes.texts:
            return {}
        size = _VERSION + self._tower.text_dim
        known = [k for k, raw in notes.texts.items() if len(raw) == size and raw.startswith(self._version)]
        new = [key for key in known if key not in self._made]
        if new:
            if len(self._made) + len(new) > _KEPT:
                self._made.clear()
                new = known
            rows = [np.frombuffer(notes.texts[key], np.int8, offset=_VERSION) for key in new]
            self._made.update(zip(new, self._tower.vectors(np.stack(rows).astype(np.float32)), strict=True))
        return {key: self._made[key] for key in known}
