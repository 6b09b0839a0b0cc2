"""Training from a log: user model and item tower learn together to foretell the item that comes next.

    trained = train(log)                                  a Recipe's defaults, early stopping on the last items
    train(log, checkpoint=folder, progress=draw)          goes on where it was killed

Objective: from the state before each wanted event, its item, by softmax over the catalogue (losses.py). Histories are
cut into windows as serving cuts them (windows.py). The step that goes out is chosen by the NDCG@10 of full rankings on
a part that training did not see: each user's last wanted item, or all after a moment.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.export import checkpoint, ranking
from headrace.export.checkpoint import Standing
from headrace.export.errors import ExportError
from headrace.export.item_model import ItemModel
from headrace.export.item_tower import ItemTower
from headrace.export.log import Log, leave_one_out, temporal
from headrace.export.losses import Negatives, next_item_loss, no_negatives
from headrace.export.user_model import UserConfig, UserModel
from headrace.export.validation import item_vectors, rank, word_vectors
from headrace.export.windows import WINDOW, Tokens, batches, gap_buckets, tokens, training_windows


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults were chosen on validation parts of two public logs (docs/encoder.md)."""

    epochs: int | None = None  # at most; None: what takes 800 batches, but 4 to 12
    patience: int = 3  # epochs without a better validation figure before it ends
    batch_events: int = 2_048
    learning_rate: float = 3e-3  # cosine, after a short rise
    weight_decay: float = 0.01  # of the user model
    item_weight_decay: float = 0.1  # of projection and embeddings
    dropout: float = 0.2  # in the user model
    item_dropout: float = 0.0  # events of a history whose item goes unseen
    id_dropout: float = 0.1  # items that a batch knows by their text alone
    ids: bool = True  # False: items are known by text, category and price alone
    temperature: float = 0.07  # at first; it is learned
    negatives: int = 1_024  # drawn a batch, where the catalogue is larger than full_softmax
    negative_power: float = 0.5
    full_softmax: int = 3_000
    window: int = WINDOW
    validation: Literal["last item", "time"] = "last item"
    validation_users: int = 10_000  # at most, drawn once
    repeats: bool | None = None  # may a user's next item be one that he had? None: if a tenth of them are


@dataclass(frozen=True)
class Progress:
    """Told after every batch."""

    epoch: int  # from 1
    epochs: int  # at most
    step: int  # of all epochs
    steps: int
    loss: float
    best: float  # NDCG@10 so far, 0 before the first validation
    seconds_left: float  # if no epoch is saved by early stopping


@dataclass(frozen=True)
class Trained:
    model: UserModel
    items: ItemTower
    metrics: dict[str, float]  # valid_hit10, valid_ndcg10, epoch, loss, temperature, users, events, seconds


