"""User and item data of the Gymnasium world: arrays, tables, or files that hold them, checked and made whole.

    user_data   (U, d) tastes, or a table with    taste (U, d), activity (U,)
    item_data   (I, d) vectors, or a table with   vector (I, d), popularity, quality, price, category (I,), item_id (I,)

A table is a mapping from column to array. A file is .npy (one array), .npz or .parquet (a table; vectors are lists).
Only the first column of each is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, F64, I64, U64
from headrace.policy.features import unit
from headrace.streams.records import item_key

Data = NDArray[Any] | Mapping[str, Any] | Path | str


@dataclass(frozen=True)
class Users:
    tastes: F32  # (U, d) rows of length 1
    activity: F64  # (U,) cumulative, ends with 1: how likely each is to come


@dataclass(frozen=True)
class Items:
    """I items and, in the last row of each array by row, the item that is none: zeros.

    It is what `streams.scalars` reads: the features of a candidate are computed here as in the running system.
    """

    vectors: F32  # (I + 1, d) rows of length 1
    keys: U64  # (I + 1,)
    category: NDArray[np.int32]  # (I + 1,) -1 for none
    log_price: F32  # (I + 1,) log1p(price), 0 where unknown
    popular: F32  # (I + 1,) in [0, 1]
    quality: F32  # (I + 1,) hidden
    ids: tuple[str, ...]

    @property
    def none(self) -> int:
        return len(self.vectors) - 1

    def popularity(self, rows: I64) -> F32:
        """In [0, 1], of the shape of `rows`."""
        popular: F32 = self.popular[rows]
        return popular

    def co_occurrence(self, recent: U64, keys: U64) -> tuple[F32, F32]:
        """co_view and co_buy: there are no pairs in this world."""
        return np.zeros(keys.shape, np.float32), np.zeros(keys.shape, np.float32)


def read_users(data: Data) -> Users:
    """Raises ValueError where the data has another shape or a number is not finite."""
    table = _table(data, "taste")
    tastes = _vectors(table, "taste")
    activity = _column(table, "activity", len(tastes), fill=1.0)
    if (activity < 0).any() or not activity.sum() > 0:
        raise ValueError("user_data: activity must be 0 or more, and not 0 for everybody")
    return Users(tastes, np.cumsum(activity) / activity.sum())


def read_items(data: Data, num_items: int) -> Items:
    """The first `num_items` items. Raises ValueError where there are fewer, or a column has another shape."""
    table = _table(data, "vector")
    vectors = _vectors(table, "vector")
    if not 2 <= num_items <= len(vectors):
        raise ValueError(f"num_items is {num_items}, item_data holds {len(vectors)}: choose 2 to {len(vectors)}")
    n = len(vectors)
    named = table.get("item_id")
    ids = [str(i) for i in range(n)] if named is None else [str(name) for name in named]
    if len(ids) != n or len(set(ids)) != n:
        raise ValueError(f"item_data: item_id holds {len(set(ids))} different ids, vector has {n} rows")
    raw = np.asarray(table.get("category", np.full(n, -1)))
    if raw.shape != (n,):
        raise ValueError(f"item_data: category has shape {raw.shape}, wanted {(n,)}")
    whole = np.issubdtype(raw.dtype, np.integer)
    category = raw.astype(np.int32) if whole else np.unique(raw.astype(str), return_inverse=True)[1].astype(np.int32)
    price = np.maximum(_column(table, "price", n), 0)

    def with_none(column: NDArray[Any], none: Any, dtype: Any) -> Any:
        return np.append(column[:num_items], np.asarray(none)).astype(dtype)

    return Items(
        vectors=np.concatenate([vectors[:num_items], np.zeros((1, vectors.shape[1]), np.float32)]),
        keys=with_none(np.array([item_key(name) for name in ids], np.uint64), np.uint64(0), np.uint64),
        category=with_none(category, -1, np.int32),
        log_price=with_none(np.log1p(price), 0, np.float32),
        popular=with_none(_column(table, "popularity", n).clip(0, 1), 0, np.float32),
        quality=with_none(_column(table, "quality", n), 0, np.float32),
        ids=tuple(ids[:num_items]),
    )


def _table(data: Data, first: str) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, str | Path):
        path = Path(data)
        try:
            if path.suffix == ".npz":
                with np.load(path) as found:
                    return dict(found)
            if path.suffix == ".npy":
                return {first: np.load(path)}
            if path.suffix == ".parquet":
                import pyarrow.parquet

                return dict(pyarrow.parquet.read_table(path).to_pydict())
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}; check the path") from None
        raise ValueError(f"{path}: no known kind of file; give a .npy, .npz or .parquet file")
    return {first: data}


def _vectors(table: Mapping[str, Any], name: str) -> F32:
    if name not in table:
        raise ValueError(f"the table has no column {name!r}; its columns are {', '.join(table) or '(none)'}")
    vectors = np.array(table[name], np.float32)
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"{name} has shape {vectors.shape}: two axes of finite numbers are wanted, a row each")
    return unit(vectors)


def _column(table: Mapping[str, Any], name: str, n: int, *, fill: float = 0.0) -> F64:
    column = np.array(table.get(name, np.full(n, fill)), np.float64)
    if column.shape != (n,):
        raise ValueError(f"{name} has shape {column.shape}, wanted {(n,)}")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} holds a number that is not finite")
    return column
