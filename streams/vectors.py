"""What an item's vector is made of: its words, the shop's own vector, or both.

The shop's vector comes from any encoder (images, audio, another language), of any dimension. A fixed random Gaussian
matrix brings it into the text's dimension: inner products survive with an error of about 1/sqrt(dim), whatever the
dimension they came from (Johnson & Lindenstrauss 1984; Dasgupta & Gupta 2003, theorem 2.1). It is applied at the text's
own dimension too: two encoders' axes mean different things, and the matrix turns the shop's space almost perpendicular
to the text's, so that in the mean of both each keeps its own similarities (docs/decisions/0003).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from headrace.streams.messages import ShopItem

MAX_TEXT = 2_000  # characters: more than the encoder's window of tokens holds

_SEED = 20_260_101  # a part of the meaning of every stored vector: never changes
_JOINED = ". "

F32 = NDArray[np.float32]


def text_of(item: ShopItem, attributes: tuple[str, ...]) -> str:
    """The words by which an item is known: title, category, the named attributes, text; empty where there are none.

    The text comes last: what the encoder's window cuts off is the end of a long description.
    """
    parts = [item.title, item.category and item.category.replace("/", " ").replace("_", " ")]
    given = item.attributes or {}
    parts += [words for name in attributes if (words := _words(given.get(name)))]
    parts.append(item.text)
    cleaned = [" ".join(part[: 2 * MAX_TEXT].split()) for part in parts if part]
    return _JOINED.join(part for part in cleaned if part)[:MAX_TEXT]


def _words(value: object) -> str:
    """An attribute's words: a text, or a list of texts; a number says nothing to a text encoder."""
    if isinstance(value, list):
        return ", ".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def projected(vector: list[float], dim: int) -> F32:
    """The shop's vector (d,) as a unit vector (dim,), by Johnson-Lindenstrauss. `vector` is finite and not all zero."""
    wide = np.asarray(vector, np.float64)
    wide = wide / np.abs(wide).max()  # first, as the squares of huge numbers overflow and those of tiny ones vanish
    return unit(_gaussian(len(vector), dim) @ (wide / np.linalg.norm(wide)).astype(np.float32))


@lru_cache(8)
def _gaussian(d: int, dim: int) -> F32:
    """(dim, d). RandomState, whose stream is frozen (NEP 19): Generator's may change with a release of numpy."""
    return np.random.RandomState([_SEED, d, dim]).standard_normal((dim, d)).astype(np.float32)


def unit(vector: F32) -> F32:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def fused(text: F32 | None, own: F32 | None) -> bytes:
    """float16 bytes of the unit vector (dim,): the normalised mean of both, or the one there is; empty for neither.

    The text's vector counts by its length, at most 1: as much as the encoder understood of it (TextEncoder.encode).
    """
    given = [] if text is None or not text.any() else [text / max(1.0, float(np.linalg.norm(text)))]
    if own is not None and own.any():
        given.append(unit(own))
    if not given:
        return b""
    return unit(np.sum(given, axis=0)).astype("<f2").tobytes()


def content_hash(vector: bytes) -> str:
    """Names a vector by its content; empty for none."""
    return hashlib.blake2b(vector, digest_size=12).hexdigest() if vector else ""
