"""The item tower while it learns, in torch; `frozen` makes the one that is served (item_tower.py)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.export import projection
from headrace.export.item_tower import ItemTower
from headrace.export.log import Log
from headrace.export.names import PRICE_BUCKETS, category_keys, price_bucket
from headrace.export.spectral import item_factors
from headrace.export.user_model import unit

F32 = NDArray[np.float32]


class ItemModel(nn.Module):
    """vector = unit(P·x + id + Σ category parts + price bucket).

    An item with words begins as its words: P at their principal components (projection.py), its id near zero. One
    without begins as what users' behaviour makes of it (spectral.py). In training an item with words loses its id with
    probability `id_dropout`: so P learns to stand alone, which is how an item that came later works.
    """

    categories: Tensor  # (C,) rows of category parts, item after item
    category_offsets: Tensor  # (N+1,)
    prices: Tensor  # (N,) buckets
    texts: Tensor  # (N, T)
    words: Tensor  # (Q, T)
    speaks: Tensor  # (N,) whether an item has a text vector

    def __init__(self, log: Log, *, dim: int, id_dropout: float = 0.0, ids: bool = True) -> None:
        super().__init__()
        self.dim, self.id_dropout = dim, id_dropout
        n = len(log.keys)
        speaks = log.texts.any(axis=1)
        self.register_buffer("texts", torch.from_numpy(log.texts), persistent=False)
        self.register_buffer(
            "words", torch.from_numpy(log.words.reshape(len(log.words), log.text_dim)), persistent=False
        )
        self.register_buffer("speaks", torch.from_numpy(speaks), persistent=False)
        self.projection = nn.Parameter(torch.from_numpy(_first_projection(log.texts[speaks], dim)))
        self.has_ids = ids
        taken = torch.from_numpy(item_factors(log, dim)) if not speaks.all() else torch.zeros(n, dim)
        begin = taken.masked_fill(torch.from_numpy(speaks)[:, None], 0.0) + torch.randn(n, dim) * _SMALL * dim**-0.5
        self.ids = nn.Parameter(begin[: n if ids else 0])
        keys, rows, counts = _category_rows(log)
        self.category_keys = keys
        self.register_buffer("categories", torch.from_numpy(rows), persistent=False)
        self.register_buffer("category_offsets", torch.from_numpy(counts), persistent=False)
        self.category_vectors = nn.Parameter(torch.randn(len(keys), dim) * _SMALL * dim**-0.5)
        has_prices = len(log.prices) > 0
        self.register_buffer(
            "prices", torch.from_numpy(price_bucket(log.prices) if has_prices else np.zeros(n, np.int64)),
            persistent=False,
        )  # fmt: skip
        self.price_vectors = nn.Parameter(torch.randn(PRICE_BUCKETS if has_prices else 0, dim) * _SMALL * dim**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (n,) of items → unit vectors (n, d)."""
        raw = self.texts[rows] @ self.projection.T
        if self.has_ids:
            ids = nn.functional.embedding(rows, self.ids)
            if self.training and self.id_dropout:
                lost = (torch.rand(len(rows), device=rows.device) < self.id_dropout) & self.speaks[rows]
                ids = ids.masked_fill(lost[:, None], 0.0)
            raw = raw + ids
        if len(self.category_vectors):
            begin, end = self.category_offsets[rows], self.category_offsets[rows + 1]
            for depth in range(int((end - begin).max())):  # paths are short
                deep = end - begin > depth
                at = self.categories[(begin + depth).clamp(max=len(self.categories) - 1)]
                raw = raw + self.category_vectors[at] * deep[:, None]
        if len(self.price_vectors):
            known = self.prices[rows] > 0
            raw = raw + self.price_vectors[self.prices[rows]] * known[:, None]
        return unit(raw)

    def ask(self, rows: Tensor) -> Tensor:
        """rows (n,) of `words` → unit vectors (n, d): a query is its text alone."""
        return unit(self.words[rows] @ self.projection.T)

    @torch.no_grad()
    def frozen(self, log: Log, *, met: NDArray[np.bool_]) -> ItemTower:
        """What is served. Only items that were `met` (N,) in training keep an embedding."""
        order = np.argsort(log.keys, kind="stable")
        order = order[met[order] & self.has_ids]
        price_vectors = self.price_vectors.cpu().numpy().copy()
        if len(price_vectors):
            price_vectors[0] = 0  # a price that is not known says nothing
        return ItemTower(
            projection=self.projection.cpu().numpy().copy(),
            id_keys=log.keys[order],
            id_vectors=self.ids.cpu().numpy()[order] if self.has_ids else np.zeros((0, self.dim), np.float32),
            category_keys=self.category_keys,
            category_vectors=self.category_vectors.cpu().numpy().copy(),
            price_vectors=price_vectors,
        )


_SMALL = 0.1  # of what is random in an embedding at first


def _first_projection(texts: F32, dim: int) -> F32:
    """(dim, T): principal components where there are texts enough, else random rows at right angles."""
    if len(texts) > dim <= texts.shape[1]:
        return projection.fit(texts, dim)
    rows = np.random.default_rng(0).standard_normal((max(dim, texts.shape[1]), texts.shape[1]))
    square, _ = np.linalg.qr(rows) if texts.shape[1] else (rows, None)
    return np.ascontiguousarray(square[:dim], np.float32)


def _category_rows(log: Log) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Sorted keys (K,) of all parts, each item's rows among them (C,), and where they begin (N+1,)."""
    parts = [
        category_keys(path) if path else np.zeros(0, np.uint64) for path in log.categories or [None] * len(log.keys)
    ]
    every = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    keys, rows = np.unique(every, return_inverse=True)
    return keys, rows.astype(np.int64), np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
