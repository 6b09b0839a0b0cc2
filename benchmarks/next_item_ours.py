"""The trained encoder in benchmarks/next_item.py: as a shop would train it, and without one part or the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from next_item_data import F32, I32, I64, Histories, Score

from headrace.export import defaults, train
from headrace.export.item_tower import FILE, ItemTower
from headrace.export.log import Log
from headrace.export.names import GAP_THRESHOLDS, type_code
from headrace.export.user_model import UserModel
from headrace.export.windows import WINDOW, window_start
from headrace.streams.records import item_key

_TEXTS = "texts.npy"


def fit(variant: str, data: Histories, *, seed: int, work: Path) -> tuple[Score, dict[str, Any]]:
    """`variant`: headrace, and of data with titles also headrace, ids alone | texts alone | untrained."""
    torch.set_num_threads(1)
    texts = text_vectors(data, work)
    keys = np.array([item_key(item) for item in data.ids], np.uint64)
    if variant.endswith("untrained"):  # the default encoder, which has seen no shop's log
        folder = defaults.ensure_user()
        tower = ItemTower.load(folder / FILE)
        return _score(UserModel.from_pretrained(folder), tower.vectors(texts)), {"encoder": "default"}
    by_words = not variant.endswith("ids alone")
    by_id = not variant.endswith("texts alone")
    log = Log.of(
        users=np.repeat([str(user) for user in range(data.n_users)], np.diff(data.offsets) - 1),
        items=np.delete(data.items, data.offsets[1:] - 1),  # the last item is the test's: training never gets it
        keys=keys,
        texts=texts if by_words else np.zeros((data.n_items, 0), np.float32),
    )
    recipe = train.Recipe(ids=by_id)
    trained = train.train(log, seed=seed, recipe=recipe, device="cpu", progress=_tell(f"{data.name} {variant} {seed}"))
    told = {
        "recipe": asdict(recipe),
        "trained_on": log.fingerprint(),
        **{k: round(v, 5) for k, v in trained.metrics.items()},
    }
    return _score(trained.model, trained.items.vectors(log.texts, keys=keys)), told


def _tell(name: str) -> Callable[[train.Progress], None]:
    told: list[int] = []

    def tell(now: train.Progress) -> None:
        if now.epoch not in told:
            told.append(now.epoch)
            print(f"{name}: epoch {now.epoch}, best so far {now.best:.4f}", flush=True)

    return tell


def text_vectors(data: Histories, work: Path) -> F32:
    """(N, T) of the titles by the default text encoder, kept in `work`; (N, 0) where there are no titles."""
    if data.titles is None:
        return np.zeros((data.n_items, 0), np.float32)
    path = work / _TEXTS
    if not path.exists():
        from headrace.streams.texts import TextEncoder

        np.save(path, TextEncoder(defaults.ensure_text()).encode(data.titles))
    found: F32 = np.load(path)
    return found


def _score(model: UserModel, items: F32) -> Score:
    """As served: the window that the running system would hold, every event a view, a second apart."""
    view, gap = type_code("view"), int(np.searchsorted(GAP_THRESHOLDS, 1, side="right"))

    @torch.inference_mode()
    def score(histories: list[I32]) -> F32:
        model.eval()  # type: ignore[no-untyped-call]
        counts = np.array([len(history) for history in histories])
        windows = [h[start:] for h, start in zip(histories, window_start(counts, WINDOW), strict=True)]
        lengths: I64 = np.array([len(window) for window in windows])
        states = np.empty((len(windows), items.shape[1]), np.float32)
        for rows in np.array_split(np.argsort(lengths), max(1, len(windows) // 64)):
            vectors = np.zeros((len(rows), lengths[rows].max(), items.shape[1]), np.float32)
            for row, at in enumerate(rows):
                vectors[row, : lengths[at]] = items[windows[at]]
            types = torch.full(vectors.shape[:2], view)
            gaps = torch.full(vectors.shape[:2], gap)
            gaps[:, 0] = 0  # nothing comes before a window
            after = model(torch.from_numpy(vectors), types, gaps).numpy()
            states[rows] = after[np.arange(len(rows)), lengths[rows] - 1]
        return states @ items.T

    return score
