"""A foreign log for `headrace evaluate`: a row of a csv, jsonl or parquet file is one item that was shown.

    headrace evaluate shop.csv --mapping map.toml --target uniform

What the mapping's `[log]` says: `item_id`, `propensity` (the probability with which the item was put there) and
`reward`; and where there is such a column `position`, `decision_id` (its rows form one slate, in the order of their
positions), `user_id` (whose decisions hang together), `ts` (the order), `candidates` (how many items could have stood
there; else all of the log), `context` (features of the decision) and `targets` (another policy's probability of the
same item, by the name that --target takes).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.evaluation.evaluation import Logged
from headrace.policy.evaluation.reward_model import folds, predict
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.mapped import Message, Unmappable, mapper
from headrace.streams.mapping import LogFields, Mapping, by_name, check_columns, read_mapping
from headrace.streams.progress import progress
from headrace.streams.rows import Bad, Parquet, open_rows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_EACH = 10_000  # rows between two words of progress
_ITEMS = 200  # so many items have a weight of their own in q̂, the rest share one
_WORDS = 12  # values of one context column that have a weight of their own
_MODELLED = 200_000  # decisions that q̂ is fitted on and asked about
_STRENGTH = 20.0  # showings at the average that `popular` imagines of every item
_LIMITS = {"candidates": (1, 10**9), "position": (-(10**9), 10**9), "reward": (-1e9, 1e9)}
_SMALLEST = 1e-9  # of a propensity above 0: weights beyond it are beyond arithmetic too


class Rows:
    """The log as columns, a row a showing, in the order of time where the log tells it."""

    def __init__(self, messages: list[Message]) -> None:
        if any("ts" in m for m in messages):
            messages.sort(key=lambda m: int(m.get("ts", 0)))
        self.item_names, self.items = _numbered([str(m["item_id"]) for m in messages])
        self.propensities = np.array([m["propensity"] for m in messages], np.float64)
        self.rewards = np.array([m["reward"] for m in messages], np.float64)
        self.positions = np.array([m.get("position", 0) for m in messages], np.int64)
        # Without a user, or a decision, a row is one of its own.
        _, self.decisions = _numbered([str(m.get("decision_id", f"\0{i}")) for i, m in enumerate(messages)])
        _, self.users = _numbered(
            [str(m.get("user_id", f"\0{d}")) for m, d in zip(messages, self.decisions, strict=True)]
        )
        self.choices = np.array([m.get("candidates", len(self.item_names)) for m in messages], np.int64)
        self.targets = {
            name: np.array([_probability(m, name) for m in messages]) for name in _names(messages, "targets")
        }
        self.context = _context_features([m.get("context", {}) for m in messages])


def read(path: Path, mapping: Path | None) -> Rows:
    """Raises HeadraceError (file, rows) and SettingsError (columns, mapping), each in one line."""
    plan = read_mapping(mapping) if mapping else Mapping()
    table = open_rows(path, delimiter=plan.csv.delimiter, encoding=plan.csv.encoding)
    if mapping is None:
        fields = by_name(LogFields, table.columns)
    elif plan.log is None:
        raise SettingsError(f"{mapping}: has no [log]; say there which column is which")
    else:
        fields = plan.log
        check_columns(fields, table.columns)
        if isinstance(table, Parquet):
            table.wanted = fields.columns()
    to_message, messages, bad = mapper(fields), list[Message](), Counter[str]()
    first: dict[str, int] = {}
    with progress(f"reading {path.name}", total=table.total) as advance:
        for number, row in enumerate(table, start=1):
            try:
                if isinstance(row, Bad):
                    raise Unmappable(row.reason)
                messages.append(_within_limits(to_message(row, number)))
            except Unmappable as reason:
                bad[str(reason)] += 1
                first.setdefault(str(reason), number)
            if number % _EACH == 0:
                advance(table.done, f"{number:,} rows")
    wrong = {reason: count for reason, count in bad.items() if not reason.startswith("left out: ")}
    if wrong:  # a log with holes is another log: nothing is left out that nobody asked to leave out
        most, count = max(wrong.items(), key=lambda pair: pair[1])
        raise HeadraceError(
            f"{path}: {count:,} rows are not usable: {most}; first in row {first[most]:,}: mend them, or leave them "
            "out with skip in the mapping"
        )
    if not messages:
        raise HeadraceError(f"{path}: holds no row to evaluate")
    return Rows(messages)


def _within_limits(message: Message) -> Message:
    """Raises Unmappable. Propensities that are none at all are counted, and refused, by the evaluation itself."""
    for name, (low, high) in _LIMITS.items():
        if name in message and not low <= message[name] <= high:
            raise Unmappable(f"{name} is not between {low:,.0f} and {high:,.0f}")
    if 0 < message["propensity"] < _SMALLEST:
        raise Unmappable(f"propensity is below {_SMALLEST:g}")
    return message


# -- the target -------------------------------------------------------------------------------------------------------


def known_targets(rows: Rows) -> list[str]:
    return ["uniform", "popular", *rows.targets]


def logged(rows: Rows, target: str, *, floor: float) -> Logged:
    """The log and what `target` would have done. Raises SettingsError for a target that this log cannot answer."""
    if target in ("uniform", "random"):
        chosen, of_item = 1 / rows.choices, _even(rows)
    elif target == "popular":
        of_item = _popular(rows, floor=floor)
        chosen = of_item[folds(rows.users), rows.items]
    elif target in rows.targets:
        return _grouped(rows, rows.targets[target], None)
    else:
        raise SettingsError(
            f"--target {target}: this log can answer {', '.join(known_targets(rows))}; for another policy give its "
            "probability of the logged item as a column, under targets in the mapping"
        )
    return _grouped(rows, chosen, of_item)


def _even(rows: Rows) -> F64:
    """(folds, items): every item of the log alike."""
    n = len(rows.item_names)
    return np.full((int(folds(rows.users).max()) + 1, n), 1 / n)


def _popular(rows: Rows, *, floor: float) -> F64:
    """(folds, items): what earned most a showing among the users of the other folds, and a floor for all.

    Learned from other users than it is judged by. The rate of an item seldom shown is drawn to the average.
    """
    fold, n = folds(rows.users), len(rows.item_names)
    table = np.full((int(fold.max()) + 1, n), floor / n)
    for f in range(len(table)):
        other = fold != f
        earned = np.bincount(rows.items[other], rows.rewards[other], minlength=n)
        shown = np.bincount(rows.items[other], minlength=n)
        average = earned.sum() / max(shown.sum(), 1)
        table[f, np.argmax((earned + _STRENGTH * average) / (shown + _STRENGTH))] += 1 - floor
    return table


# -- into arrays ------------------------------------------------------------------------------------------------------


def _grouped(rows: Rows, target: F64, of_item: F64 | None) -> Logged:
    """Rows of one decision become one slate, in the order of their positions."""
    order = np.lexsort((rows.positions, rows.decisions))
    decision = rows.decisions[order]
    starts = np.flatnonzero(np.concatenate([[True], decision[1:] != decision[:-1]]))
    column = np.arange(len(order)) - np.repeat(starts, np.diff([*starts.tolist(), len(order)]))
    n, k = len(starts), int(column.max()) + 1

    def table(values: Any, empty: Any, dtype: Any) -> Any:
        filled = np.full((n, k), empty, dtype)
        filled[decision, column] = values[order]
        return filled

    model, known = None, None
    if of_item is not None:
        known = np.arange(min(n, _MODELLED))
        place = np.full((n, k), -1)
        place[decision, column] = order
        model = _model(rows, place[known], of_item)
    users = np.zeros(n, np.int64)
    users[decision] = rows.users[order]
    return Logged(
        rewards=table(rows.rewards, 0.0, np.float64),
        propensities=table(rows.propensities, 1.0, np.float64),
        target=table(target, 1.0, np.float64),
        shown=table(np.ones(len(order), np.bool_), False, np.bool_),
        choices=table(rows.choices, 1, np.int64),
        positions=table(rows.positions, -1, np.int64),
        users=users,
        model=model,
        known=known,
    )


def _model(rows: Rows, place: I64, of_item: F64) -> Any:
    """q̂ linear in the item, the position and the context; `place` (N, k) are rows, -1 where there is none."""
    shown = place >= 0
    at = np.maximum(place, 0)
    common = np.argsort(-np.bincount(rows.items), kind="stable")[:_ITEMS]
    own = np.full(len(rows.item_names), len(common))
    own[common] = np.arange(len(common))
    labels, label = np.unique(rows.positions, return_inverse=True)
    width = len(common) + 1
    size = width + len(labels) + rows.context.shape[1] + 1
    x = np.zeros((*place.shape, size), np.float32)
    x[..., width : width + len(labels)] = np.eye(len(labels), dtype=np.float32)[label[at]]
    x[..., width + len(labels) : -1] = rows.context[at]
    x[..., -1] = 1
    expected = x.copy()
    np.put_along_axis(x, own[rows.items[at]][..., None], 1.0, axis=-1)
    by_column = np.zeros((len(of_item), width))
    np.add.at(by_column.T, own, of_item.T)
    fold = folds(rows.users[at[:, 0]])
    expected[..., :width] = by_column[fold][:, None, :]
    x[~shown] = expected[~shown] = 0
    return predict(x, expected, np.where(shown, rows.rewards[at], 0.0), shown, fold)


def _context_features(contexts: list[dict[str, Any]]) -> NDArray[np.float32]:
    """(N, C): a column of numbers as it is, scaled; one of words as a column for each of its most frequent values."""
    columns = []
    for name in dict.fromkeys(key for context in contexts for key in context):
        values = [context.get(name) for context in contexts]
        numbers = _as_numbers(values)
        if numbers is not None:
            columns.append(((numbers - numbers.mean()) / (numbers.std() or 1.0)).astype(np.float32))
            continue
        words, number = _numbered([str(v) for v in values])
        frequent = np.argsort(-np.bincount(number, minlength=len(words)), kind="stable")[:_WORDS]
        columns += [(number == word).astype(np.float32) for word in frequent]
    return np.stack(columns, axis=1) if columns else np.zeros((len(contexts), 0), np.float32)


def _as_numbers(values: list[Any]) -> F64 | None:
    try:
        numbers = np.array([0.0 if v is None else float(v) for v in values])
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _numbered(names: list[str]) -> tuple[list[str], I64]:
    """The distinct names as they come first, and the number of each."""
    found: dict[str, int] = {}
    numbers = np.array([found.setdefault(name, len(found)) for name in names], np.int64)
    return list(found), numbers


def _names(messages: list[Message], key: str) -> list[str]:
    return list(dict.fromkeys(name for m in messages for name in m.get(key, {})))


def _probability(message: Message, name: str) -> float:
    value = message.get("targets", {}).get(name)
    try:
        probability = float(value)
    except (TypeError, ValueError):
        raise HeadraceError(f"target {name}: {value!r} is not a probability: mend that column of the log") from None
    if not 0 <= probability <= 1:
        raise HeadraceError(f"target {name}: {probability:g} is not in [0, 1]: mend that column of the log")
    return probability
