"""Trains the networks of network.py in torch. Loaded by a learner alone: serving is numpy.

One thread, no random number of torch's own: the same input gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headrace.policy.base import Arrays

_CLIP = 10.0  # largest norm of a gradient
_LOGITS = 15.0  # beyond this a choice is certain


@dataclass(frozen=True)
class Batch:
    """B steps with k positions of the slate shown and K of the next one; rewards are in the network's own scale."""

    x: Tensor  # (B, k, D)
    states: Tensor  # (B, d) at length 1
    contexts: Tensor  # (B, c)
    shown: Tensor  # (B, k) bool
    rewards: Tensor  # (B, k)
    propensities: Tensor  # (B, k)
    later: Tensor  # (B,) what n-step returns add to the slate's own rewards
    discounts: Tensor  # (B,) of the next value; 0 after a terminal step
    next_x: Tensor  # (B, K, D)
    next_states: Tensor  # (B, d)
    next_contexts: Tensor  # (B, c)
    next_shown: Tensor  # (B, K) bool
    weights: Tensor  # (B,) importance weights of prioritised replay

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]]) -> Batch:
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


class Trainer:
    """Networks by name, with Adam's moments, for some steps: used as a context, it leaves torch as it was."""

    def __init__(self, networks: dict[str, Arrays], moments: Arrays, *, steps: int, rate: float, frozen: str) -> None:
        """`moments` are Adam's after `steps` steps, empty at first; networks whose name ends in `frozen` only serve
        as targets."""
        self._threads = torch.get_num_threads()
        self.networks = {
            name: {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
            for name, arrays in networks.items()
        }
        self._trained = {
            f"{name}.{key}": tensor.requires_grad_()
            for name, network in self.networks.items()
            if not name.endswith(frozen)
            for key, tensor in network.items()
        }
        self._optimiser = torch.optim.AdamW(self._trained.values(), lr=rate, weight_decay=1e-4, fused=True)
        for name, tensor in self._trained.items():
            if f"{name}.mean" in moments:
                self._optimiser.state[tensor] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": torch.from_numpy(moments[f"{name}.mean"].copy()),
                    "exp_avg_sq": torch.from_numpy(moments[f"{name}.square"].copy()),
                }

    def __enter__(self) -> Trainer:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        torch.set_num_threads(self._threads)

    def step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._trained.values()), _CLIP, foreach=True)
        self._optimiser.step()

    def copy(self, source: str, target: str) -> None:
        with torch.no_grad():
            for key, tensor in self.networks[target].items():
                tensor.copy_(self.networks[source][key])

    def arrays(self) -> tuple[dict[str, Arrays], Arrays]:
        """The networks, and Adam's moments."""
        networks = {
            name: {key: tensor.detach().numpy().copy() for key, tensor in network.items()}
            for name, network in self.networks.items()
        }
        moments: Arrays = {}
        for name, tensor in self._trained.items():
            if state := self._optimiser.state.get(tensor):
                moments[f"{name}.mean"] = state["exp_avg"].numpy().copy()
                moments[f"{name}.square"] = state["exp_avg_sq"].numpy().copy()
        return networks, moments


