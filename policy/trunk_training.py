"""Trains the trunk of neural-linear in torch. Loaded by a learner alone: serving is numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from headrace.policy.base import F32, F64, Arrays
from headrace.policy.features import unit


def train(
    weights: Arrays, head: F64, x: F32, states: F32, residuals: F64, weighs: F64, *, seed: tuple[int, int], steps: int,
    batch: int = 256, rate: float = 5e-3, decay: float = 0.1,
) -> Arrays:  # fmt: skip
    """Moves `weights` so that head·z predicts `residuals` (N,), what the linear part leaves of the rewards.

    x (N, D) and states (N, d) are the trunk's input, `weighs` (N,) how much each example counts; the result has the
    same names as `weights`.

    The output `head` (OUT,) is trained along and thrown away: the exact posterior replaces it. One thread, no random
    number of torch's own: the same input gives the same bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = torch.from_numpy(np.concatenate([x, unit(states)], axis=1))
        y = torch.from_numpy(residuals.astype(np.float32))
        counts = torch.from_numpy(weighs.astype(np.float32))
        first = np.concatenate([weights["wide"], weights["state"]], axis=1)
        parameters = [
            torch.from_numpy(array.astype(np.float32)).requires_grad_()
            for array in (first, weights["bias"].copy(), weights["out"].copy(), weights["out_bias"].copy(), head)
        ]
        w1, b1, w2, b2, v = parameters
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        choose = np.random.Generator(np.random.Philox(key=seed))
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / steps)
            rows = torch.from_numpy(choose.integers(len(y), size=batch))
            hidden = torch.relu(functional.linear(inputs[rows], w1, b1))
            z = torch.relu(functional.linear(hidden, w2, b2))
            loss = (counts[rows] * (z @ v - y[rows]).square()).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        trained = [p.detach().numpy().copy() for p in (w1, b1, w2, b2)]
    finally:
        torch.set_num_threads(threads)
    wide, state = np.split(trained[0], [x.shape[1]], axis=1)
    return {
        "wide": np.ascontiguousarray(wide),
        "state": np.ascontiguousarray(state),
        "bias": trained[1],
        "out": trained[2],
        "out_bias": trained[3],
    }


def warm_up() -> None:
    """Trains something tiny: torch loads more than a second's worth of itself at the first step of an optimiser."""
    ones = np.ones((1, 1), np.float32)
    weights = {"wide": ones, "state": ones, "bias": ones[0], "out": ones, "out_bias": ones[0]}
    train(weights, np.ones(1), ones, ones, np.ones(1), np.ones(1), seed=(0, 0), steps=1, batch=1)
