"""How well a trained encoder foretells: the states after histories, and the rank of the item that came next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.export import ranking
from headrace.export.item_tower import ItemTower
from headrace.export.log import Log, Split
from headrace.export.user_model import UserModel
from headrace.export.windows import WINDOW, batches, final_windows, gap_buckets, tokens

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_EVENTS = 8_192  # a batch


class Ranked(NamedTuple):
    users: I64  # (n,) rows of the users who were asked about
    ranks: I64  # (n,) items that stand before the one that came next


def item_vectors(items: ItemTower, log: Log) -> F32:
    """The vectors of the log's items as the running system computes them: unit rows (N, d)."""
    return items.vectors(
        log.texts,
        keys=log.keys,
        categories=list(log.categories) if len(log.categories) else None,
        prices=log.prices if len(log.prices) else None,
    )


def word_vectors(items: ItemTower, log: Log) -> F32:
    """The vectors of what users wrote: unit rows (Q, d)."""
    return items.vectors(log.words) if len(log.words) else np.zeros((0, items.dim), np.float32)


@torch.inference_mode()
def states(
    model: UserModel, log: Log, targets: NDArray[np.int32], *, items: F32, words: F32, window: int = WINDOW
) -> F32:
    """The states (n, d) after the histories of the users asked about (targets (U,) ≥ 0), in the order of users."""
    model.eval()  # type: ignore[no-untyped-call]
    device = next(model.parameters()).device
    table = np.concatenate([items, words, np.zeros((1, items.shape[1]), np.float32)])
    windows, gaps = final_windows(log, targets, window=window), gap_buckets(log)
    found = np.zeros((len(windows.first), items.shape[1]), np.float32)
    for chosen in batches(windows, _EVENTS):
        events = tokens(log, gaps, windows, chosen)
        rows = np.where(events.items >= 0, events.items, np.where(events.asked >= 0, len(items) + events.asked, -1))
        inputs = (torch.from_numpy(array).to(device) for array in (table[rows], events.types, events.gaps))
        after = model(*inputs).cpu().numpy()
        found[chosen] = after[np.arange(len(chosen)), windows.place[chosen]]
    return found


def rank(
    model: UserModel, split: Split, *, items: F32, words: F32, repeats: bool = False, window: int = WINDOW
) -> Ranked:
    """Ranks each target of `split` among all items; what a user has met is out of the running unless `repeats`."""
    log, targets = split
    users = np.flatnonzero((targets >= 0) & (np.diff(log.offsets) > 0))
    seen = None if repeats else [_items(log, user) for user in users]
    after = states(model, log, targets, items=items, words=words, window=window)
    return Ranked(users, ranking.ranks(after, items, targets[users].astype(np.int64), seen))


def _items(log: Log, user: np.int64) -> NDArray[np.int32]:
    rows = log.items[log.offsets[user] : log.offsets[user + 1]]
    return rows[rows >= 0]