def forward(network: dict[str, Tensor], x: Tensor, states: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """A(s, a) (B, k) and V(s) (B,): network.advantages and network.values."""
    of_state = functional.linear(states, network["state"], network["bias"])
    hidden = torch.relu(functional.linear(x, network["wide"]) + of_state[:, None, :])
    second = torch.relu(functional.linear(hidden, network["second"], network["second_bias"]))
    advantages = functional.linear(second, network["out"], network["out_bias"])[..., 0]
    inputs = torch.cat([states, contexts], dim=1)
    of_value = torch.relu(functional.linear(inputs, network["value"], network["value_bias"]))
    return advantages, functional.linear(of_value, network["value_out"], network["value_out_bias"])[:, 0]


# -- DQN --------------------------------------------------------------------------------------------------------------


def dqn_errors(nets: dict[str, dict[str, Tensor]], b: Batch, *, conservative: float, others: int) -> tuple[Any, Any]:
    """The loss, and each step's largest TD error (B,).

    Target: r + γ^(Δt/c) Q̄(s', argmax over the next slate of Q(s', ·)) (double: van Hasselt et al. 2016, equation 4).
    `conservative` α adds α (log Σ exp Q(s, ·) - Q(s, a)) (Kumar et al. 2020, equation 4), the sum over the slate and
    `others` items of other steps.
    """
    advantage, value = forward(nets["q"], b.x, b.states, b.contexts)
    q = value[:, None] + advantage
    with torch.no_grad():
        online, _ = forward(nets["q"], b.next_x, b.next_states, b.next_contexts)
        best = online.masked_fill(~b.next_shown, -torch.inf).argmax(dim=1, keepdim=True)
        label, label_value = forward(nets["q_label"], b.next_x, b.next_states, b.next_contexts)
        # A next decision without a slate is worth what its state is.
        chosen = torch.where(b.next_shown.any(dim=1), label.gather(1, best)[:, 0], 0.0)
        target = b.rewards + (b.later + b.discounts * (label_value + chosen))[:, None]
    count = b.shown.sum(dim=1).clamp(min=1)
    errors = (q - target).masked_fill(~b.shown, 0.0)
    huber = functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")
    loss = (b.weights * huber.sum(dim=1) / count).mean()
    if conservative:
        unseen = value[:, None] + _others(nets["q"], b, others)
        everything = torch.cat([q.masked_fill(~b.shown, -torch.inf), unseen], dim=1)
        gap = torch.logsumexp(everything, dim=1) - (q.masked_fill(~b.shown, 0.0).sum(dim=1) / count)
        loss = loss + conservative * (b.weights * gap).mean()
    return loss, errors.abs().amax(dim=1).detach()


def _others(network: dict[str, Tensor], b: Batch, count: int) -> Tensor:
    """A(s, a) of the first items of the `count` steps after this one in the batch (B, count).

    They stand for what else could have been shown, with the scalars they had there.
    """
    count = min(count, len(b.x) - 1)
    x = torch.stack([b.x[:, 0].roll(-i, dims=0) for i in range(1, count + 1)], dim=1)
    advantages, _ = forward(network, x, b.states, b.contexts)
    return advantages


# -- SlateQ -----------------------------------------------------------------------------------------------------------


def slateq_errors(nets: dict[str, dict[str, Tensor]], b: Batch, *, size: int, null_value: bool) -> tuple[Any, Any]:
    """The loss of Q and of the choice model together, and each step's TD error (B,).

    Ie et al. 2019 (arXiv 1905.12767), section 4: TD on the item consumed, its target the value of the next slate,
    Σ P(i | s', A') Q̄(s', i). Where none was, the same target teaches Q(s, ⊥) = V(s) if `null_value`.
    The choice model is a conditional logit with a null item of logit 0.
    """
    advantage, value = forward(nets["q"], b.x, b.states, b.contexts)
    choice, appeal = forward(nets["choice"], b.x, b.states, b.contexts)
    taken = ((b.rewards != 0) & b.shown).float()
    consumed = taken.sum(dim=1)
    share = taken / consumed.clamp(min=1)[:, None]
    none = consumed == 0
    base = value if null_value else torch.zeros_like(value)
    with torch.no_grad():
        target = (b.rewards * b.shown).sum(dim=1) + b.later + b.discounts * _next_value(nets, b, size, null_value)
    predicted = torch.where(none, base, value + (advantage * share).sum(dim=1))
    errors = predicted - target
    if not null_value:
        errors = errors.masked_fill(none, 0.0)
    td = functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")
    logits = (choice + appeal[:, None]).masked_fill(~b.shown, -torch.inf)
    log_p = torch.log_softmax(torch.cat([torch.zeros_like(value)[:, None], logits], dim=1), dim=1)
    chosen = torch.cat([none.float()[:, None], share], dim=1)
    entropy = -(chosen * log_p.masked_fill(chosen == 0, 0.0)).sum(dim=1)
    return (b.weights * (td + entropy)).mean(), errors.abs().detach()


def _next_value(nets: dict[str, dict[str, Tensor]], b: Batch, size: int, null_value: bool) -> Tensor:
    """The best value of a slate of at most `size` of the next items (B,): slateq.best_value, with the label network."""
    advantage, value = forward(nets["q_label"], b.next_x, b.next_states, b.next_contexts)
    choice, appeal = forward(nets["choice"], b.next_x, b.next_states, b.next_contexts)
    v = torch.exp((choice + appeal[:, None]).clamp(-_LOGITS, _LOGITS)) * b.next_shown
    q = value[:, None] + advantage
    of_null = value if null_value else torch.zeros_like(value)
    worth = of_null
    size = min(size, v.shape[1])
    for _ in range(4 if v.shape[1] > size else 1):
        gains = (v * (q - worth[:, None])).masked_fill(~b.next_shown, -torch.inf)
        top = gains.topk(size, dim=1).indices
        mass = v.gather(1, top)
        worth = (of_null + (mass * q.gather(1, top)).sum(dim=1)) / (1 + mass.sum(dim=1))
    return worth


# -- REINFORCE --------------------------------------------------------------------------------------------------------


def reinforce_errors(
    nets: dict[str, dict[str, Tensor]], b: Batch, *, size: int, largest_weight: float, others: int
) -> tuple[Any, Any]:
    """The loss of π and of its baseline V, and each step's error of V (B,).

    Chen et al. 2019 (arXiv 1812.02353), sections 4.3 and 4.4: ∇ = Σ min(π/β, c) λ_K (R - V(s)) ∇log π(a | s),
    λ_K = K (1 - π)^(K-1), with β the logged propensity. π needs Z(s) = Σ exp f(s, ·) over all candidates, of which
    only the slate is known: see `log_normalisers`.
    """
    f, value = forward(nets["q"], b.x, b.states, b.contexts)
    with torch.no_grad():
        _, next_value = forward(nets["q_label"], b.next_x, b.next_states, b.next_contexts)
        returns = b.rewards + (b.later + b.discounts * next_value)[:, None]
    pool = _others(nets["q"], b, others)
    log_z, log_left = log_normalisers(f, b.shown, b.propensities, pool)
    log_pi = (f - log_left).masked_fill(~b.shown, 0.0)
    with torch.no_grad():
        weight = (log_pi.exp() / b.propensities.clamp(min=1e-9)).clamp(max=largest_weight)
        pi = (f - log_z[:, None]).exp().clamp(max=1.0)
        gain = (returns - value[:, None]) * b.shown
        gain = gain / (gain.square().sum() / b.shown.sum()).sqrt().clamp(min=1e-8)  # one learning rate for all rewards
        factor = weight * size * (1 - pi) ** (size - 1) * gain
    count = b.shown.sum(dim=1).clamp(min=1)
    mean_return = (returns * b.shown).sum(dim=1) / count
    errors = value - mean_return
    td = functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")
    return (b.weights * (td - (factor * log_pi).sum(dim=1) / count)).mean(), errors.abs().detach()


def log_normalisers(f: Tensor, shown: Tensor, propensities: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """log Z (B,), and log of Z less the items above (B, k).

    Each position j gives an unbiased estimate Σ_{i<j} exp f_i + exp f_j / β_j of Z, as β_j is the chance of its item
    among those left; their mean is Z (Des Raj 1956, JASA 51, ordered estimator). A slate of one position would say
    nothing of what else there was: there the items of `pool` (B, M), drawn alike elsewhere, join with their mean β.
    """
    top = torch.cat([f.masked_fill(~shown, -torch.inf), pool], dim=1).amax(dim=1, keepdim=True).detach()
    e = torch.exp((f - top).masked_fill(~shown, -torch.inf))  # padding may score anything: ∞ · 0 is no number
    above = e.cumsum(dim=1) - e
    count = shown.sum(dim=1)
    z = ((above + e / propensities.clamp(min=1e-9)) * shown).sum(dim=1)
    beta = propensities[:, 0].clamp(min=1e-9)
    alone = (count <= 1).float()
    z = z + alone * (torch.exp(pool - top) / beta[:, None]).sum(dim=1)
    z = z / (count.clamp(min=1) + alone * pool.shape[1])
    left = torch.maximum(z[:, None] - above, e).clamp(min=1e-30)
    return top[:, 0] + z.clamp(min=1e-30).log(), top + left.log()
