"""Peers that are fitted, not trained: popularity, item-to-item transitions, EASE. Choices are made on validation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from next_item_data import F32, I32, I64, Histories, Score, metrics, ranks
from scipy.linalg import lapack

Choice = dict[str, Any]


def popularity(data: Histories) -> Score:
    counts = data.counts().astype(np.float32)
    return lambda histories: np.tile(counts, (len(histories), 1))


def item_to_item(data: Histories, users: I64) -> tuple[Score, Choice]:
    """What followed each item, nearer successors counting more, summed over the history, later items counting more.

    T[i, j] = Σ γ^(k-1) over pairs k ≤ 5 apart, divided by count(j)^ρ; score = Σ δ^age T[item]. γ, δ, ρ by validation.
    """
    best: tuple[float, Choice] = (-1.0, {})
    counts = np.maximum(data.counts(), 1)
    for gamma in (0.3, 0.6, 0.9):
        follows = _transitions(data, gamma)
        for delta, rho in itertools.product((0.4, 0.6, 0.8, 0.95), (0.0, 0.2, 0.4, 0.6)):
            choice = {"gamma": gamma, "delta": delta, "rho": rho}
            score = _following(follows @ sp.diags_array((counts**-rho).astype(np.float32)), delta)
            best = max(best, (_ndcg(score, data, users), choice), key=lambda pair: pair[0])
    choice = best[1]
    follows = _transitions(data, choice["gamma"]) @ sp.diags_array((counts ** -choice["rho"]).astype(np.float32))
    return _following(follows, choice["delta"]), choice | {"valid_ndcg10": round(best[0], 5)}


def _transitions(data: Histories, gamma: float, window: int = 5) -> sp.csr_array:
    owners = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    fitted = np.ones(len(data.items), np.bool_)
    fitted[np.concatenate([data.offsets[1:] - 1, data.offsets[1:] - 2])] = False
    items, owners = data.items[fitted], owners[fitted]
    total = sp.csr_array((data.n_items, data.n_items), dtype=np.float32)
    for k in range(1, window + 1):
        same = owners[k:] == owners[:-k]
        pairs = (items[:-k][same], items[k:][same])
        weights = np.full(len(pairs[0]), gamma ** (k - 1), np.float32)
        total = total + sp.csr_array((weights, pairs), shape=total.shape)
    return total


def _following(follows: sp.csr_array, delta: float) -> Score:
    return lambda histories: (_rows(histories, follows.shape[0], delta) @ follows).toarray()


def _rows(histories: list[I32], n_items: int, delta: float = 1.0) -> sp.csr_array:
    """Histories as sparse rows (B, N): δ^age of each item, 1 for the latest."""
    ages = np.concatenate([np.arange(len(history))[::-1] for history in histories])
    ends = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return sp.csr_array(
        ((delta**ages).astype(np.float32), np.concatenate(histories), ends), shape=(len(histories), n_items)
    )


def ease(data: Histories, users: I64) -> tuple[Score, Choice]:
    """B = I - P · diag(P)⁻¹ with P = (XᵀX + λI)⁻¹ (Steck 2019, arXiv 1905.03375, eq. 8); λ by validation."""
    tried: dict[float, float] = {}
    for strength in _strengths(data):
        score = _ease(data, strength)
        tried[strength] = _ndcg(score, data, users)
        if tried[strength] == max(tried.values()):
            best, chosen = score, strength
    return best, {"lambda": chosen, "valid_ndcg10": {str(k): round(v, 5) for k, v in tried.items()}}


def _strengths(data: Histories) -> Iterator[float]:
    yield from (25, 50, 100, 200, 400, 800) if data.n_items < 8_000 else (5, 15, 50, 200)  # an inverse is n³


def _ease(data: Histories, strength: float) -> Score:
    x = _rows([data.trained(user) for user in range(data.n_users)], data.n_items)
    gram = np.asfortranarray((x.T @ x).toarray())
    gram[np.diag_indices_from(gram)] += strength
    factor, fault = lapack.spotrf(gram, lower=1, overwrite_a=1)
    assert fault == 0, "not positive definite"
    inverse, fault = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert fault == 0
    inverse = np.tril(inverse)
    inverse += np.tril(inverse, -1).T
    weights: F32 = np.ascontiguousarray(inverse)
    weights /= -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return lambda histories: _rows(histories, data.n_items) @ weights


def _ndcg(score: Score, data: Histories, users: I64) -> float:
    return float(metrics(ranks(score, data, "valid", users))[:, 1].mean())
