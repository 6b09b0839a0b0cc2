"""Items that came after training: does a text say what users will want? Amazon Games, a tenth of the items held out.

    python benchmarks/cold_items.py [--seeds N] [--split N] [--only NAME …] [--work FOLDER] [--again]

The events of the held-out items are in no training log; every user's last event is the test's. Users whose last event
is a held-out item are asked for it among the whole catalogue, what they had met masked; the others are the warm part.
What each model ranked is kept in --work, so that a run that was stopped goes on; --again measures the named ones anew.
BLAS is held to one thread, which must be said before numpy is loaded, hence the order of imports.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import next_item_data as nid
import numpy as np
from next_item_data import FOLDER, paired_bootstrap

from headrace.export import train, tuning
from headrace.export.log import Log, Split, leave_one_out
from headrace.export.ranking import ranks
from headrace.export.text import TextTower
from headrace.export.validation import item_vectors, rank, word_vectors
from headrace.streams.records import item_key

RESULT = Path(__file__).parent / "results" / "cold_items.json"
WORK = Path(__file__).parents[1] / "build" / "cold_items"
GAMES = (FOLDER / "amazon_games/Games-6k.test.inter", FOLDER / "amazon_games/Games.item")
HELD_OUT, LAST = 0.1, 10
DECAYS = (0.4, 0.6, 0.8, 0.9)  # of the history, an event; chosen on the item before the last
CHOOSING_USERS, WARM_USERS = 3_000, 10_000
TARGET = 1.3  # times the NDCG@10 of TF-IDF
TF_IDF, FROZEN, TUNED = "TF-IDF, nearest titles", "text model, frozen, nearest", "text model, tuned, nearest"
ENCODERS = {  # name → (over tuned texts, items have ids)
    "user encoder, frozen texts": (False, False),
    "user encoder, frozen texts and ids": (False, True),
    "user encoder, tuned texts": (True, False),
    "user encoder, tuned texts and ids": (True, True),
}
MODELS = (TF_IDF, FROZEN, TUNED, *ENCODERS)
Figures = dict[str, Any]
F32 = nid.F32


@dataclass(frozen=True)
class Shop:
    titles: list[str]
    cold: nid.I64  # rows of the held-out items
    training: Log  # without them, and without the last events
    test: Split  # asked: all users with a held-out item last, and WARM_USERS others
    is_cold: np.ndarray  # (asked users,)


def shop(split: int) -> Shop:
    data = nid.load(GAMES[0], titles=GAMES[1], name="Amazon Games")
    assert data.titles is not None
    random = np.random.default_rng(split)
    cold = np.sort(random.permutation(data.n_items)[: round(HELD_OUT * data.n_items)])
    log = Log.of(
        users=np.repeat([f"{user:06d}" for user in range(data.n_users)], np.diff(data.offsets)),
        items=data.items,
        keys=np.array([item_key(item) for item in data.ids], np.uint64),
        texts=np.zeros((data.n_items, 0), np.float32),
    )
    test = leave_one_out(log)
    last_cold = np.isin(test.targets, cold)
    others = random.permutation(np.flatnonzero(~last_cold))[WARM_USERS:]
    test.targets[others] = -1
    asked = test.targets[test.targets >= 0]
    return Shop(data.titles, cold, test.history.without_items(cold), test, np.isin(asked, cold))


def with_texts(log: Log, vectors: F32) -> Log:
    return replace(log, texts=vectors)


# -- the models: ranks of the users asked about, in their order, and what is to be told --------------------------------


def nearest(vectors: Any, games: Shop) -> tuple[nid.I64, Figures]:
    """Item vectors (N, T), dense or sparse. Nearest to the last ten items, decayed: by what, validation says."""
    valid = leave_one_out(games.test.history)
    users = np.random.default_rng(2).permutation(np.flatnonzero(valid.targets >= 0))[:CHOOSING_USERS]
    asked = np.full_like(valid.targets, -1)
    asked[users] = valid.targets[users]
    by_decay = {decay: _gain(_nearest(vectors, Split(valid.history, asked), decay)).mean() for decay in DECAYS}
    best = max(by_decay, key=lambda decay: float(by_decay[decay]))
    return _nearest(vectors, games.test, best), {"decay": best}


def _nearest(vectors: Any, split: Split, decay: float) -> nid.I64:
    from scipy.sparse import csr_matrix, issparse

    log, targets = split
    users = np.flatnonzero((targets >= 0) & (np.diff(log.offsets) > 0))
    found = []
    for part in np.array_split(users, -(-len(users) // 512)):
        seen = [log.items[log.offsets[user] : log.offsets[user + 1]] for user in part]
        last = [items[::-1][:LAST] for items in seen]
        weights = np.concatenate([decay ** np.arange(len(items)) for items in last]).astype(np.float32)
        rows = np.repeat(np.arange(len(part)), [len(items) for items in last])
        states = csr_matrix((weights, (rows, np.concatenate(last))), shape=(len(part), vectors.shape[0])) @ vectors
        if issparse(vectors):  # the scores are dense, and stand for states whose items are unit vectors
            scores = np.asarray((states @ vectors.T).todense())
            found.append(_ranks_of(scores, targets[part], seen))
        else:
            found.append(ranks(states.astype(np.float32), vectors, targets[part].astype(np.int64), seen))
    return np.concatenate(found)


def _ranks_of(scores: F32, targets: nid.I32, seen: list[nid.I32]) -> nid.I64:
    """As export.ranking.ranks, ties before the target."""
    n = np.arange(len(scores))
    own = scores[n, targets].copy()
    scores[np.repeat(n, [len(items) for items in seen]), np.concatenate(seen)] = -np.inf
    scores[n, targets] = -np.inf
    return (scores >= own[:, None]).sum(axis=1)


def tf_idf(titles: list[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer().fit_transform(titles).astype(np.float32)


def frozen_vectors(games: Shop, work: Path) -> F32:
    path = work / "frozen.npy"
    if not path.exists():
        np.save(path, TextTower.from_name().embed(games.titles))
    found: F32 = np.load(path)
    return found


def tuned_vectors(games: Shop, work: Path, seed: int) -> tuple[F32, Figures]:
    path = work / f"tuned.{seed}.npz"
    if not path.exists():
        started = time.process_time()
        tuned = tuning.tune(TextTower.from_name(), games.training, games.titles, seed=seed, report=_say, progress=_tell)
        told = {"passed": tuned.verdict.passed, "cpu_seconds": round(time.process_time() - started), **tuned.metrics}
        _say(f"{tuned.verdict}, {told}")
        np.savez(path, vectors=tuned.tower.embed(games.titles), told=np.array(json.dumps(told)))
    with np.load(path) as found:
        return found["vectors"], json.loads(str(found["told"]))


def encoder(games: Shop, vectors: F32, *, ids: bool, seed: int) -> tuple[nid.I64, Figures]:
    log = with_texts(games.training, vectors)
    trained = train.train(log, recipe=train.Recipe(ids=ids, repeats=False), seed=seed)
    asked = with_texts(games.test.history, vectors)
    items = item_vectors(trained.items, asked)
    found = rank(trained.model, Split(asked, games.test.targets), items=items, words=word_vectors(trained.items, asked))
    return found.ranks, trained.metrics


def measure(name: str, games: Shop, work: Path, seed: int) -> tuple[nid.I64, Figures]:
    if name == TF_IDF:
        return nearest(tf_idf(games.titles), games)
    if name == FROZEN:
        return nearest(frozen_vectors(games, work), games)
    if name == TUNED:
        vectors, told = tuned_vectors(games, work, seed)
        found, chosen = nearest(vectors, games)
        return found, chosen | told
    over_tuned, ids = ENCODERS[name]
    vectors = tuned_vectors(games, work, seed)[0] if over_tuned else frozen_vectors(games, work)
    return encoder(games, vectors, ids=ids, seed=seed)


def _say(line: str) -> None:
    print(line, flush=True)


def _tell(progress: tuning.Progress) -> None:
    if progress.step % 50 == 0:
        _say(f"  step {progress.step}/{progress.steps} loss {progress.loss:.3f} best {progress.best:.4f}")


# -- figures ----------------------------------------------------------------------------------------------------------


def _gain(found: nid.I64) -> nid.F64:
    return nid.metrics(found.astype(np.int32))[:, 1]


def figures_of(games: Shop, cells: dict[str, dict[int, tuple[nid.I64, Figures]]]) -> Figures:
    """Differences and ratios are user by user, over the mean of the seeds that a model has."""
    parts: Figures = {}
    for part, chosen in (("held-out items", games.is_cold), ("other items", ~games.is_cold)):
        users = {
            name: np.mean([nid.metrics(ranks.astype(np.int32))[chosen] for ranks, _ in of.values()], axis=0)
            for name, of in cells.items()
        }
        rows = {
            name: {"hr10": round(float(v[:, 0].mean()), 5), "ndcg10": round(float(v[:, 1].mean()), 5)}
            for name, v in users.items()
        }
        for base, key in ((TF_IDF, "less_tf_idf"), (FROZEN, "less_frozen")):
            others = [name for name in users if name != base and base in users]
            if others:
                between = paired_bootstrap(np.stack([users[name][:, 1] - users[base][:, 1] for name in others], axis=1))
                for at, name in enumerate(others):
                    rows[name][key] = between[:, at].round(5).tolist()
        for name in rows:
            if TF_IDF in rows:
                rows[name]["times_tf_idf"] = round(rows[name]["ndcg10"] / rows[TF_IDF]["ndcg10"], 3)
        parts[part] = {"users": int(chosen.sum()), "models": rows}
    told = {name: {str(seed): cell[1] for seed, cell in of.items()} for name, of in cells.items()}
    return {"items": len(games.titles), "held_out": len(games.cold), "parts": parts, "told": told}


def section(f: Figures) -> str:
    """The part of docs/benchmarks.md."""
    lines = ["## Items that came after training\n", _INTRODUCTION.format(**f, target=TARGET)]
    lines += [_LOOKED_AT] if f["split"] == 1 else []
    for part, of in f["parts"].items():
        lines += [
            f"**Asked for {part}**: {of['users']:,} users.\n",
            "| | HR@10 | NDCG@10 | times TF-IDF | NDCG@10 less TF-IDF | less the frozen text model | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in of["models"].items():
            less = [_interval(row[key]) if key in row else "" for key in ("less_tf_idf", "less_frozen")]
            figures = [f"{row['hr10']:.4f}", f"{row['ndcg10']:.4f}", f"{row['times_tf_idf']:.2f}", *less]
            lines.append(f"| {name} | {' | '.join(figures)} | {len(f['told'][name])} |")
        lines.append("")
    lines += [_verdict(seed, told) for seed, told in f["told"].get(TUNED, {}).items()]
    m = f["machine"]
    return "\n".join([*lines, "", f"{m['cores']} cores ({m['cpu']}), Python {m['python']}, commit {m['commit']}.\n"])


def _verdict(seed: str, told: Figures) -> str:
    said = "would be written" if told["passed"] else "is refused"
    return (
        f"- tuning's own verdict, seed {seed}: {told['frozen_ndcg10']:.4f} frozen, {told['tuned_ndcg10']:.4f} tuned "
        f"({told['tuning_gain']:+.1%}, lower bound {told['tuning_lower_bound']:+.4f}): the tuned model {said}; "
        f"{told['cpu_seconds']:,} s of one core"
    )


def _interval(three: list[float]) -> str:
    mean, low, high = three
    return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"


_INTRODUCTION = """\
Amazon Games, {items:,} items, {held_out:,} of them held out: their events are in no training log, their titles are in
the catalogue (`benchmarks/cold_items.py`). Users are asked for their last item among the whole catalogue, what they had
met masked. To reach: {target} times the NDCG@10 of TF-IDF on held-out items. "Nearest" is to the decayed last ten
items, the decay chosen by the item before the last. Differences are paired user by user; 95 % intervals of 2,000
resamples of the users.
"""
_LOOKED_AT = """\
Tuning's defaults (taking off what is common, decay, rate, temperature) were tried out by hand on these same held-out
items: the tuned rows are flattered. `--split 2` draws others.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--split", type=int, default=1, help="seed of the draw of held-out items")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    for path in GAMES:
        if not path.exists():
            sys.exit(f"{path} is not there")
    import torch

    torch.set_num_threads(1)
    given.work /= f"split-{given.split}"
    given.work.mkdir(parents=True, exist_ok=True)
    games = shop(given.split)
    cells: dict[str, dict[int, tuple[nid.I64, Figures]]] = {}
    for seed in range(1, given.seeds + 1):
        for name in MODELS:
            if name in (TF_IDF, FROZEN) and seed > 1:
                continue
            path = given.work / f"{name.replace(', ', '-').replace(' ', '-')}.{seed}.npz"
            if name in given.only and (given.again or not path.exists()):
                found, told = _timed(lambda name=name, seed=seed: measure(name, games, given.work, seed))
                np.savez_compressed(path, ranks=found, told=np.array(json.dumps(told)))
                gain = _gain(found)
                _say(
                    f"{name}, seed {seed}: {gain[games.is_cold].mean():.4f} held out, {gain[~games.is_cold].mean():.4f}"
                )
            if path.exists():
                with np.load(path) as kept:
                    cells.setdefault(name, {})[seed] = (kept["ranks"], json.loads(str(kept["told"])))
    from system import machine

    figures = figures_of(games, cells) | {"split": given.split, "machine": machine()}
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def _timed(work: Callable[[], tuple[nid.I64, Figures]]) -> tuple[nid.I64, Figures]:
    started = time.process_time()
    found, told = work()
    return found, {"cpu_seconds": round(time.process_time() - started)} | told


if __name__ == "__main__":
    main()
