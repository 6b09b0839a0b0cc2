"""headrace's policies against other bandit libraries, on the same streams of rounds, by what they lose.

python benchmarks/bandit_peers.py [--only NAME …] [--seeds N]      NAME begins a learner's name: headrace, vw, river …

A round: the learner sees a context, chooses one of K actions, and learns that action's reward alone. The loss is 1 less
the mean of what the chosen actions are expected to earn, from the first round on (progressive validation). All decide
and learn in batches of 20. Every learner has six configurations; for each set the one with the lowest loss on the two
tuning seeds, which are not reported, runs on the reported seeds. Results are written cell by cell: a run that was
stopped goes on. Which of our policies is held against the peers is decided on ten more seeds. BLAS is held to one
thread, which must be said before numpy is loaded, hence the order of imports.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import shop_rounds
import uci
from bandit_learners import GRIDS, Learner
from uci import F64, Rounds

RESULT = Path(__file__).parent / "results" / "bandit_peers.json"
LIMIT, BATCH = 3_000, 20
SETS = (*uci.SETS, "shop")
TUNING_SEEDS, SEEDS = (1_000, 1_001), tuple(range(20))
CHOICE_SEEDS = tuple(range(1_002, 1_012))  # on which one of our policies is chosen, for all sets
OURS = "headrace "
PEERS = ("vowpalwabbit", "river", "mabwiser", "contextualbandits", "scikit-learn")
Figures = dict[str, Any]


def stream(name: str, seed: int) -> Rounds:
    made = shop_rounds.rounds if name == "shop" else None
    rounds = made(seed=seed, limit=LIMIT) if made else uci.rounds(name, seed=seed, limit=LIMIT)
    assert rounds.texts  # made here, outside what is timed
    return rounds


def play(rounds: Rounds, learner: Learner) -> tuple[float, float]:
    """The mean loss a round, and µs of this thread a round."""
    earned, started = 0.0, time.thread_time()
    for start in range(0, len(rounds), BATCH):
        at = slice(start, min(start + BATCH, len(rounds)))
        actions = learner.act(at)
        expected = rounds.expected[at][np.arange(len(actions)), actions]
        learner.learn(at, actions, (rounds.uniforms[at] < expected).astype(np.float64))
        earned += float(expected.sum())
    return 1 - earned / len(rounds), (time.thread_time() - started) / len(rounds) * 1e6


class Book:
    """What was measured, by set and learner; kept after every cell."""

    def __init__(self, path: Path = RESULT) -> None:
        self._path = path
        self.figures: Figures = json.loads(path.read_text("utf-8")) if path.exists() else {"cells": {}}
        self.figures |= {
            "rounds": LIMIT,
            "batch": BATCH,
            "tuning_seeds": list(TUNING_SEEDS),
            "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
            "versions": {name: importlib.metadata.version(name) for name in PEERS if _installed(name)},
            "grids": {name: configs for name, (_, configs) in GRIDS.items()},
        }

    def cell(self, of: str, learner: str) -> Figures:
        learners = self.figures["cells"].setdefault(of, {})
        cell: Figures = learners.setdefault(learner, {"tuning": {}, "loss": {}, "us": {}})
        return cell

    def save(self) -> None:
        beside = self._path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.figures, indent=1) + "\n", "utf-8")
        beside.replace(self._path)


def tune(book: Book, of: str, names: list[str]) -> None:
    for seed in TUNING_SEEDS:
        rounds: Rounds | None = None
        for name in names:
            make, configs = GRIDS[name]
            tuning = book.cell(of, name)["tuning"]
            if str(seed) in tuning:
                continue
            rounds = rounds or stream(of, seed)
            tuning[str(seed)] = [round(play(rounds, make(rounds, seed, **config))[0], 5) for config in configs]
            book.save()


def chosen(cell: Figures) -> int:
    """The configuration with the lowest mean loss on the tuning seeds, ties to the first."""
    return int(np.mean([cell["tuning"][str(seed)] for seed in TUNING_SEEDS], axis=0).argmin())


def report(book: Book, of: str, names: list[str], seed: int) -> None:
    """Runs the chosen configurations. What CHOICE_SEEDS give is kept apart."""
    rounds: Rounds | None = None
    for name in names:
        cell = book.cell(of, name)
        losses = cell.setdefault("choice", {}) if seed in CHOICE_SEEDS else cell["loss"]
        if str(seed) in losses:
            continue
        rounds = rounds or stream(of, seed)
        make, configs = GRIDS[name]
        loss, us = play(rounds, make(rounds, seed, **configs[chosen(cell)]))
        losses[str(seed)] = round(loss, 5)
        if seed not in CHOICE_SEEDS:
            cell["us"][str(seed)] = round(us, 1)
        book.save()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# -- the page ---------------------------------------------------------------------------------------------------------


def default_of_ours(cells: Figures) -> str:
    """The one of our policies with the lowest loss on CHOICE_SEEDS, on average over the sets."""
    ours = [name for name in GRIDS if name.startswith(OURS)]
    return min(ours, key=lambda name: float(np.mean([list(cells[of][name]["choice"].values()) for of in cells])))


def _tuned(cell: Figures) -> float:
    return float(np.mean(list(cell["tuning"].values()), axis=0).min())


def comparison(learners: Figures, ours: str) -> Figures:
    """On one set, by seed: our loss less that of the best peer, and less the median of the peers'."""
    seeds = sorted(set.intersection(*(set(cell["loss"]) for cell in learners.values())), key=int)
    loss = {name: np.array([cell["loss"][seed] for seed in seeds]) for name, cell in learners.items()}
    peers = {name: losses for name, losses in loss.items() if not name.startswith(OURS)}
    best = min(peers, key=lambda name: peers[name].mean())
    return {
        "seeds": len(seeds),
        "loss": {name: float(losses.mean()) for name, losses in loss.items()},
        "best": best,
        "to_best": interval(loss[ours] - peers[best]),
        "to_median": interval(loss[ours] - np.median(list(peers.values()), axis=0)),
    }


