"""What users' behaviour says about texts: windows to learn from, and questions about items that were kept out of them.

    b = behaviour(log, titles, seed=1)
    b.windows                 rows of texts that one user met one after another; no held-out text among them
    b.stopping, b.judging     "he met these: what came next?", where what came next is a held-out text

Texts and not items are held out, so that an item's twin of the same title does not tell. Without torch.
N = texts, Q = questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.export.errors import ExportError
from headrace.export.log import Log

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HISTORY = 10  # a question shows the last ten
MOST_TEXTS = 50_000  # those met most often; their hidden states are held in memory
_MOST_QUESTIONS = 3_000
_FEW_QUESTIONS = 50  # below it a comparison says nothing


@dataclass(frozen=True)
class Questions:
    """Ranked against all texts but those in the history."""

    histories: list[I64]  # Q arrays of text rows, oldest first
    targets: I64  # (Q,) text rows

    def ranks(self, vectors: F32, *, decay: float) -> I64:
        """Unit vectors of all texts (N, d) → how many texts are at least as near as the target (Q,); 0 is best.

        Near to the sum of the last HISTORY vectors, each weighing `decay` times the one after it.
        """
        found = np.empty(len(self.targets), np.int64)
        for start in range(0, len(found), 256):
            part = range(start, min(start + 256, len(found)))
            asked = np.stack([decayed(vectors, self.histories[q], decay=decay) for q in part])
            scores = asked @ vectors.T
            for q, row in zip(part, scores, strict=True):
                own = row[self.targets[q]]
                row[self.histories[q]] = -np.inf
                found[q] = len(row) - np.count_nonzero(row < own) - 1  # without itself; last if it is not a number
        return found


@dataclass(frozen=True)
class Behaviour:
    texts: list[str]  # N distinct ones
    windows: list[I64]  # of two texts and more, oldest first
    counts: I64  # (N,) how often a text occurs in `windows`
    stopping: Questions
    judging: Questions
    held_out: int  # texts in no window


def decayed(vectors: F32, rows: I64, *, decay: float) -> F32:
    """Σ decay^k · vector of the k-th last row (d,), over the last HISTORY."""
    last = rows[::-1][:HISTORY]
    weights = np.power(decay, np.arange(len(last)), dtype=np.float32)
    summed: F32 = weights @ vectors[last]
    return summed


def ndcg10(ranks: I64) -> F64:
    """Of one relevant item at these ranks, 0 the best (Järvelin & Kekäläinen 2002): (Q,)."""
    gains: F64 = np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0.0)
    return gains


def lower_bound(differences: F64, groups: I64, *, seed: int, level: float = 0.95, draws: int = 2_000) -> float:
    """Of the mean of differences (Q,), two-sided `level`: the percentile bootstrap (Efron & Tibshirani 1993, ch. 13).

    Whole `groups` (Q,) are drawn: questions about the same text stand and fall together.
    """
    random = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, weights=differences), np.bincount(group)
    n = len(sizes)
    weights = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(draws))
    return float(np.quantile([weight @ sums / (weight @ sizes) for weight in weights], (1 - level) / 2))


def behaviour(log: Log, titles: Sequence[str], *, seed: int, held_out: float = 0.1) -> Behaviour:
    """`titles` (items of the log,), as the catalogue would encode them. The share `held_out` of texts is in no window.

    Half of these are for early stopping, half for the judgement. Raises ValueError, one line, for too small a log.
    """
    if len(titles) != len(log.keys):
        raise ValueError(f"{len(titles)} titles for the {len(log.keys)} items of the log: one each is needed")
    texts, histories = _met(log, titles)
    random = np.random.default_rng(seed)
    order = random.permutation(len(texts))
    kept_out = round(len(texts) * held_out)
    role = np.zeros(len(texts), np.int8)  # 0: to learn from
    role[order[: kept_out // 2]] = 1
    role[order[kept_out // 2 : kept_out]] = 2
    windows = [window for h in histories if len(window := _without_repeats(h[role[h] == 0])) > 1]
    stopping, judging = (_questions(histories, role == part, random) for part in (1, 2))
    if min(len(stopping.targets), len(judging.targets)) < _FEW_QUESTIONS:
        raise ExportError(
            f"the log asks {len(judging.targets)} users about a held-out item, {_FEW_QUESTIONS} are needed to judge "
            "by: tune on a longer log, or serve the model as it is"
        )
    counts = np.bincount(np.concatenate(windows), minlength=len(texts)).astype(np.int64)
    return Behaviour(texts, windows, counts, stopping, judging, kept_out)


def _met(log: Log, titles: Sequence[str]) -> tuple[list[str], list[I64]]:
    """→ distinct titles, and what each user wanted as rows of them, oldest first."""
    distinct, text_of = np.unique(np.array([title.strip() for title in titles], np.str_), return_inverse=True)
    wanted = log.wanted & (distinct[text_of] != "")[log.items]
    rows, owners = text_of[log.items[wanted]].astype(np.int64), log.owners[wanted]
    counts = np.bincount(rows, minlength=len(distinct))
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_TEXTS])
    kept = kept[distinct[kept] != ""]
    new = np.full(len(distinct), -1, np.int64)
    new[kept] = np.arange(len(kept))
    rows = new[rows]
    fresh = rows >= 0
    rows, owners = rows[fresh], owners[fresh]
    cuts = np.flatnonzero(np.diff(owners)) + 1
    return distinct[kept].tolist(), [_without_repeats(history) for history in np.split(rows, cuts)]


def _without_repeats(rows: I64) -> I64:
    """No text twice in a row."""
    fresh = np.ones(len(rows), np.bool_)
    fresh[1:] = rows[1:] != rows[:-1]
    return rows[fresh]


def _questions(histories: list[I64], held_out: NDArray[np.bool_], random: np.random.Generator) -> Questions:
    """One a user: the last text of `held_out` that he had not met before."""
    found: list[tuple[I64, int]] = []
    for history in histories:
        for at in np.flatnonzero(held_out[history])[::-1]:
            if at > 0 and history[at] not in history[:at]:
                found.append((history[:at], int(history[at])))
                break
    order = random.permutation(len(found))[:_MOST_QUESTIONS]
    return Questions([found[i][0] for i in order], np.array([found[i][1] for i in order], np.int64))
