"""The item tower: what an item is, as a unit vector in the space where states and items meet. Readable without torch.

    vector = unit( P·x + id + category + price )

x is the fused unit vector of the item's words and the shop's own vector; P projects it. `id` is a learned embedding,
which only items seen in training have: an item that came later works by its text alone. `category` is the sum over the
parts of its path, `price` a bucket's. Queries, comments and posts are words alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from headrace.export.names import PRICE_BUCKETS, category_keys, price_bucket

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]

FILE = "items.safetensors"
_ROWS = 64  # rows a matrix product takes: a fixed shape, so that a row's bits do not depend on the others


def _none(*shape: int) -> F32:
    return np.zeros(shape, np.float32)


@dataclass(frozen=True)
class ItemTower:
    """T = text_dim, d = dim, V = items with an embedding, K = parts of category paths.

    Keys are sorted; `id_vectors` and `category_vectors` stand in their order. Raises ValueError where shapes disagree.
    """

    projection: F32  # (d, T)
    id_keys: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))  # (V,) records.item_key of the item's id
    id_vectors: F32 = field(default_factory=lambda: _none(0, 0))  # (V, d)
    category_keys: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))  # (K,) names.category_keys
    category_vectors: F32 = field(default_factory=lambda: _none(0, 0))  # (K, d)
    price_vectors: F32 = field(default_factory=lambda: _none(0, 0))  # (names.PRICE_BUCKETS, d) or (0, 0); row 0: zeros

    def __post_init__(self) -> None:
        for keys, vectors in (
            (self.id_keys, self.id_vectors),
            (self.category_keys, self.category_vectors),
            (np.zeros(PRICE_BUCKETS if len(self.price_vectors) else 0, np.uint64), self.price_vectors),
        ):
            if len(keys) != len(vectors) or (len(keys) and vectors.shape[1] != self.dim):
                raise ValueError(f"{vectors.shape} vectors for {len(keys)} keys in a space of {self.dim}")
            if (keys[1:] < keys[:-1]).any():
                raise ValueError("keys are not sorted")

    @property
    def dim(self) -> int:
        return len(self.projection)

    @property
    def text_dim(self) -> int:
        return int(self.projection.shape[1])

    @classmethod
    def load(cls, path: Path) -> ItemTower:
        found: dict[str, NDArray[Any]] = load_file(path)
        found["id_vectors"] = found["id_vectors"].astype(np.float32)
        return cls(**{f.name: found[f.name] for f in fields(cls)})

    def save(self, path: Path) -> None:
        """Embeddings as float16: the difference is below what training leaves open."""
        arrays = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}
        save_file(
            {name: a.astype(np.float16) if name.endswith("id_vectors") else a for name, a in arrays.items()}, path
        )

    def vectors(
        self,
        texts: F32,
        *,
        keys: U64 | None = None,
        categories: list[str | None] | None = None,
        prices: F32 | None = None,
    ) -> F32:
        """texts (N, T), item keys (N,), category paths, prices (N,), NaN or ≤ 0 where unknown → unit rows (N, d).

        Zero rows stay for items of which nothing is known.
        """
        raw = self._projected(texts)
        if keys is not None:
            raw += _rows(self.id_keys, self.id_vectors, keys, self.dim)
        if categories is not None and len(self.category_keys):
            for row, path in enumerate(categories):
                if path:
                    parts = category_keys(path)
                    raw[row] += _rows(self.category_keys, self.category_vectors, parts, self.dim).sum(axis=0)
        if prices is not None and len(self.price_vectors):
            raw += self.price_vectors[price_bucket(prices)]
        norms = np.sqrt(np.einsum("nd,nd->n", raw, raw))
        unit: F32 = raw / np.maximum(norms, 1e-6)[:, None]
        return unit

    def _projected(self, texts: F32) -> F32:
        """Not normalised: (N, d)."""
        projected = np.zeros((len(texts), self.dim), np.float32)
        block = np.zeros((_ROWS, self.text_dim), np.float32)
        across = np.ascontiguousarray(self.projection.T)
        for start in range(0, len(texts), _ROWS):
            part = texts[start : start + _ROWS]
            block[: len(part)] = part
            projected[start : start + len(part)] = (block @ across)[: len(part)]
        return projected


def _rows(known: U64, vectors: F32, keys: U64, dim: int) -> F32:
    """The vectors of `keys` (N,), zeros for the unknown: (N, d)."""
    if not len(known):
        return np.zeros((len(keys), dim), np.float32)
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    found: F32 = np.where((known[at] == keys)[:, None], vectors[at], np.float32(0))
    return found
