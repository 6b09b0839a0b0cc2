"""Peers that are trained: SASRec and GRU4Rec, both with cross-entropy over the whole catalogue. One thread, seeded.

Sequences go in batches of similar length, so that little is padding. AdamW, a cosine to zero over a fixed number of
epochs; of their states the one that ranks best on validation is kept, and training stops after `patience` epochs
without a better one. B = sequences, L = events, d = dim, M = positions with a target, N = items.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from next_item_data import I32, I64, Histories, Score, metrics, ranks
from torch import Tensor, nn

LENGTH = 50  # events that a model sees; longer sequences are cut into pieces to train on
_POSITIONS = 512  # targets a step, about
_ROWS = 128  # of the catalogue's logits at a time: they stay in the cache
_STD = 0.02  # of embeddings at the start; larger ones take many epochs to move


@dataclass(frozen=True)
class Recipe:
    epochs: int
    dropout: float
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    patience: int = 5


class SASRec(nn.Module):
    """Kang & McAuley 2018 (arXiv 1808.09781): causal self-attention, two layers, learned positions, tied items."""

    def __init__(self, n_items: int, dropout: float, dim: int = 64, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim)
        self.positions = nn.Embedding(LENGTH, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, dim, dropout, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.items.weight, std=_STD)
        nn.init.normal_(self.positions.weight, std=_STD)

    def forward(self, items: Tensor) -> Tensor:
        """(B, L), padded at the end → (B, L, d)."""
        length = items.shape[1]
        x = self.dropout(self.items(items) * self.items.embedding_dim**0.5 + self.positions.weight[:length])
        ahead = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        for layer in self.layers:
            x = layer(x, src_mask=ahead, is_causal=True)
        normed: Tensor = self.norm(x)
        return normed


class GRU4Rec(nn.Module):
    """Hidasi et al. 2016 (arXiv 1511.06939): one GRU layer over the items, whose embeddings are also the outputs."""

    def __init__(self, n_items: int, dropout: float, dim: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, dim)
        nn.init.normal_(self.items.weight, std=_STD)

    def forward(self, items: Tensor) -> Tensor:
        """(B, L), padded at the end → (B, L, d)."""
        hidden, _ = self.gru(self.dropout(self.items(items) * self.items.embedding_dim**0.5))
        state: Tensor = self.out(self.dropout(hidden))
        return state


MODELS: dict[str, Callable[[int, float], nn.Module]] = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}


class FullCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(x Wᵀ)[target] over all N items, without ever holding (M, N).

    The products are of bfloat16, which this CPU multiplies faster, and each exponential is taken once: 4.5 times as
    fast as torch's own, its gradients within .2 % (tests/test_next_item.py). No logit may exceed 80.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """x (M, d), W (N, d), targets (M,) → ()"""
        short_x, short_weight = x.bfloat16(), weight.bfloat16()
        of_x, of_weight, sums = torch.empty_like(x), torch.zeros_like(weight), torch.empty(len(x), 1)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            e = (short_x[rows] @ short_weight.T).exp_()
            sums[rows] = e.sum(dim=1, keepdim=True, dtype=torch.float32)
            of_x[rows] = (e @ short_weight).float() / sums[rows]
            of_weight += e.T @ (x[rows] / sums[rows]).bfloat16()
        of_x -= weight[targets]
        of_weight.index_add_(0, targets, x, alpha=-1)
        ctx.save_for_backward(of_x / len(x), of_weight / len(x))
        return (sums.squeeze(1).log() - (x * weight[targets]).sum(dim=1)).mean()

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor, Tensor, None]:
        of_x, of_weight = ctx.saved_tensors
        return of_x * scale[0], of_weight * scale[0], None


def recipes(data: Histories) -> tuple[Recipe, ...]:
    """What is chosen from. A large catalogue gets one recipe: an epoch takes half a minute of a core there."""
    if data.n_items < 8_000:
        return tuple(Recipe(epochs=20, dropout=dropout) for dropout in (0.2, 0.5))
    return (Recipe(epochs=8, dropout=0.2),)


def choose_and_fit(name: str, data: Histories, users: I64, *, seed: int, work: Path) -> tuple[Score, dict[str, Any]]:
    """The recipe that ranks best on validation with a seed that is not reported, kept in `work` for the other seeds."""
    tried = recipes(data)
    path = work / f"{name}.choice.json"
    if len(tried) > 1 and not path.exists():
        found = [fit(name, data, users, recipe=recipe, seed=1_000)[1]["valid_ndcg10"] for recipe in tried]
        path.write_text(json.dumps(found), "utf-8")
    values = json.loads(path.read_text("utf-8")) if len(tried) > 1 else [0.0]
    recipe = tried[int(np.argmax(values))]
    score, told = fit(name, data, users, recipe=recipe, seed=seed)
    return score, {"recipe": asdict(recipe), "choice_valid_ndcg10": values, **told}


def fit(name: str, data: Histories, users: I64, *, recipe: Recipe, seed: int) -> tuple[Score, dict[str, Any]]:
    """`users` are those of validation. → scores, and how training went; seconds are of one core."""
    started = time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model: Any = MODELS[name](data.n_items, recipe.dropout)
    pieces = [piece for user in range(data.n_users) for piece in _pieces(data.trained(user))]
    steps = recipe.epochs * math.ceil(sum(len(piece) - 1 for piece in pieces) / _POSITIONS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 100, 1) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    )
    best, kept, curve = -1.0, model.state_dict(), []
    for epoch in range(recipe.epochs):
        model.train()
        for items, targets in _batches(pieces, random):
            wanted = targets >= 0
            loss = FullCrossEntropy.apply(model(items)[wanted], model.items.weight, targets[wanted])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
        curve.append(round(float(metrics(ranks(_score(model), data, "valid", users))[:, 1].mean()), 5))
        print(
            f"{data.name} {name} {seed}: epoch {epoch + 1}, {curve[-1]:.4f}, {time.process_time() - started:.0f} s",
            flush=True,
        )
        if curve[-1] > best:
            best, kept = curve[-1], {key: value.clone() for key, value in model.state_dict().items()}
        elif epoch - curve.index(best) >= recipe.patience:
            break
    model.load_state_dict(kept)
    told = {"valid_ndcg10": best, "epoch": curve.index(best) + 1, "curve": curve}
    return _score(model), told | {"cpu_seconds": round(time.process_time() - started, 1)}


def _pieces(sequence: I32) -> Iterator[I32]:
    """Pieces of at most LENGTH inputs and as many targets, from the end, each target once."""
    for end in range(len(sequence), 1, -LENGTH):
        yield sequence[max(0, end - LENGTH - 1) : end]


def _batches(pieces: list[I32], random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of similar length together, in an order of their own each time: (B, L) inputs, (B, L) targets or -1."""
    lengths = np.array([len(piece) - 1 for piece in pieces])
    order = np.lexsort((random.random(len(pieces)), lengths))
    batch = np.cumsum(lengths[order]) // _POSITIONS
    groups = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    for at in random.permutation(len(groups)):
        length = int(lengths[groups[at]].max())
        items = np.zeros((len(groups[at]), length), np.int64)
        targets = np.full(items.shape, -1, np.int64)
        for row, piece in enumerate(groups[at]):
            n = lengths[piece]
            items[row, :n], targets[row, :n] = pieces[piece][:-1], pieces[piece][1:]
        yield torch.from_numpy(items), torch.from_numpy(targets)


def _score(model: Any) -> Score:
    @torch.inference_mode()
    def score(histories: list[I32]) -> Any:
        model.eval()
        latest = [history[-LENGTH:] for history in histories]
        lengths = np.array([len(history) for history in latest])
        states = torch.empty(len(latest), model.items.embedding_dim)
        for rows in np.array_split(np.argsort(lengths), max(1, len(latest) // 64)):
            items = np.zeros((len(rows), lengths[rows].max()), np.int64)
            for row, at in enumerate(rows):
                items[row, : lengths[at]] = latest[at]
            x = model(torch.from_numpy(items))
            states[rows] = x[torch.arange(len(rows)), torch.from_numpy(lengths[rows] - 1)]
        return (states @ model.items.weight.T).numpy()

    return score
