"""Next item, leave-one-out, over the whole catalogue: the trained encoder against what others do with the same log.

python benchmarks/next_item.py [--set NAME …] [--only MODEL …] [--seeds N] [--work FOLDER] [--again] [--result FILE]
python benchmarks/next_item.py --file FILE [--titles FILE]        any file of next_item_data.py's two formats

All models are fitted to each user's items but the last two, choose by the one before the last, and are asked for the
last; every item of the catalogue is ranked but those the user had. Each cell (set, model, seed) is kept in --work with
the rank of every user's item: a run that was stopped goes on, --again measures the named models anew. BLAS is held to
one thread, which must be said before numpy is loaded, hence the order of imports.
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
from pathlib import Path
from typing import Any

import next_item_data as nid
import numpy as np
from next_item_data import F64, FOLDER, I32, Histories, Score, load, metrics, paired_bootstrap, ranks

RESULT = Path(__file__).parent / "results" / "next_item.json"
WORK = Path(__file__).parents[1] / "build" / "next_item"
SETS = {
    "LastFM": (FOLDER / "s3rec_lastfm/LastFM.txt", None),
    "Amazon Games": (FOLDER / "amazon_games/Games-6k.test.inter", FOLDER / "amazon_games/Games.item"),
}
SEEDS = 5
VALIDATION_USERS = 5_000  # at most: drawn once
FITTED = ("popularity", "item-to-item", "EASE")  # no seed changes them
TRAINED = ("SASRec", "GRU4Rec")
OURS = "headrace"
OF_TEXTS = (f"{OURS}, ids alone", f"{OURS}, texts alone", f"{OURS}, untrained")  # where there are titles
Figures = dict[str, Any]
Cell = tuple[I32, Figures]


def models(data: Histories) -> tuple[str, ...]:
    return (*FITTED, *TRAINED, OURS, *(OF_TEXTS if data.titles else ()))


def measure(data: Histories, model: str, seed: int, work: Path) -> Cell:
    """→ the rank of each user's last item (U,), and what is to be told of the model."""
    started = time.process_time()
    random = np.random.default_rng(1)
    users = np.sort(random.permutation(data.n_users)[:VALIDATION_USERS])
    score, told = _fitted(data, model, users, seed, work)
    told["cpu_seconds"] = round(time.process_time() - started, 1)
    return ranks(score, data, "test"), told


def _fitted(data: Histories, model: str, users: nid.I64, seed: int, work: Path) -> tuple[Score, Figures]:
    if model in TRAINED:
        import next_item_models

        return next_item_models.choose_and_fit(model, data, users, seed=seed, work=work)
    if model.startswith(OURS):
        import next_item_ours

        return next_item_ours.fit(model, data, seed=seed, work=work)
    import next_item_peers as peers

    by_name: dict[str, Callable[[], tuple[Score, Figures]]] = {
        "popularity": lambda: (peers.popularity(data), {}),
        "item-to-item": lambda: peers.item_to_item(data, users),
        "EASE": lambda: peers.ease(data, users),
    }
    return by_name[model]()


