"""What a policy can be told, by name, with the defaults; ranges are checked once, here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Each policy reads the ones it has a use for. Raises ValueError for a value out of range."""

    floor: float = 0.1  # share of every position that is spread evenly over the candidates left
    alpha: float = 0.5  # LinUCB's width; Thompson sampling's scale (neural_linear: times the noise that it estimates)
    draws: int = 32  # posterior draws that vote
    optimistic: bool = False  # lints: a draw below the estimate counts as one as far above it
    ridge: float = 1.0  # the prior's precision
    seed: int = 0
    epsilon: float = 0.05  # epsilon_greedy: share spread evenly, on top of the floor
    temperature: float = 0.05  # softmax: τ, in the unit of the reward
    gamma_scale: float = 10.0  # squarecb: γ = scale · t^exponent after t examples
    gamma_exponent: float = 0.5
    discount: float = 1.0  # linear policies: what an example's weight is multiplied with at each newer one
    change_detector: bool = False  # linear policies: forget most where rewards fall below what was expected
    outer: bool = False  # linear policies and neural_linear: context × item among the features
    largest_weight: float = 20.0  # cap of π/μ for a policy that weighs examples by it (e³: Chen et al. 2019)
    rl_discount: float = 0.9  # γ of dqn, slateq and reinforce: what a reward counts that comes rl_horizon_s later
    rl_horizon_s: float = 3600.0
    rl_n_step: int = 1  # rewards taken from the log before the value function takes over
    rl_conservative: float = 0.0  # dqn: how strongly what was never shown is held for worse (CQL's α)
    rl_slate: int = 10  # slateq and reinforce: the number of items a slate is optimised for
    rl_hidden: int = 64  # width of the networks
    rl_rate: float = 0.001  # Adam's
    rl_train_every: int = 16  # steps between two gradient steps
    rl_replay: int = 1024  # steps in the replay, which travels in the snapshot
    rl_priority: float = 0.5  # exponent of |error| when the replay is drawn from; 0: all steps alike

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 <= self.alpha < float("inf") or self.seed < 0:
            raise ValueError("draws must be at least 1, alpha finite, alpha and seed at least 0")
        if not 1 <= self.largest_weight < float("inf"):
            raise ValueError(f"largest_weight is {self.largest_weight}: choose one of at least 1")
        if not 0 <= self.rl_discount < 1 or not self.rl_horizon_s > 0 or not self.rl_rate > 0:
            raise ValueError("rl_discount must be at least 0 and below 1, rl_horizon_s and rl_rate above 0")
        if min(self.rl_conservative, self.rl_priority) < 0:
            raise ValueError("rl_conservative and rl_priority must be at least 0")
        counts = (self.rl_n_step, self.rl_slate, self.rl_hidden, self.rl_train_every)
        if min(counts) < 1 or self.rl_replay < 64:
            raise ValueError("rl_n_step, rl_slate, rl_hidden and rl_train_every must be at least 1, rl_replay 64")