def interval(differences: F64) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t. Its quantile by the first terms of its expansion about the normal's."""
    n, z = len(differences), 1.959964
    t = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2)
    mean, half = float(differences.mean()), float(t * differences.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def section(f: Figures) -> str:
    """Its part of docs/benchmarks.md."""
    cells = f["cells"]
    ours = default_of_ours(cells)
    by_set = {of: comparison(learners, ours) for of, learners in cells.items()}
    lines = [
        "## Against other bandit libraries\n",
        _SETTING.format(
            rounds=f["rounds"], batch=f["batch"], seeds=min(c["seeds"] for c in by_set.values()), ours=ours
        ),
        f"| loss | {' | '.join(by_set)} | µs a round |",
        f"|---|{'---|' * (len(by_set) + 1)}",
    ]
    names = sorted(GRIDS, key=lambda name: float(np.mean([c["loss"].get(name, 1.0) for c in by_set.values()])))
    for name in names:
        losses = [f"{c['loss'][name]:.3f}" if name in c["loss"] else "–" for c in by_set.values()]
        us = [float(np.median(list(cells[of][name]["us"].values()))) for of in by_set if name in cells[of]]
        title = f"**{name}**" if name == ours else name
        lines.append(f"| {title} | {' | '.join(losses)} | {np.mean(us):.0f} |")
    lines += [
        "",
        f"| {ours} less | the best peer | the difference, 95 % interval | upper bound ≤ .01 | the median peer |",
        "|---|---|---|---|---|",
    ]
    for of, c in by_set.items():
        reached = "yes" if c["to_best"][2] <= 0.01 else "**no**"
        lines.append(f"| {of} | {c['best']} | {_said(c['to_best'])} | {reached} | {_said(c['to_median'])} |")
    mine = {name: [comparison(cells[of], name) for of in cells] for name in GRIDS if name.startswith(OURS)}
    reached_by = [f"{name} {sum(c['to_best'][2] <= 0.01 for c in found)}" for name, found in mine.items()]
    tuned = min(mine, key=lambda name: float(np.mean([_tuned(cells[of][name]) for of in cells])))
    lines += [
        "",
        f"Sets on which the upper bound is ≤ .01, of {len(cells)}: {', '.join(reached_by)}. The two tuning seeds alone"
        f" would have chosen {tuned}.",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in f["versions"].items())
    return "\n".join([*lines, "", f"{versions}; Python {f['machine']['python']}, one thread.\n"])


def _said(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


_SETTING = """\
Five UCI sets as bandits (a row's features are the context, its class is the action that earns 1) and the simulated
shop (one of twenty items is shown, a click earns 1): at most {rounds:,} rounds a set, decided and learned in batches
of {batch}, {seeds} seeds that shuffle rows and classes. The loss is 1 less the mean of what the chosen actions are
expected to earn, from the first round on. Every learner has six configurations (`benchmarks/bandit_learners.py`); for
each set the best on two other seeds runs. All see the same features, scaled alike. In the shop vowpalwabbit gets our
own feature vector of every action; learners that hold one model an action, as the others do, get the user's state and
which items are of the user's kinds. Our policies run with a floor of .002. **{ours}** is the one of ours with the
lowest loss on ten more seeds, one for all sets: seeds added after a first run, as the two tuning seeds alone would
have named plain lints. Our configurations were narrowed on development seeds, the peers' less so. The best peer is the
best on the reported seeds. Intervals are of paired differences by seed; µs are CPU time of deciding and learning.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Bandits of several libraries on the same streams.")
    parser.add_argument("--only", nargs="+", default=[], help="learners whose names begin so; by default all")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the 20 reported seeds")
    parser.add_argument("--into", type=Path, default=RESULT, help="the file that is written, and read first")
    asked = parser.parse_args()
    missing = {name for name in PEERS if not _installed(name)}
    needs = {"vw": "vowpalwabbit", "river": "river", "mabwiser": "mabwiser", "contextualbandits": "contextualbandits"}
    names = [name for name in GRIDS if not asked.only or any(name.startswith(start) for start in asked.only)]
    for package in sorted(missing & set(needs.values())):
        print(f"{package} is not installed: its learners are left out (CONTRIBUTING.md says how to install peers)")
    names = [name for name in names if needs.get(name.split()[0]) not in missing]
    sets = [of for of in SETS if of == "shop" or uci.FOLDER.exists()]
    if len(sets) < len(SETS):
        print(f"{uci.FOLDER} is not there: only the simulated shop is run")
    book = Book(asked.into)
    for of in sets:
        tune(book, of, names)
    for seed in CHOICE_SEEDS:
        for of in sets:
            report(book, of, [name for name in names if name.startswith(OURS)], seed)
    for seed in SEEDS[: asked.seeds]:
        for of in sets:
            report(book, of, names, seed)
        print(f"seed {seed} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
