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

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 <= self.alpha < float("inf") or self.seed < 0:
            raise ValueError("draws must be at least 1, alpha finite, alpha and seed at least 0")
