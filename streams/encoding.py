"""Texts on their way to vectors: the newest first, in a thread, so that nothing else waits for the transformer."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from headrace.streams.metrics import Metrics
from headrace.streams.text_cache import TextCache

F32 = NDArray[np.float32]


class Encoding:
    """A bulk load of a hundred thousand texts takes minutes; a text that comes after it takes one batch.

    `encode` maps N texts to float32 (N, dim) and runs in a thread of ours; every method is called by one other thread.
    """

    def __init__(self, encode: Callable[[list[str]], F32], cache: TextCache, *, batch: int, metrics: Metrics) -> None:
        self._encode, self._cache, self._batch, self._metrics = encode, cache, batch, metrics
        self._waiting: dict[bytes, str] = {}  # key → text, the newest last
        self._encoding: dict[bytes, str] = {}
        self._result: Future[F32] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="texts")

    def __len__(self) -> int:
        """Texts that have no vector yet."""
        return len(self._waiting) + len(self._encoding)

    def find(self, texts: dict[str, bytes]) -> dict[bytes, F32]:
        """Vectors by key for the texts that are cached; the others are encoded, before all that waited already.

        `texts` maps each text to its key; the newest comes last.
        """
        found = self._cache.get(texts.values())
        self._metrics.text_cache.labels("hit").inc(len(found))
        self._metrics.text_cache.labels("miss").inc(len(texts) - len(found))
        for text, key in texts.items():
            if key not in found and key not in self._encoding:
                self._waiting.pop(key, None)
                self._waiting[key] = text
        self._start()
        return found

    def take(self, wait_s: float = 0) -> dict[bytes, F32]:
        """Vectors by key of the batch that has been encoded, and starts the next. Raises what the encoder raised."""
        if self._result is None:
            return {}
        try:
            vectors = self._result.result(wait_s)
        except TimeoutError:
            return {}
        # float16 from the start: a vector is the same whether it came from the cache or from the encoder
        done = dict(zip(self._encoding, vectors.astype(np.float16).astype(np.float32), strict=True))
        self._cache.put(done)
        self._result, self._encoding = None, {}
        self._start()
        return done

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _start(self) -> None:
        if self._result is None and self._waiting:
            newest = [self._waiting.popitem() for _ in range(min(self._batch, len(self._waiting)))]
            self._encoding = dict(newest)
            self._result = self._thread.submit(self._timed, list(self._encoding.values()))

    def _timed(self, texts: list[str]) -> F32:
        started = time.perf_counter()
        vectors = self._encode(texts)
        self._metrics.stage.labels("encode").observe(time.perf_counter() - started)
        return vectors
