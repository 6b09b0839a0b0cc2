"""What a policy can be told, by name, with the defaults; ranges are checked once, here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Each policy reads the ones it has a use for. Raises ValueError for a value out of range."""

    floor: float = 0.1  # share of every position that is spread evenly over the candidates left
    alpha: float = 0.5  # LinUCB's width; Thompson sampling's scale (neural_linear: times the noise that it estimates)
    draws: int = 32  # posterior draws that vote
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

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 <= self.alpha < float("inf") or self.seed < 0:
            raise ValueError("draws must be at least 1, alpha finite, alpha and seed at least 0")
        if not 1 <= self.largest_weight < float("inf"):
            raise ValueError(f"largest_weight is {self.largest_weight}: choose one of at least 1")
