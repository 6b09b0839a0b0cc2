"""The next-item loss: softmax cross-entropy over the catalogue, by a sample of it that all of a batch share.

    logit = state · item / τ  -  log Q(item)

States and items are unit vectors and τ is learned (as in CLIP, Radford et al. 2021, section 2.3). Q is the probability
that an item is among the negatives drawn: without taking its logarithm off, the sampled softmax would push popular
items down for being drawn often (Bengio & Senécal 2008; Yi et al. 2019, RecSys, doi 10.1145/3298689.3346996, eq. 3-5).
Where the catalogue is small, Q is 1: all items are there, and this is the full softmax.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_OUT = -1e4  # a logit that counts for nothing; minus infinity would make a NaN of a row that has nothing else


class Negatives:
    """Draws what all states of a batch are to be told from.

    `counts` (N,): how often each item is a target. Drawn in proportion to counts^power: its half lies between the
    uniform, which wastes draws on what nobody takes, and the unigram, which forgets the tail (Mikolov et al. 2013,
    section 2.2, took 3/4 of it for words).
    """

    def __init__(self, counts: I64, *, draws: int, power: float, full_below: int) -> None:
        weights = np.maximum(counts, 0.5) ** power
        q = weights / weights.sum()
        self.full = len(counts) <= full_below
        self._edges = q.cumsum()
        self._draws = draws
        self.log_q: NDArray[np.float32] = np.zeros(len(counts), np.float32)  # (N,) log Q
        if not self.full:
            self.log_q = np.log(-np.expm1(draws * np.log1p(-q))).astype(np.float32)  # 1 - (1 - q)^draws

    def draw(self, random: np.random.Generator) -> I64:
        """Sorted rows (C,), none twice."""
        if self.full:
            return np.arange(len(self.log_q))
        return np.unique(np.searchsorted(self._edges, random.random(self._draws)).clip(max=len(self.log_q) - 1))


def next_item_loss(
    states: Tensor,
    own: Tensor,
    negatives: Tensor,
    *,
    temperature: Tensor,
    own_log_q: Tensor,
    log_q: Tensor,
    out: Tensor,
) -> Tensor:
    """states (p, d), each state's target own (p, d), negatives (C, d), log Q (p,) and (C,) → the mean loss.

    `out`: flat places in (p, C) of negatives that are no negatives: the target itself, and what the user had anyway.
    """
    rest = states @ negatives.T / temperature - log_q
    rest = rest.flatten().index_fill(0, out, _OUT).view_as(rest)
    first = (states * own).sum(dim=-1) / temperature - own_log_q
    logits = torch.cat([first.unsqueeze(1), rest], dim=1)
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(states), dtype=torch.long, device=states.device))


def no_negatives(negatives: I64, targets: I64, met: I64 | None) -> I64:
    """Flat places in (p, C): where a negative is the target (p,), or one of the items that the user met (p, L).

    `negatives` (C,) are sorted; -1 in `met` is no item; None where an item that was met may well come next.
    """
    wanted = targets[:, None] if met is None else np.concatenate([targets[:, None], met], axis=1)
    at = np.searchsorted(negatives, wanted).clip(max=len(negatives) - 1)
    rows, columns = np.nonzero(negatives[at] == wanted)
    places: I64 = rows * len(negatives) + at[rows, columns]
    return places