def train(
    log: Log,
    *,
    recipe: Recipe | None = None,
    config: UserConfig | None = None,
    make: Callable[[UserConfig], UserModel] = UserModel,
    seed: int = 17,
    device: str = "auto",
    checkpoint_dir: Path | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Trains on all of `log` but its validation part.

    `config`: the user model's sizes; `make` builds it. `device`: "cpu", "cuda", or "auto" for a GPU where there is one.
    With `checkpoint_dir` each epoch is kept there, and a run of the same log, recipe and seed goes on from it.
    Raises ValueError, one line, where the log holds too little to learn from.
    """
    recipe = recipe or Recipe()
    config = config or UserConfig()
    config.dropout = recipe.dropout
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    course = Course(log, recipe, random)
    items = ItemModel(course.log, dim=config.dim, id_dropout=recipe.id_dropout, ids=recipe.ids)
    net = _Net(make(config), items, recipe).to(device)
    standing = Standing(run=_name(log, recipe, config, seed))
    run = checkpoint.Run(net=net, optimiser=_optimiser(net, recipe), random=random, standing=standing)
    if checkpoint_dir is not None:
        checkpoint.restore(run, checkpoint_dir)
    clock = _Clock(run.standing.epoch * course.steps, course.epochs * course.steps)
    while run.standing.epoch < course.epochs and run.standing.epoch - run.standing.best_epoch < recipe.patience:
        loss = _epoch(run, course, lambda loss: progress(clock.tick(run.standing, course.epochs, loss)))
        figures = course.validate(net)
        run.standing.end_epoch(loss, figures)
        if run.standing.best_epoch == run.standing.epoch:
            run.best = run.weights()
        if checkpoint_dir is not None:
            checkpoint.save(run, checkpoint_dir)
    net.load_state_dict(run.best)
    _spread_unmet(net.model, course)
    best = run.standing.best
    figures = {f"valid_{name}": value for name, value in best.items()}
    figures |= {"epoch": run.standing.best_epoch, "loss": run.standing.losses[run.standing.best_epoch - 1]}
    figures |= {"temperature": float(net.temperature().detach()), "users": len(log.users), "events": len(log.items)}
    figures["seconds"] = clock.seconds
    net.cpu().eval()
    return Trained(net.model, net.items.frozen(log, met=course.met), figures)


class _Net(nn.Module):
    """What learns."""

    def __init__(self, model: UserModel, items: ItemModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.items = model, items
        self.log_temperature = nn.Parameter(torch.tensor(math.log(recipe.temperature)))
        self.item_dropout = recipe.item_dropout

    def temperature(self) -> Tensor:
        return self.log_temperature.exp()

    def states(self, events: Tokens, table: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """`table` (n, d) of vectors, `rows` (B, L) in it, -1 for none → the state after each event (B, L, d)."""
        device = table.device
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        vectors = nn.functional.embedding(torch.from_numpy(rows % len(table)).to(device), table)
        if self.item_dropout:
            vectors = vectors * (torch.rand(vectors.shape[:2], device=device) >= self.item_dropout).unsqueeze(-1)
        types, gaps = torch.from_numpy(events.types).to(device), torch.from_numpy(events.gaps).to(device)
        return self.model(vectors, types, gaps)  # type: ignore[no-any-return]


class Course:
    """The log cut into windows, and the part that is kept for validation."""

    def __init__(self, log: Log, recipe: Recipe, random: np.random.Generator) -> None:
        self.recipe = recipe
        split = leave_one_out(log) if recipe.validation == "last item" else temporal(log)
        self.log = split.history
        too_many = random.permutation(np.flatnonzero(split.targets >= 0))[recipe.validation_users :]
        split.targets[too_many] = -1
        self.split = split
        self.gaps = gap_buckets(self.log)
        self.windows = training_windows(self.log, window=recipe.window)
        if len(self.windows.target) == 0 or (split.targets < 0).all():
            raise ExportError("the log holds no user with three wanted items: nothing to learn the next one from")
        counts = np.bincount(self.windows.target, minlength=len(log.keys))
        self.negatives = Negatives(
            counts, draws=recipe.negatives, power=recipe.negative_power, full_below=recipe.full_softmax
        )
        self.met = np.zeros(len(log.keys), np.bool_)
        self.met[self.log.items[self.log.items >= 0]] = True
        self.repeats = _share_of_repeats(self.log) > _MANY if recipe.repeats is None else recipe.repeats
        self.steps = len(list(batches(self.windows, recipe.batch_events, np.random.default_rng(0))))  # about
        self.epochs = recipe.epochs or min(12, max(4, round(_BATCHES / self.steps)))

    def validate(self, net: _Net) -> dict[str, float]:
        net.eval()
        tower = net.items.frozen(self.split.history, met=self.met)
        items, words = item_vectors(tower, self.log), word_vectors(tower, self.log)
        found = rank(net.model, self.split, items=items, words=words, repeats=self.repeats, window=self.recipe.window)
        return ranking.metrics(found.ranks)


def _epoch(run: checkpoint.Run, course: Course, tell: Callable[[float], None]) -> float:
    """→ the mean loss of the epoch's batches."""
    net = run.net
    assert isinstance(net, _Net)
    recipe, losses = course.recipe, []
    net.train()
    for number, chosen in enumerate(batches(course.windows, recipe.batch_events, run.random)):
        _set_rates(run.optimiser, course, run.standing.epoch + number / course.steps)
        loss = _loss(net, course, chosen, run.random)
        run.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.model.parameters(), 1.0)
        run.optimiser.step()
        losses.append(float(loss.detach()))
        tell(losses[-1])
    return float(np.mean(losses))


