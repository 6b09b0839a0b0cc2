"""One text encoder at work for the catalogue: vectors by text, cached, made in a thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.streams.encoding import Encoding
from headrace.streams.metrics import Metrics
from headrace.streams.text_cache import TextCache
from headrace.streams.texts import TextEncoder

F32 = NDArray[np.float32]


class TextVectors:
    """Every method is called by one thread. `cache` is a file, which several versions may share."""

    def __init__(self, encoder: TextEncoder, *, cache: Path, batch: int, metrics: Metrics) -> None:
        self.version, self.dim = encoder.version, encoder.dim
        self._cache = TextCache(cache, encoder_version=encoder.version, dim=encoder.dim)
        self._encoding = Encoding(encoder.encode, self._cache, batch=batch, metrics=metrics)

    def __len__(self) -> int:
        """Texts that have no vector yet."""
        return len(self._encoding)

    def key(self, text: str) -> bytes:
        """Under which a text's vector is found."""
        return self._cache.key(text)

    def find(self, texts: dict[str, bytes]) -> dict[bytes, F32]:
        """Vectors by key for the texts that are cached; the others are encoded, the newest first."""
        return self._encoding.find(texts)

    def take(self, wait_s: float = 0) -> dict[bytes, F32]:
        """Vectors by key of what has been encoded since."""
        return self._encoding.take(wait_s)

    def close(self) -> None:
        self._encoding.close()
        self._cache.close()
