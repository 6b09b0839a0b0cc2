"""What needs no training, judged by the part of the log that judges training: what a trained encoder must beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.export import ranking
from headrace.export.artifact import load
from headrace.export.item_tower import FILE, ItemTower
from headrace.export.log import Log
from headrace.export.train import Course, Recipe
from headrace.export.user_model import UserModel
from headrace.export.validation import item_vectors, rank, word_vectors


def beside(log: Log, *, recipe: Recipe, seed: int, untrained: Path | None = None) -> dict[str, float]:
    """HR@10 and NDCG@10 of the most popular items, and of the user encoder in the folder `untrained`.

    Keys: popular_hit10, popular_ndcg10, untrained_hit10, untrained_ndcg10. Asked are the users whom `train` asks about,
    with the same recipe and seed. `untrained` must be of the log's text space.
    """
    course = Course(log, recipe, np.random.default_rng(seed))
    history, targets = course.split
    users = np.flatnonzero((targets >= 0) & (np.diff(history.offsets) > 0))
    seen = None if course.repeats else [_rows(history, user) for user in users]
    counts = np.bincount(history.items[history.wanted], minlength=len(log.keys)).astype(np.float32)
    anybody = np.ones((len(users), 1), np.float32)
    found = {"popular": ranking.ranks(anybody, counts[:, None], targets[users].astype(np.int64), seen)}
    if untrained is not None:
        tower = ItemTower.load(load(untrained, "user").file(FILE))
        model = UserModel.from_pretrained(untrained, use_safetensors=True)
        items, words = item_vectors(tower, log), word_vectors(tower, log)
        found["untrained"] = rank(
            model, course.split, items=items, words=words, repeats=course.repeats, window=recipe.window
        ).ranks
    return {f"{name}_{key}": value for name, ranks in found.items() for key, value in ranking.metrics(ranks).items()}


def _rows(log: Log, user: np.int64) -> NDArray[np.int32]:
    rows = log.items[log.offsets[user] : log.offsets[user + 1]]
    return rows[rows >= 0]
