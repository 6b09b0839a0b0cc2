"""Sequences to foretell the next item of, in two formats, and what was foretold: ranks, metrics, paired differences.

S3-Rec      `user item item item …` a line, oldest first (LastFM.txt)
RecBole     a header `user_id:token<TAB>item_id_list:token_seq<TAB>item_id:token`, the list followed by the last item
            (Games-6k.test.inter); titles in a file of their own, `item_id:token<TAB>title:token_seq` (Games.item)

Leave-one-out: the last item of a user is the test's, the one before it validation's, and all models are fitted to what
came before both. U = users, N = items, E = events.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

FOLDER = Path(__file__).parents[2] / "shared/data"
TOP = 10
Stage = Literal["valid", "test"]
Score = Callable[[list[I32]], F32]
"""Histories of B users, oldest first → scores (B, N); higher is likelier."""


@dataclass(frozen=True)
class Histories:
    """Each user has three items at least. Item rows stand for `ids`, the catalogue, in its order."""

    name: str
    ids: list[str]  # (N,)
    titles: list[str] | None  # (N,) plain text
    items: I32  # (E,)
    offsets: I64  # (U+1,)

    @property
    def n_items(self) -> int:
        return len(self.ids)

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    def trained(self, user: int) -> I32:
        """All but the last two items: what models are fitted to, and validation's history."""
        return self.items[self.offsets[user] : self.offsets[user + 1] - 2]

    def history(self, user: int, stage: Stage) -> I32:
        return self.items[self.offsets[user] : self.offsets[user + 1] - (2 if stage == "valid" else 1)]

    def targets(self, stage: Stage) -> I32:
        """(U,) the item to foretell."""
        return self.items[self.offsets[1:] - (2 if stage == "valid" else 1)]

    def counts(self) -> I64:
        """(N,) how often each item occurs in what models are fitted to."""
        ends = np.concatenate([self.offsets[1:] - 1, self.offsets[1:] - 2])
        return np.bincount(np.delete(self.items, ends), minlength=self.n_items)


def load(file: Path, *, titles: Path | None = None, name: str | None = None) -> Histories:
    """Raises ValueError, one line, where a file is of neither format. Users with fewer than three items are left out.

    The catalogue is the items of `titles`, where given, and all that occur.
    """
    sequences = list(_inter(file) if _header(file).startswith("user_id:token\t") else _s3rec(file))
    sequences = [sequence for sequence in sequences if len(sequence) >= 3]
    if not sequences:
        raise ValueError(f"{file}: no user with three items")
    words = _titles(titles) if titles else {}
    ids = sorted(words.keys() | {item for sequence in sequences for item in sequence}, key=lambda i: (len(i), i))
    row = {item: at for at, item in enumerate(ids)}
    return Histories(
        name=name or file.stem,
        ids=ids,
        titles=[words.get(item, "") for item in ids] if titles else None,
        items=np.array([row[item] for sequence in sequences for item in sequence], np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]),
    )


def _header(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return lines.readline()


def _s3rec(file: Path) -> Iterator[list[str]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            _, *items = line.split()
            if not all(item.isdecimal() for item in items):
                raise ValueError(f"{file}:{number}: not `user item item …` with numbers for items")
            yield items


def _inter(file: Path) -> Iterator[list[str]]:
    with file.open(encoding="utf-8") as lines:
        next(lines)
        for number, line in enumerate(lines, start=2):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 3:
                raise ValueError(f"{file}:{number}: {len(cells)} cells, not user, list of items, last item")
            yield [*cells[1].split(), cells[2]]


def _titles(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8") as lines:
        if not next(lines).startswith("item_id:token\ttitle:token_seq"):
            raise ValueError(f"{file}: its first line is not `item_id:token<TAB>title:token_seq`")
        pairs = (line.rstrip("\n").split("\t")[:2] for line in lines)
        return {item: html.unescape(title) for item, title in pairs}


# -- what was foretold ------------------------------------------------------------------------------------------------


def ranks(score: Score, data: Histories, stage: Stage, users: I64 | None = None, *, batch: int = 512) -> I32:
    """(U,) how many items of the whole catalogue stand before the target, the user's seen items aside.

    Among items of equal score the target's place is drawn, the same way for every model.
    """
    users = np.arange(data.n_users) if users is None else users
    targets = data.targets(stage)[users]
    drawn = np.random.default_rng(10).random(data.n_users)[users]
    found = np.empty(len(users), np.int32)
    for start in range(0, len(users), batch):
        at = slice(start, start + batch)
        histories = [data.history(user, stage) for user in users[at]]
        scores = score(histories)
        rows = np.arange(len(histories))
        own = scores[rows, targets[at]].copy()
        scores[np.repeat(rows, [len(h) for h in histories]), np.concatenate(histories)] = -np.inf
        before = (scores > own[:, None]).sum(axis=1)
        equal = (scores == own[:, None]).sum(axis=1) - (scores[rows, targets[at]] == own)
        seen = np.isneginf(scores[rows, targets[at]])  # a target the user had already: never shown
        found[at] = np.where(seen, data.n_items, before + np.floor(drawn[at] * (equal + 1)))
    return found


def metrics(found: I32) -> F64:
    """Ranks (U,) → HR@10 and NDCG@10 of each user (U, 2); with one target NDCG is 1 / log2(rank + 2)."""
    hit = found < TOP
    return np.stack([hit, np.where(hit, 1 / np.log2(found + 2.0), 0.0)], axis=1)


def paired_bootstrap(differences: F64, *, resamples: int = 2_000, seed: int = 0) -> F64:
    """Differences a user (U, C) → mean, and the ends of its 95 % interval over resampled users: (3, C).

    Efron & Tibshirani 1993, chapter 13 (percentiles). All columns see the same resamples.
    """
    random = np.random.default_rng(seed)
    n = len(differences)
    means = np.empty((resamples, differences.shape[1]))
    for row in range(resamples):
        weights = np.bincount(random.integers(n, size=n), minlength=n)
        means[row] = weights @ differences / n
    return np.stack([differences.mean(axis=0), *np.quantile(means, [0.025, 0.975], axis=0)])