class Shelf:
    """Cells of one set, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, model: str, seed: int) -> Path:
        return self.folder / f"{model.replace(', ', '-').replace(' ', '-')}.{seed}.npz"

    def get(self, model: str, seed: int) -> Cell | None:
        path = self._path(model, seed)
        if not path.exists():
            return None
        with np.load(path) as found:
            return found["ranks"], json.loads(str(found["told"]))

    def put(self, model: str, seed: int, cell: Cell) -> None:
        beside = self.folder / "cell.tmp.npz"
        np.savez_compressed(beside, ranks=cell[0], told=np.array(json.dumps(cell[1])))
        beside.replace(self._path(model, seed))

    def cells(self, names: tuple[str, ...], seeds: int) -> dict[str, dict[int, Cell]]:
        found = {name: {seed: self.get(name, seed) for seed in range(seeds)} for name in names}
        kept = {name: {seed: cell for seed, cell in of.items() if cell} for name, of in found.items()}
        return {name: of for name, of in kept.items() if of}


def figures_of(data: Histories, cells: dict[str, dict[int, Cell]]) -> Figures:
    by_user = {name: {seed: metrics(cell[0]) for seed, cell in of.items()} for name, of in cells.items()}
    told: Figures = {
        "users": data.n_users,
        "items": data.n_items,
        "events": len(data.items),
        "models": {
            name: {
                "hr10": _mean(by_user[name], 0),
                "ndcg10": _mean(by_user[name], 1),
                "seeds": {
                    str(seed): {
                        "hr10": round(float(by_user[name][seed][:, 0].mean()), 5),
                        "ndcg10": round(float(by_user[name][seed][:, 1].mean()), 5),
                        **cell[1],
                    }
                    for seed, cell in of.items()
                },
            }
            for name, of in cells.items()
        },
    }
    if OURS in by_user:
        told["ours_less"] = compared(by_user)
    return told


def compared(by_user: dict[str, dict[int, F64]]) -> Figures:
    """Ours less each other model, user by user: pooled over the seeds that both have, and seed by seed.

    A model that no seed changes stands beside all of ours. Figures are [mean, low, high].
    """
    columns: list[F64] = []
    names: list[tuple[str, str]] = []
    for name, seeds in by_user.items():
        if name == OURS:
            continue
        pairs = {
            str(seed): ours - (seeds[0] if name in FITTED else seeds[seed])
            for seed, ours in by_user[OURS].items()
            if name in FITTED or seed in seeds
        }
        if pairs:
            columns += [np.mean(list(pairs.values()), axis=0), *pairs.values()]
            names += [(name, "pooled"), *((name, seed) for seed in pairs)]
    told: Figures = {}
    if not columns:
        return told
    intervals = paired_bootstrap(np.concatenate(columns, axis=1)).round(5)
    for at, (name, seed) in enumerate(names):
        hr, ndcg = intervals[:, 2 * at].tolist(), intervals[:, 2 * at + 1].tolist()
        entry = told.setdefault(name, {"seeds": {}})
        if seed == "pooled":
            entry |= {"hr10": hr, "ndcg10": ndcg}
        else:
            entry["seeds"][seed] = {"hr10": hr, "ndcg10": ndcg}
    return told


def _mean(by_seed: dict[int, F64], metric: int) -> dict[str, float]:
    means = [float(values[:, metric].mean()) for values in by_seed.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
    return {"mean": round(float(np.mean(means)), 5), "sd_of_seeds": round(spread, 5)}


# -- the page ---------------------------------------------------------------------------------------------------------


def section(f: Figures) -> str:
    lines = ["## Next item\n", _INTRODUCTION.format(**f)]
    for name, of in f["sets"].items():
        lines += [
            f"**{name}**: {of['users']:,} users, {of['items']:,} items, {of['events']:,} events.\n",
            "| | HR@10 | NDCG@10 | seeds | CPU s each | headrace less this: HR@10 | NDCG@10 |",
            "|---|---|---|---|---|---|---|",
        ]
        ordered = sorted(of["models"].items(), key=lambda pair: -pair[1]["ndcg10"]["mean"])
        for model, told in ordered:
            seconds = np.mean([seed["cpu_seconds"] for seed in told["seeds"].values()])
            less = of.get("ours_less", {}).get(model)
            cells = [f"{told['hr10']['mean']:.4f}", f"{told['ndcg10']['mean']:.4f}"]
            cells += ["–" if model in FITTED else str(len(told["seeds"])), f"{seconds:,.0f}"]
            cells += [_interval(less["hr10"]), _interval(less["ndcg10"])] if less else ["", ""]
            lines.append(f"| {model} | {' | '.join(cells)} |")
        lines.append("")
    m = f["machine"]
    return "\n".join([*lines, f"{m['cores']} cores ({m['cpu']}), Python {m['python']}, commit {m['commit']}.\n"])


def _interval(three: list[float]) -> str:
    mean, low, high = three
    return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"


_INTRODUCTION = """\
Leave-one-out: every model is fitted to each user's items but the last two, chooses by the one before the last and is
asked for the last; the whole catalogue is ranked but what the user had (`benchmarks/next_item.py`). Differences are
paired user by user, pooled over the seeds that ran; intervals are of 95 %, from 2,000 resamples of the users. CPU
seconds are of one core, with the choice and the scoring of validation. SASRec and GRU4Rec learn by cross-entropy over
the whole catalogue; on the small set they choose their dropout by validation, on the large one they have one recipe and
early stopping. `headrace` is `headrace.export.train` with its defaults; `untrained` is the encoder that a shop has
before it trains one. LastFM has no texts: there `headrace` is ids alone. Planned are {seeds_planned} seeds
each; where the column says fewer, the rest has not run yet, and the same command goes on with them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=list(SETS), choices=list(SETS), dest="sets")
    parser.add_argument("--file", type=Path, help="a file of your own instead; writes no results/next_item.json")
    parser.add_argument("--titles", type=Path)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the figures go")
    given = parser.parse_args()
    files = {given.file.stem: (given.file, given.titles)} if given.file else {name: SETS[name] for name in given.sets}
    for path in (path for pair in files.values() for path in pair if path and not path.exists()):
        sys.exit(f"{path} is not there")
    sets = {name: load(file, titles=titles, name=name) for name, (file, titles) in files.items()}
    for seed in range(given.seeds):
        for name, data in sets.items():
            shelf = Shelf(given.work / name.replace(" ", "-").lower())
            for model in models(data):
                if (given.only and model not in given.only) or (model in FITTED and seed):
                    continue
                if not given.again and shelf.get(model, seed):
                    continue
                cell = measure(data, model, seed, shelf.folder)
                shelf.put(model, seed, cell)
                hr, ndcg = metrics(cell[0]).mean(axis=0)
                print(f"{name}, {model}, seed {seed}: {hr:.4f} / {ndcg:.4f}, {cell[1]}", flush=True)
    told = {
        name: figures_of(data, Shelf(given.work / name.replace(" ", "-").lower()).cells(models(data), given.seeds))
        for name, data in sets.items()
    }
    if given.file:
        print(json.dumps(told, indent=1))
        return
    from system import machine

    before = json.loads(given.result.read_text("utf-8"))["sets"] if given.result.exists() else {}
    figures = {
        "sets": before | told,
        "seeds_planned": SEEDS,
        "validation_users": VALIDATION_USERS,
        "machine": machine(),
    }
    given.result.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
