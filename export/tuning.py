"""The text model learns from behaviour: what follows what, as in-batch contrast over low-rank adapters.

    tuned = tune(tower, log, titles, seed=1)      tuned.tower: the merged weights; tuned.verdict: is it better?
    export_tuned(model, log, titles, out)         writes the artifact, or refuses and says by how much it failed

A query is what a user met, decayed; its positive is what he met next. Adapters of low rank (Hu et al. 2022,
arXiv 2106.09685) in the upper blocks learn, all else is frozen. Texts held out of every pair decide twice: one half of
them when to stop, the other half whether the tuned model goes out.

B = queries of a batch, n = its texts, d = the model's width.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.export import text
from headrace.export.artifact import Manifest
from headrace.export.behaviour import HISTORY, Behaviour, Questions, behaviour, lower_bound, ndcg10
from headrace.export.log import Log
from headrace.export.text import TextTower
from headrace.export.upper_blocks import UpperBlocks, blocks_of

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_SHARES = (0.75, 0.5, 0.25)  # of what was learned, tried at the end: between two models often lies a better one
MARGIN = 0.05  # the tuned model goes out if it is better by this share, and surely better


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to tune. docs/tuning.md says on what the defaults were tried out."""

    blocks: int = 1  # the last ones, which get adapters
    rank: int = 16
    learning_rate: float = 1e-4  # after a short rise it falls to nothing, linearly
    temperature: float = 0.07
    log_q: float = 1.0  # 1: popular candidates count for no more than rare ones; 0: no correction
    decay: float = 0.7  # of a query's history, an event
    users: int = 48  # a batch: windows of up to ten texts
    negatives: int = 256  # texts drawn evenly, beside the batch's own
    steps: int = 300
    validations: int = 6
    patience: int = 2  # validations without a better figure before it ends
    max_tokens: int = 64


@dataclass(frozen=True)
class Progress:
    """Told after every step."""

    step: int
    steps: int
    loss: float
    best: float  # NDCG@10 on the held-out texts for stopping
    frozen: float  # the same of the frozen model
    seconds_left: float


@dataclass(frozen=True)
class Verdict:
    """On held-out texts that decided nothing before: NDCG@10 of frozen and tuned, over the same users."""

    frozen: float
    tuned: float
    lower: float  # 95 % bound of the difference: paired bootstrap, held-out texts drawn with all their users
    users: int
    texts: int  # held out of training

    @property
    def gain(self) -> float:
        """The relative difference."""
        return self.tuned / self.frozen - 1 if self.frozen else 0.0

    @property
    def passed(self) -> bool:
        return self.lower > 0 and self.gain >= MARGIN

    def metrics(self) -> dict[str, float]:
        """As they stand in the manifest."""
        return {
            "frozen_ndcg10": self.frozen, "tuned_ndcg10": self.tuned, "tuning_gain": self.gain,
            "tuning_lower_bound": self.lower, "judging_users": self.users, "held_out_texts": self.texts,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"NDCG@10 on held-out items {self.frozen:.4f} frozen, {self.tuned:.4f} tuned ({self.gain:+.1%}, 95 % lower "
            f"bound of the difference {self.lower:+.4f}, {self.users} users)"
        )


@dataclass(frozen=True)
class Tuned:
    tower: TextTower  # weights merged: a model like the one that was given
    verdict: Verdict
    metrics: dict[str, float]


class NotBetterError(ValueError):
    """The tuned model does not beat the frozen one by MARGIN."""


