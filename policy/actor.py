"""A policy that was trained elsewhere: a small network from what is known of the user to what to prefer.

    preference (d + m) = clip(MLP([state | context]))      any agent of Gymnasium learns it: see docs/training.md
    score(item)        = preference · [item | scalars]
    π                  = softmax(score / temperature)

Policy-gradient agents act in a space of fixed size; the catalogue does not have one. So the action is the preference,
and the items are ranked by it: a proto-action and its neighbours (Dulac-Arnold et al. 2015, arXiv 1512.07679).
It learns nothing from traffic: a new one is trained and served in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.policy.base import F32, Arrays, Meta, Query
from headrace.policy.features import by_candidate, by_row
from headrace.policy.ranking import Ranking
from headrace.policy.slates import Choice, Softmax

ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
}


class Actor(Ranking):
    """Untrained, its preference is the state itself: what is most like the user's history."""

    name = "actor"
    learns = False

    def __init__(self, *, temperature: float = 0.1, **shape: Any) -> None:
        super().__init__(**shape)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: choose one above 0")
        like_the_state = np.zeros((self.dim + self.contexts, self.dim + len(self.scalars)), np.float32)
        like_the_state[: self.dim, : self.dim] = np.eye(self.dim)
        self._layers = [(like_the_state, np.zeros(like_the_state.shape[1], np.float32))]
        self._activation, self._clip, self.temperature = "tanh", 1.0, temperature

    def load(self, layers: list[tuple[F32, F32]], *, activation: str, clip: float, temperature: float) -> None:
        """Takes over a trained network: (weights (in, out), biases (out,)) a layer, the activation between them.

        `clip`: preferences are cut to [-clip, clip], as the space of actions was. Raises ValueError, and is unchanged,
        where the network reads or writes another width, or a number is not finite.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if not (clip > 0 and 0 < temperature < float("inf")):
            raise ValueError(f"clip is {clip} and temperature {temperature}: both must be above 0")
        width = self.dim + self.contexts
        for weights, biases in layers:
            if weights.ndim != 2 or weights.shape[0] != width or biases.shape != weights.shape[1:]:
                raise ValueError(f"a layer has weights {weights.shape} and biases {biases.shape}, {width} come in")
            if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
                raise ValueError("a weight is not finite")
            width = weights.shape[1]
        if not layers or width != self.dim + len(self.scalars):
            raise ValueError(f"the network gives {width} numbers, {self.dim + len(self.scalars)} are a preference")
        self._layers = [(np.array(w, np.float32, order="C"), np.array(b, np.float32)) for w, b in layers]
        self._activation, self._clip, self.temperature = activation, float(clip), float(temperature)

    def preferences(self, states: F32, contexts: F32) -> F32:
        """(B, d + m) of states (B, d) and contexts (B, c)."""
        x = np.ascontiguousarray(np.concatenate([states, contexts], axis=1), np.float32)
        for i, (weights, biases) in enumerate(self._layers):
            x = by_row(x, weights) + biases
            if i < len(self._layers) - 1:
                x = ACTIVATIONS[self._activation](x)
        return np.clip(x, -np.float32(self._clip), np.float32(self._clip))

    def _rank(self, query: Query) -> tuple[F32, Choice]:
        preferences = self.preferences(query.states, query.contexts)[:, None, :]
        features = np.concatenate([query.items, query.scalars], axis=2).transpose(0, 2, 1)
        scores = by_candidate(preferences, np.ascontiguousarray(features))[:, 0]
        return scores, Softmax(scores / np.float32(self.temperature), query.mask, temperature=self.temperature)

    def snapshot(self) -> tuple[Arrays, Meta]:
        _, meta = super().snapshot()
        arrays: Arrays = {}
        for i, (weights, biases) in enumerate(self._layers):
            arrays |= {f"weights.{i}": weights.copy(), f"biases.{i}": biases.copy()}
        own: Meta = {"activation": self._activation, "clip": self._clip, "temperature": self.temperature}
        return arrays, meta | own | {"layers": len(self._layers)}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        other = Actor(dim=self.dim, scalars=self.scalars, contexts=self.contexts, floor=self.floor)
        super(Actor, other).restore(arrays, meta)
        try:
            layers = [(arrays[f"weights.{i}"], arrays[f"biases.{i}"]) for i in range(int(meta["layers"]))]
            other.load(
                layers,
                activation=str(meta["activation"]),
                clip=float(meta["clip"]),
                temperature=float(meta["temperature"]),
            )
        except KeyError as missing:
            raise ValueError(f"the snapshot lacks {missing}") from None
        self.learned = other.learned
        self._layers, self._activation = other._layers, other._activation
        self._clip, self.temperature = other._clip, other.temperature
