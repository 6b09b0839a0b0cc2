"""What all reinforcement learners share: steps go into a replay, torch trains on it, arrays serve."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import U64, Arrays, Meta, Steps
from headrace.policy.features import FeatureMap, unit
from headrace.policy.ranking import Ranking
from headrace.policy.rl import network
from headrace.policy.rl.replay import FEATURES, Replay

_TRAINING = "headrace.policy.rl.training"
_LARGEST_FEATURE = 6e4  # the replay holds float16
_LARGEST_NUMBER = 1e9  # of rewards and seconds: a user may come back after weeks
_BATCH = 64  # steps a gradient step sees
_LABEL = "_label"  # ends the name of a network's periodic copy


class Following(Ranking):
    """Learns by `follow`; examples alone are counted and change nothing.

    The replay travels in the snapshot, so that a restart needs no log. Rewards are divided once by the size of a
    return, which is measured when the first training begins: the networks see numbers near 1.
    """

    learns = False
    follows = True
    networks: tuple[str, ...] = ("q", "q_label")
    mean_later = False  # whether a later slate's reward is its positions' mean, and not their sum

    def __init__(
        self,
        *,
        rl_discount: float = 0.9,
        rl_horizon_s: float = 3600.0,
        rl_n_step: int = 1,
        rl_hidden: int = 64,
        rl_train_every: int = 16,
        rl_rate: float = 1e-3,
        rl_replay: int = 1024,
        rl_priority: float = 0.5,
        rl_label_every: int = 20,
        seed: int = 0,
        **shape: Any,
    ) -> None:
        """γ^(Δt/c): a reward `rl_horizon_s` c seconds later counts `rl_discount` γ. One gradient step is made every
        `rl_train_every` steps, and the label network copied every `rl_label_every` gradient steps."""
        super().__init__(**shape)
        self._gamma_s = rl_discount ** (1 / rl_horizon_s)
        self._n_step, self._every, self._rate = rl_n_step, rl_train_every, rl_rate
        self._label_every, self.seed = rl_label_every, seed
        self._features = FeatureMap(dim=self.dim, scalars=self.scalars, contexts=self.contexts)
        self._replay = Replay(rl_replay, priority=rl_priority)
        self._hidden = rl_hidden
        made = [name for name in self.networks if not name.endswith(_LABEL)]
        self._networks = {
            name: network.new(
                size=self._features.size, dim=self.dim, contexts=self.contexts, hidden=rl_hidden, seed=seed, tag=tag
            )
            for tag, name in enumerate(made)
        }
        for name in set(self.networks) - set(made):
            self._networks[name] = {k: array.copy() for k, array in self._networks[name.removesuffix(_LABEL)].items()}
        self._moments: Arrays = {}
        self._updates = 0  # gradient steps
        self._scale = 0.0  # what rewards are divided by; 0 while unknown

    @abstractmethod
    def _errors(self, training: Any, networks: Any, batch: Any) -> tuple[Any, Any]:
        """Loss and errors (B,): one of training's."""

    @property
    def followed(self) -> int:
        """Steps seen so far."""
        return self._replay.added

    def prepare_to_learn(self) -> None:
        # By name: whoever only serves never loads torch, and the import contract of the worker can see that.
        importlib.import_module(_TRAINING)

    # -- learn --------------------------------------------------------------------------------------------------------

    def follow(self, steps: Steps) -> None:
        steps = self._checked(steps)
        before = self._replay.added // self._every
        self._replay.add(steps)
        due = self._replay.added // self._every - before
        if due and self._replay.there >= _BATCH and (self._scale or self._measure()):
            self._train(due)

    def forget(self, owners: U64) -> None:
        self._replay.forget(owners)

    def _checked(self, steps: Steps) -> Steps:
        """Raises ValueError where a shape is wrong or a number is not finite; what is padding is 0 in the result."""
        n, k, wide, m = len(steps.terminal), steps.shown.shape[1], steps.next_shown.shape[1], len(self.scalars)
        always, goes_on = np.ones(n, np.bool_), ~steps.terminal
        flags = {"shown": (n, k), "next_shown": (n, wide), "terminal": (n,)}
        for name, shape in flags.items():
            if getattr(steps, name).shape != shape:
                raise ValueError(f"a step's {name} have shape {getattr(steps, name).shape}, {shape} was expected")
        next_shown = steps.next_shown & goes_on[:, None]
        columns: dict[str, tuple[tuple[int, ...], NDArray[np.bool_]]] = {  # what follows the rows, and where it counts
            "states": ((self.dim,), always),
            "contexts": ((self.contexts,), always),
            "items": ((self.dim,), steps.shown),
            "scalars": ((m,), steps.shown),
            "rewards": ((), steps.shown),
            "propensities": ((), steps.shown),
            "next_states": ((self.dim,), goes_on),
            "next_contexts": ((self.contexts,), goes_on),
            "next_items": ((self.dim,), next_shown),
            "next_scalars": ((m,), next_shown),
            "elapsed_s": ((), goes_on),
        }
        cleaned: dict[str, NDArray[Any]] = {"next_shown": next_shown}
        for name, (width, there) in columns.items():
            array = getattr(steps, name)
            if array.shape != there.shape + width:
                raise ValueError(f"a step's {name} have shape {array.shape}, this policy reads {there.shape + width}")
            cleaned[name] = np.where(there[..., None] if width else there, array, np.zeros((), array.dtype))
            largest = _LARGEST_FEATURE if name in FEATURES else _LARGEST_NUMBER
            if not (np.abs(cleaned[name]) <= largest).all():
                raise ValueError(f"a step's {name} are not finite or beyond {largest:g}: nothing was learned")
        if (cleaned["propensities"][steps.shown] <= 0).any() or (cleaned["elapsed_s"] < 0).any():
            raise ValueError("a step's propensity is not above 0, or its elapsed time negative: nothing was learned")
        return replace(steps, **cleaned)

    def _measure(self) -> bool:
        self._scale = self._replay.size_of_return(self._gamma_s)
        return self._scale > 0

    def _train(self, updates: int) -> None:
        training = importlib.import_module(_TRAINING)
        trainer = training.Trainer(self._networks, self._moments, steps=self._updates, rate=self._rate, frozen=_LABEL)
        with trainer:
            for _ in range(updates):
                random = np.random.Generator(np.random.Philox(key=(self.seed, self._updates)))
                slots, weights = self._replay.draw(_BATCH, random)
                batch = training.Batch.of(self._batch(slots) | {"weights": weights})
                loss, errors = self._errors(training, trainer.networks, batch)
                trainer.step(loss)
                self._replay.reprioritise(slots, errors.numpy())
                self._updates += 1
                if self._updates % self._label_every == 0:
                    trainer.copy("q", "q" + _LABEL)
            self._networks, self._moments = trainer.arrays()

    def _batch(self, slots: Any) -> dict[str, NDArray[Any]]:
        """The columns of training.Batch, `weights` apart."""
        own = self._replay.rows(slots)
        later, discounts, last = self._replay.chained(slots, self._n_step, gamma_s=self._gamma_s, mean=self.mean_later)
        end = own if self._n_step == 1 else self._replay.rows(last)
        joint = self._features.joint
        return {
            "x": joint(own["states"][:, None], own["contexts"][:, None], own["items"], own["scalars"]),
            "states": unit(own["states"]),
            "contexts": own["contexts"],
            "shown": own["shown"],
            "rewards": own["rewards"] / np.float32(self._scale),
            "propensities": own["propensities"],
            "later": (later / self._scale).astype(np.float32),
            "discounts": discounts.astype(np.float32),
            "next_x": joint(
                end["next_states"][:, None], end["next_contexts"][:, None], end["next_items"], end["next_scalars"]
            ),
            "next_states": unit(end["next_states"]),
            "next_contexts": end["next_contexts"],
            "next_shown": end["next_shown"],
        }

    # -- snapshot -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Arrays, Meta]:
        _, meta = super().snapshot()
        arrays = {f"{name}.{key}": a.copy() for name, net in self._networks.items() for key, a in net.items()}
        arrays |= {f"adam.{name}": array.copy() for name, array in self._moments.items()}
        arrays |= {f"replay.{name}": array for name, array in self._replay.arrays().items()}
        return arrays, meta | {"followed": self.followed, "updates": self._updates, "scale": self._scale}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        networks: dict[str, Arrays] = {}
        for name, net in self._networks.items():
            networks[name] = {}
            for key, mine in net.items():
                got = arrays.get(f"{name}.{key}")
                if got is None or got.shape != mine.shape:
                    raise ValueError(f"the snapshot's {name}.{key} is not {mine.shape}")
                networks[name][key] = got.copy()
        replay = Replay(self._replay.capacity, priority=self._replay.exponent)
        replay.restore(_under("replay.", arrays), int(meta.get("followed", 0)))
        super().restore(arrays, meta)
        self._networks, self._replay = networks, replay
        self._moments = _under("adam.", arrays)
        self._updates, self._scale = int(meta["updates"]), float(meta["scale"])

    @property
    def layout(self) -> str:
        return f"{super().layout} x={self._features.size} h={self._hidden} replay={self._replay.capacity}"


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array.copy() for name, array in arrays.items() if name.startswith(prefix)}