def export_tuned(
    model: str | TextTower,
    log: Log,
    titles: Sequence[str],
    out: Path | str,
    *,
    seed: int = 17,
    recipe: Recipe | None = None,
    int8: bool = False,
    report: Callable[[str], None] = print,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Tunes `model` on `log`, whose items have these `titles` (N,), and writes the artifact folder `out`.

    Raises NotBetterError, one line with the evidence, where the tuned model does not pass; then nothing is written.
    Raises ValueError, one line with the cure: no weights, a log too small to judge by, a parity mismatch.
    """
    tower = TextTower.from_name(model) if isinstance(model, str) else model
    tuned = tune(tower, log, titles, seed=seed, recipe=recipe, report=report, progress=progress)
    report(f"text encoder: {tuned.verdict}")
    if not tuned.verdict.passed:
        raise NotBetterError(
            f"tuning did not pay, nothing was written: {tuned.verdict}; at least {MARGIN:+.0%} and a bound above 0 are "
            "asked for. Export the text model without tuning"
        )
    manifest = text.export(
        tuned.tower, out, int8=int8, titles=titles, trained_on=log.fingerprint(), metrics=tuned.metrics
    )
    report(f"text encoder: {manifest.version} in {out}, parity {manifest.parity['onnx_vs_torch']:.1e}")
    return manifest


def tune(
    tower: TextTower,
    log: Log,
    titles: Sequence[str],
    *,
    seed: int = 17,
    recipe: Recipe | None = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Tuned:
    """`tower` stays as it is. `titles` (N,): the texts of the log's items. Seeded; on one core some 300 titles/s.

    Raises ValueError, one line, for a log too small to judge by, or a model whose blocks cannot be found.
    """
    recipe = recipe or Recipe()
    learned_from = behaviour(log, titles, seed=seed)
    report(
        f"tuning: {len(learned_from.texts)} texts, {learned_from.held_out} of them held out; "
        f"{len(learned_from.windows)} users to learn from, {len(learned_from.judging.targets)} to judge by"
    )
    torch.manual_seed(seed)
    adapted = copy.deepcopy(tower)
    adapted.name = f"{tower.name}, tuned on {len(log.items)} events of {len(log.users)} users"
    upper = UpperBlocks(adapted, learned_from.texts, trained=recipe.blocks, max_tokens=recipe.max_tokens)
    try:
        frozen = upper.all_vectors()
        adapted.centre = _centre(learned_from, frozen, recipe)
        adapters = with_adapters(adapted, recipe)
        told = _learn(
            upper, adapters, learned_from, recipe, _ndcg(learned_from.stopping, frozen, recipe.decay), seed, progress
        )
        tuned = upper.all_vectors()
    finally:
        upper.release()
    adapted.model = adapters.merge_and_unload()
    verdict = _judge(learned_from, frozen, tuned, decay=recipe.decay, seed=seed)
    return Tuned(adapted.eval(), verdict, verdict.metrics() | told)


def with_adapters(tower: TextTower, recipe: Recipe) -> Any:
    """Puts adapters of low rank on every linear layer of the last blocks of `tower`; all else of it is frozen.

    → the model of the `peft` library, whose `merge_and_unload` gives back a plain one.
    """
    from peft import LoraConfig, get_peft_model

    name, blocks = blocks_of(tower.model)
    first = len(blocks) - min(recipe.blocks, len(blocks) - 1)
    upper = tuple(f"{name}.{number}." for number in range(first, len(blocks)))
    linear = [part for part, module in tower.model.named_modules() if isinstance(module, nn.Linear)]
    adapted = [part for part in linear if part.startswith(upper)]
    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=adapted)
    tower.model = get_peft_model(tower.model, config).eval()
    return tower.model


def _centre(learned_from: Behaviour, frozen: F32, recipe: Recipe) -> Tensor | None:
    """What all texts have in common (d,): it tells none from another, but adds up in a sum. None where it helps."""
    met = learned_from.counts > 0
    centre = torch.from_numpy(frozen[met].mean(axis=0))
    without = text.centred(torch.from_numpy(frozen), centre).numpy()
    with_it, off = (_ndcg(learned_from.stopping, vectors, recipe.decay) for vectors in (frozen, without))
    return centre if off > with_it else None


def _learn(
    upper: UpperBlocks,
    adapters: nn.Module,
    learned_from: Behaviour,
    recipe: Recipe,
    frozen: float,
    seed: int,
    progress: Callable[[Progress], None],
) -> dict[str, float]:
    """Leaves the adapters as they were when the held-out texts for stopping were ranked best."""
    weights = [p for p in adapters.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, weight_decay=0.01)
    random = np.random.default_rng(seed)
    shares = torch.from_numpy(learned_from.counts / learned_from.counts.sum())
    known = np.flatnonzero(learned_from.counts)  # what is held out is no negative either
    best = at_first = _ndcg(learned_from.stopping, upper.all_vectors(), recipe.decay)
    best_weights, best_step, began = [p.detach().clone() for p in weights], 0, time.monotonic()
    every = max(1, recipe.steps // recipe.validations)
    order = np.zeros(0, np.int64)
    step = 0
    while step < recipe.steps and step - best_step < recipe.patience * every:
        if len(order) < recipe.users:
            order = random.permutation(len(learned_from.windows))
        chosen, order = order[: recipe.users], order[recipe.users :]
        batch = Batch.of([_cut(learned_from.windows[window], random) for window in chosen], decay=recipe.decay)
        drawn = random.choice(known, min(recipe.negatives, len(known)), replace=False)
        with torch.no_grad():
            others = upper.vectors(drawn)
        loss = contrast(upper.vectors(batch.texts), batch, others, drawn, shares, recipe)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 50, 1 - step / recipe.steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        if step % every == 0 and (figure := _ndcg(learned_from.stopping, upper.all_vectors(), recipe.decay)) > best:
            best, best_step, best_weights = figure, step, [p.detach().clone() for p in weights]
        left = (time.monotonic() - began) / step * (recipe.steps - step)
        progress(Progress(step, recipe.steps, float(loss.detach()), best, frozen, left))
    share = 1.0
    for part in _SHARES if best_step else ():
        _put(adapters, best_weights, part)
        if (figure := _ndcg(learned_from.stopping, upper.all_vectors(), recipe.decay)) > best:
            best, share = figure, part
    _put(adapters, best_weights, share)
    return {
        "tuning_steps": best_step,
        "tuning_share": share,
        "stopping_frozen_ndcg10": frozen,
        "stopping_centred_ndcg10": at_first,
        "stopping_ndcg10": best,
    }


def _put(adapters: nn.Module, weights: list[Tensor], share: float) -> None:
    """The adapters as in `weights`, and of what they add that share: W + share · B A."""
    trained = ((name, p) for name, p in adapters.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for (name, parameter), kept in zip(trained, weights, strict=True):
            parameter.copy_(kept * share if "lora_B" in name else kept)


def _cut(window: I64, random: np.random.Generator) -> I64:
    """Up to HISTORY texts of it, one after another."""
    start = random.integers(max(1, len(window) - HISTORY + 1))
    return window[start : start + HISTORY]


@dataclass(frozen=True)
class Batch:
    """n distinct texts, B queries: all that a user met before a text, and that text."""

    texts: I64  # (n,) rows, sorted
    weights: Tensor  # (B, n) of the texts of a query's history
    targets: Tensor  # (B,) columns
    own: Tensor  # (B, n) texts that the query's user met, before or after: none of them is a negative

    @classmethod
    def of(cls, windows: list[I64], *, decay: float) -> Batch:
        texts = np.unique(np.concatenate(windows))
        weights, targets, own = [], [], []
        for window in windows:
            at = np.searchsorted(texts, window)
            row = np.zeros(len(texts), np.float32)
            met = np.isin(texts, window)
            for earlier, later in pairwise(at):
                row = row * np.float32(decay)
                row[earlier] += 1
                if row[later] == 0:  # again what he met before: no answer to learn
                    weights.append(row)
                    targets.append(int(later))
                    own.append(met)
        return cls(texts, torch.from_numpy(np.array(weights)), torch.tensor(targets), torch.from_numpy(np.array(own)))


def contrast(vectors: Tensor, batch: Batch, others: Tensor, rows: I64, shares: Tensor, recipe: Recipe) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4) of queries and texts, both ways.

    Candidates of a query: the batch's texts `vectors` (n, d), and `others` (m, d), those of texts drawn evenly, `rows`.
    How often a text is to be expected among them follows from its share of the windows, `shares` (N,); the logarithm is
    taken off its score (Yi et al. 2019, doi 10.1145/3298689.3346996), `log_q` times. What the query's user met besides
    is no candidate, nor is a text a second time. The other way, the candidates of a text are the queries of users who
    did not meet it, and the one that asks for it.
    """
    queries = nn.functional.normalize(batch.weights @ vectors, dim=-1)  # (B, d)
    drawn = len(rows) / max(1, int((shares > 0).sum()))
    expected = (len(batch.texts) * shares + drawn).log().float() * recipe.log_q  # (N,)
    near = queries @ vectors.T / recipe.temperature  # (B, n)
    at = torch.arange(len(near))
    back = near[:, batch.targets].T  # (B, B): row b is the text that query b asks for, columns are queries
    met = batch.own[:, batch.targets].T.clone()  # (B, B): the column's user met it
    met[at, at] = False
    besides = batch.own.clone()
    besides[at, batch.targets] = False
    near = (near - expected[torch.from_numpy(batch.texts)]).masked_fill(besides, -torch.inf)
    far = queries @ others.T / recipe.temperature - expected[torch.from_numpy(rows)]  # (B, m)
    far = far.masked_fill(torch.from_numpy(np.isin(rows, batch.texts)), -torch.inf)
    forth = nn.functional.cross_entropy(torch.cat([near, far], dim=1), batch.targets)
    return (forth + nn.functional.cross_entropy(back.masked_fill(met, -torch.inf), at)) / 2


def _ndcg(questions: Questions, vectors: F32, decay: float) -> float:
    return float(ndcg10(questions.ranks(vectors, decay=decay)).mean())


def _judge(learned_from: Behaviour, frozen: F32, tuned: F32, *, decay: float, seed: int) -> Verdict:
    before, after = (ndcg10(learned_from.judging.ranks(vectors, decay=decay)) for vectors in (frozen, tuned))
    return Verdict(
        frozen=float(before.mean()),
        tuned=float(after.mean()),
        lower=lower_bound(after - before, learned_from.judging.targets, seed=seed),
        users=len(before),
        texts=learned_from.held_out,
    )
