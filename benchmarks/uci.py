"""Five sets of the UCI repository as streams of rounds: the features of a row are the context, its class is the action
that earns 1 (Dudík et al. 2011, arXiv 1103.4601, section 4: class to bandit). They lie in ../shared/data/uci_ope.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FOLDER = Path(__file__).parents[2] / "shared/data/uci_ope"
_FILES = {
    "ecoli": "ecoli.data",
    "letter": "letter-recognition.data",
    "optdigits": "optdigits.data",
    "pendigits": "pendigits.data",
    "satimage": "satimage.data",
}
SETS = tuple(_FILES)


@dataclass(frozen=True)
class Rounds:
    """A stream: what is known in each of T rounds about K actions, and what each of them would earn.

    For class to bandit the items are one-hot, states are zeros and there are no scalars: an action is only its number.
    """

    name: str
    contexts: F32  # (T, c)
    states: F32  # (T, d)
    items: F32  # (K, d)
    scalars: F32  # (T, K, m)
    scalar_names: tuple[str, ...]  # m
    features: F32 | None  # (T, K, D) the same as one vector an action, for who learns one weight a feature; or None
    expected: F64  # (T, K) of an action's reward, which is 0 or 1
    uniforms: F64  # (T,) the reward is 1 where this is below what is expected: the same luck for all

    def __len__(self) -> int:
        return len(self.contexts)

    @cached_property
    def texts(self) -> list[tuple[str | None, list[str]]]:
        """Each round as vowpalwabbit's lines, made once a stream, outside what is timed: shared part, actions."""
        if self.features is None:
            actions = [f"|a a{i}" for i in range(len(self.items))]
            return [("shared |s " + _text(row), actions) for row in self.contexts]
        return [(None, ["|a " + _text(row) for row in actions]) for actions in self.features]


def _text(row: F32) -> str:
    return " ".join(f"f{i}:{value:.5g}" for i, value in enumerate(row.tolist()) if value)


def load(name: str) -> tuple[F64, NDArray[np.int64]]:
    """Features (N, c), of mean 0, variance 1 and together of length 1 on average; classes (N,) from 0."""
    lines = (FOLDER / _FILES[name]).read_text("utf-8").replace(",", " ").split("\n")
    rows = [line.split() for line in lines if line.strip()]
    if name == "letter":
        rows = [[*row[1:], row[0]] for row in rows]
    if name == "ecoli":
        rows = [row[1:] for row in rows]
    _, labels = np.unique([row[-1] for row in rows], return_inverse=True)
    x = np.array([row[:-1] for row in rows], np.float64)
    x = x[:, x.std(axis=0) > 0]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x / x.shape[1] ** 0.5, labels


def rounds(name: str, *, seed: int, limit: int) -> Rounds:
    """At most `limit` rounds in an order of the seed's, whose actions are the classes in an order of the seed's."""
    x, labels = load(name)
    random = np.random.default_rng([seed, SETS.index(name)])
    order = random.permutation(len(x))[:limit]
    actions = int(labels.max()) + 1
    labels = random.permutation(actions)[labels]
    return Rounds(
        name=name,
        contexts=x[order].astype(np.float32),
        states=np.zeros((len(order), actions), np.float32),
        items=np.eye(actions, dtype=np.float32),
        scalars=np.zeros((len(order), actions, 0), np.float32),
        scalar_names=(),
        features=None,
        expected=np.eye(actions)[labels[order]],
        uniforms=random.random(len(order)),
    )
