"""Texts on their way to vectors: the newest first, each once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.streams.encoding import Encoding
from headrace.streams.metrics import Metrics
from headrace.streams.text_cache import TextCache


class SlowEncoder:
    """Encodes a batch when it is let go; a text's vector is its length."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.batches.append(texts)
        assert self.go.acquire(timeout=10)
        return np.array([[len(text), 0] for text in texts], np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache(tmp_path / "texts.sqlite", encoder_version="v", dim=2)


def texts(cache: TextCache, *names: str) -> dict[str, bytes]:
    return {name: cache.key(name) for name in names}


def test_the_newest_texts_come_first_and_each_once(cache: TextCache) -> None:
    encoder = SlowEncoder()
    encoding = Encoding(encoder, cache, batch=2, metrics=Metrics(CollectorRegistry(), "catalogue"))
    assert encoding.find(texts(cache, "old one", "older")) == {}
    assert encoding.find(texts(cache, "a", "bb", "ccc", "old one")) == {}
    assert len(encoding) == 5 and encoding.take() == {}
    done: dict[bytes, np.ndarray] = {}
    for _ in range(3):
        encoder.go.release()
        done |= encoding.take(5)
    assert encoder.batches == [["older", "old one"], ["ccc", "bb"], ["a"]]
    assert {key: vector[0] for key, vector in done.items()} == {
        cache.key(name): len(name) for name in ("old one", "older", "a", "bb", "ccc")
    }
    assert len(encoding) == 0 and encoding.take(1) == {}
    assert encoding.find(texts(cache, "a", "ccc")).keys() == {cache.key("a"), cache.key("ccc")}
    encoding.close()


def test_an_error_of_the_encoder_ends_the_role(cache: TextCache) -> None:
    def fail(_: list[str]) -> np.ndarray:
        raise RuntimeError("no such model")

    encoding = Encoding(fail, cache, batch=2, metrics=Metrics(CollectorRegistry(), "catalogue"))
    encoding.find(texts(cache, "a"))
    with pytest.raises(RuntimeError, match="no such model"):
        encoding.take(5)
    encoding.close()