def _loss(net: _Net, course: Course, chosen: NDArray[np.int64], random: np.random.Generator) -> Tensor:
    device = net.log_temperature.device
    # 1. The windows' events, and the items to foretell from them.
    events, pairs = tokens(course.log, course.gaps, course.windows, chosen), course.windows.of(chosen)
    types = np.where(random.random(events.types.shape) < _UNNAMED, 0, events.types)
    negatives = course.negatives.draw(random)
    # 2. Every item that has a part in it once; queries behind them.
    known = events.items >= 0
    rows, places = np.unique(np.concatenate([negatives, pairs.target, events.items[known]]), return_inverse=True)
    of_negatives, of_targets, of_events = np.split(places, np.cumsum([len(negatives), len(pairs.target)]))
    table = net.items(torch.from_numpy(rows).to(device))
    where = np.full(events.items.shape, -1)
    where[known] = of_events
    asked = np.flatnonzero(events.asked.ravel() >= 0)
    vectors = table
    if len(asked):
        where.ravel()[asked] = len(table) + np.arange(len(asked))
        vectors = torch.cat([table, net.items.ask(torch.from_numpy(events.asked.ravel()[asked]).to(device))])
    # 3. The states, and what they say.
    states = net.states(events._replace(types=types), vectors, where)
    states = states[torch.from_numpy(pairs.row).to(device), torch.from_numpy(pairs.place).to(device)]
    log_q = torch.from_numpy(course.negatives.log_q).to(device)
    out = no_negatives(negatives, pairs.target, None if course.repeats else events.items[pairs.row])
    return next_item_loss(
        states,
        nn.functional.embedding(torch.from_numpy(of_targets).to(device), table),
        nn.functional.embedding(torch.from_numpy(of_negatives).to(device), table),
        temperature=net.temperature(),
        own_log_q=log_q[torch.from_numpy(pairs.target).to(device)],
        log_q=log_q[torch.from_numpy(negatives).to(device)],
        out=torch.from_numpy(out).to(device),
    )


_UNNAMED = 0.05  # of events are told without their type: code 0 learns what an event of any type says
_BATCHES = 800  # of training, if nothing else is said
_MANY = 0.1  # of repeats: from there on, what a user had is what he may take next
_RISE = 0.2  # of an epoch, in which the learning rate rises
_LEAST = 0.02  # of the learning rate, at the end


def _optimiser(net: _Net, recipe: Recipe) -> torch.optim.Optimizer:
    users = [*net.model.parameters(), net.log_temperature]
    return torch.optim.AdamW(
        [
            {"params": users, "weight_decay": recipe.weight_decay},
            {"params": list(net.items.parameters()), "weight_decay": recipe.item_weight_decay},
        ],
        lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip


def _set_rates(optimiser: torch.optim.Optimizer, course: Course, epoch: float) -> None:
    """A short rise, then a half cosine over all epochs (Loshchilov & Hutter 2017, eq. 5). `epoch` counts from 0."""
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / course.epochs)))
    for group in optimiser.param_groups:
        group["lr"] = course.recipe.learning_rate * min(1.0, (epoch + 0.01) / _RISE) * max(_LEAST, fall)


def _share_of_repeats(log: Log) -> float:
    """Of the wanted events, those of an item that the user had in his history before."""
    events = np.flatnonzero(log.wanted)
    pairs = log.owners[events] * len(log.keys) + log.items[events]
    return 1 - len(np.unique(pairs)) / max(1, len(pairs))


@torch.no_grad()
def _spread_unmet(model: UserModel, course: Course) -> None:
    """A type that training never met stands for "some event", a gap that it never met for the nearest that it did."""
    codes = np.flatnonzero(~np.isin(np.arange(model.config.type_codes), [0, *np.unique(course.log.types)]))
    for table in (model.type_in, model.type_weight):
        table.weight[codes] = table.weight[0].clone()
    met = np.union1d([0], course.gaps)
    nearest = met[np.abs(np.arange(model.config.gap_buckets)[:, None] - met).argmin(axis=1)]
    for table in (model.gap_in, model.gap_weight):
        table.weight.copy_(table.weight[torch.from_numpy(nearest)])


def _name(log: Log, recipe: Recipe, config: UserConfig, seed: int) -> str:
    """What a checkpoint must be of to go on from."""
    content = (log.fingerprint(), asdict(recipe), sorted(config.to_dict().items(), key=str), seed)
    return "sha256:" + hashlib.sha256(repr(content).encode()).hexdigest()


class _Clock:
    """How long it will still take, by the steps of this process."""

    def __init__(self, done: int, steps: int) -> None:
        self._first = self._done = done
        self._steps = steps
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def tick(self, standing: Standing, epochs: int, loss: float) -> Progress:
        self._done = min(self._done + 1, self._steps)
        left = self.seconds / max(1, self._done - self._first) * (self._steps - self._done)
        best = standing.best.get("ndcg10", 0.0)
        return Progress(standing.epoch + 1, epochs, self._done, self._steps, loss, best, left)
