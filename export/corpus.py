"""Product-like titles, made here: what the default user encoder is fitted and lightly trained on.

Broad rather than deep: the projection keeps the directions in which titles differ, so it should have seen many kinds of
shop. The words stand in topics.toml.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

import numpy as np

_MAKERS = (
    "Alder", "Borealis", "Cobalt", "Delmar", "Ember", "Fjord", "Granite", "Harrow", "Isola", "Juniper", "Kestrel",
)  # fmt: skip
_CASES = (str.capitalize, str.title, str.lower, str.upper)


def titles(n: int, *, seed: int) -> list[str]:
    """`n` titles, the same for the same seed: a thing, one or two words that set it apart, and often a maker."""
    random = np.random.default_rng(seed)
    topics = [*tomllib.loads(files(__package__).joinpath("topics.toml").read_text()).values()]
    made = []
    for _ in range(n):
        topic = topics[random.integers(len(topics))]
        things, traits = topic["things"], topic["traits"]
        chosen = random.choice(len(traits), size=random.integers(1, 3), replace=False)
        words = [things[random.integers(len(things))], *(traits[i] for i in chosen)]
        if random.random() < 0.5:
            words.insert(0, _MAKERS[random.integers(len(_MAKERS))])
        made.append(_CASES[random.integers(len(_CASES))](" ".join(words)))
    return made
