"""Light training of the user encoder: the next item, by contrast with the other users' next items.

Loss: softmax cross-entropy of state · item / τ over all the items that are somebody's next in the batch (in-batch
negatives, InfoNCE, van den Oord et al. 2018). Sequences are synthetic (sequences.py), items are titles' vectors: what
is learned is how to weigh events, types and gaps, not one catalogue. The same seed and build give the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.export.sequences import Sequences, sequences, trained_codes
from headrace.export.user_model import UserConfig, UserModel, unit

Report = Callable[[str], None]

LENGTH = 40  # events a training sequence
_TEMPERATURE = 0.15
_TOP = 10


@dataclass(frozen=True)
class Trained:
    model: UserModel
    metrics: dict[
        str, float
    ]  # loss_first, loss_last, hit10_trained, hit10_untrained, hit10_mean, hit10_last_item, seconds


def train(
    vectors: NDArray[np.float32],
    *,
    config: UserConfig | None = None,
    steps: int = 240,
    batch: int = 64,
    seed: int = 17,
    report: Report = print,
) -> Trained:
    """Trains on users over four fifths of the items (N, d), and tests on other users over the fifth it never saw."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    config = config or UserConfig()
    order = np.random.default_rng(seed).permutation(len(vectors))
    split = len(vectors) * 4 // 5
    seen, held_out = vectors[order[:split]], vectors[order[split:]]
    users = sequences(seen, max(64, steps * batch // 4), LENGTH, seed=seed + 1)
    test = sequences(held_out, 500, LENGTH, seed=seed + 2)
    model = UserModel(config)
    metrics = {f"hit10_{name}": value for name, value in _baselines(test, held_out).items()}
    metrics["hit10_untrained"] = _hit_rate(_states(model, test), test, held_out)
    losses = _fit(model, users, seen, steps=steps, batch=batch, seed=seed, report=report)
    _spread_unnamed(model)
    metrics |= {"loss_first": losses[0], "loss_last": float(np.mean(losses[-10:]))}
    metrics["hit10_trained"] = _hit_rate(_states(model, test), test, held_out)
    metrics["seconds"] = time.perf_counter() - started
    report("user encoder: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    return Trained(model, metrics)


def _fit(
    model: UserModel, users: Sequences, items: NDArray[np.float32], *, steps: int, batch: int, seed: int, report: Report
) -> list[float]:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    catalogue = torch.from_numpy(items)
    random = np.random.default_rng(seed + 3)
    losses = []
    for step in range(steps):
        rows = random.integers(len(users.items), size=batch)
        targets = torch.from_numpy(users.items[rows, 1:]).flatten()
        states = model(*_tensors(users, rows))[:, :-1].flatten(0, 1)
        wanted = targets >= 0  # a search is no item
        candidates, labels = torch.unique(targets[wanted], return_inverse=True)
        logits = states[wanted] @ catalogue[candidates].T / _TEMPERATURE
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 40 == 0 or step == steps - 1:
            report(f"user encoder: step {step + 1}/{steps}, loss {losses[-1]:.3f}")
    return losses


@torch.no_grad()
def _spread_unnamed(model: UserModel) -> None:
    """Codes that training never met stand for "some event": they take over code 0."""
    unmet = [code for code in range(model.config.type_codes) if code not in trained_codes()]
    for table in (model.type_in, model.type_weight):
        table.weight[unmet] = table.weight[0].clone()


def _tensors(users: Sequences, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(users.vectors[rows]),
        torch.from_numpy(users.types[rows]),
        torch.from_numpy(users.gaps[rows]),
    )


@torch.inference_mode()
def _states(model: UserModel, users: Sequences) -> Tensor:
    model.eval()  # type: ignore[no-untyped-call]
    return model(*_tensors(users, slice(None)))  # type: ignore[no-any-return]


def _baselines(users: Sequences, items: NDArray[np.float32]) -> dict[str, float]:
    vectors = torch.from_numpy(users.vectors)
    return {
        "mean": _hit_rate(unit(vectors.cumsum(dim=1)), users, items),
        "last_item": _hit_rate(vectors, users, items),
    }


def _hit_rate(states: Tensor, users: Sequences, items: NDArray[np.float32]) -> float:
    """Share of meant next items among the ten nearest of all held-out items, from the fifth event on."""
    catalogue = torch.from_numpy(items)
    targets = torch.from_numpy(users.items)[:, 5:]
    wanted = torch.from_numpy(users.meant)[:, 5:]
    scores = states[:, 4:-1][wanted] @ catalogue.T
    own = scores.gather(1, targets[wanted].unsqueeze(1))
    return float(((scores > own).sum(dim=1) < _TOP).float().mean())
