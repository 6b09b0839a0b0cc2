"""The rows of a file, one at a time, never the whole file in memory: jsonl, csv (both also as .gz) and parquet.

A row is a dict from column to value, or a `Bad` that says why it is none. `flattened` lays nested lists flat.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.streams.errors import HeadraceError

Row = dict[str, Any]
PEEK = 1_000  # rows of a jsonl file that are looked at to learn its columns
_BATCH = 10_000  # rows of a parquet file held at a time
_CELL = 2 << 20


@dataclass(frozen=True)
class Bad:
    """A line that is no row."""

    reason: str


class RowFile(Protocol):
    """`columns` are known before the first row is read; `done` of `total` (in `unit`) says how far the reading is."""

    columns: list[str]

    @property
    def done(self) -> int: ...

    total: int
    unit: str

    def __iter__(self) -> Iterator[Row | Bad]: ...


def open_rows(path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> RowFile:
    """Opens a .jsonl, .csv (or .gz of them) or .parquet file. Raises HeadraceError, in one line, where it cannot."""
    kinds = {".jsonl": Jsonl, ".ndjson": Jsonl, ".csv": Csv, ".tsv": Csv, ".parquet": Parquet}
    suffix = path.suffix.lower()
    if suffix == ".gz":
        kinds.pop(".parquet")
        suffix = Path(path.stem).suffix.lower()
    kind = kinds.get(suffix)
    if kind is None:
        raise HeadraceError(f"{path}: no known kind of file; give a .jsonl, .csv (these also as .gz) or .parquet file")
    try:
        if kind is Csv:
            return Csv(path, delimiter="\t" if suffix == ".tsv" else delimiter, encoding=encoding)
        return Parquet(path) if kind is Parquet else Jsonl(path)
    except OSError as error:
        raise HeadraceError(f"{path}: {error.strerror or error}; check the path") from None


class _Lines:
    """The lines of a file, unpacked where it ends in .gz; `done` counts the bytes on disk that were read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = path.open("rb")
        self._packed = path.suffix.lower() == ".gz"
        self._file: Any = gzip.GzipFile(fileobj=self._raw) if self._packed else self._raw
        self.done = 0
        self.total = os.path.getsize(path)

    def rewind(self) -> None:
        self._file.seek(0)
        self.done = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            for line in self._file:
                self.done = self._raw.tell() if self._packed else self.done + len(line)
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise HeadraceError(f"{self._path}: not a whole gzip file: {error}") from None


class Jsonl:
    """One JSON object a line. Columns are those of the first thousand rows; empty lines do not count."""

    unit = "bytes"

    def __init__(self, path: Path) -> None:
        self._file = _Lines(path)
        self.total = self._file.total
        self._head = list(itertools.islice(self._parsed(), PEEK))
        self.columns = list(dict.fromkeys(key for row in self._head if isinstance(row, dict) for key in row))

    def lines(self) -> Iterator[bytes]:
        """The lines as they are, from the start."""
        self._file.rewind()
        return self._lines()

    @property
    def done(self) -> int:
        return self._file.done

    def _lines(self) -> Iterator[bytes]:
        for line in self._file:
            if line := line.strip():
                yield line

    def _parsed(self) -> Iterator[Row | Bad]:
        for line in self._lines():
            try:
                yield _decode_row(line)
            except (msgspec.DecodeError, RecursionError):
                yield Bad("not a JSON object")

    def __iter__(self) -> Iterator[Row | Bad]:
        head, self._head = self._head, []
        yield from head
        yield from self._parsed()


_decode_row = msgspec.json.Decoder(Row).decode


class Csv:
    """The first line names the columns; every value is text, an empty cell is the empty text."""

    unit = "bytes"

    def __init__(self, path: Path, *, delimiter: str, encoding: str) -> None:
        csv.field_size_limit(_CELL)
        self._path, self._encoding = path, encoding
        self._file = _Lines(path)
        self.total = self._file.total
        self._reader = csv.reader(self._text(), delimiter=delimiter)
        try:
            self.columns = next(self._reader, [])
        except csv.Error as error:
            raise HeadraceError(f"{path}: not a csv file: {error}") from None

    @property
    def done(self) -> int:
        return self._file.done

    def _text(self) -> Iterator[str]:
        encoding = "utf-8" if self._encoding.lower() in ("utf-8", "utf8") else self._encoding
        for number, line in enumerate(self._file):
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError:
                raise HeadraceError(
                    f"{self._path}: line {number + 1:,} is not {encoding}; name its encoding in the mapping, "
                    'such as [csv] encoding = "cp1252"'
                ) from None
            yield text.removeprefix("\ufeff") if number == 0 else text

    def __iter__(self) -> Iterator[Row | Bad]:
        columns, width = self.columns, len(self.columns)
        while True:
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Bad(f"not csv: {error}")
                continue
            if len(cells) == width:
                yield dict(zip(columns, cells, strict=True))
            elif cells:
                yield Bad("more or fewer cells than the first line has")


class Parquet:
    """Read a row group's batch at a time."""

    unit = "rows"

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise HeadraceError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from None
        self.columns = list(self._file.schema_arrow.names)
        self.done = 0
        self.total = self._file.metadata.num_rows
        self.wanted: list[str] | None = None  # read these columns only

    def __iter__(self) -> Iterator[Row | Bad]:
        for batch in self._file.iter_batches(batch_size=_BATCH, columns=self.wanted):
            for row in batch.to_pylist():
                self.done += 1
                yield row


def flattened(rows: Iterator[tuple[int, Row | Bad]], column: str) -> Iterator[tuple[int, Row | Bad]]:
    """One row for each record of the list in `column`; the outer columns stay, an inner one of the same name wins."""
    for number, row in rows:
        if isinstance(row, Bad):
            yield number, row
            continue
        records = row.get(column)
        if not isinstance(records, list):
            yield number, Bad(f"column '{column}' holds no list")
            continue
        for record in records:
            yield (
                number,
                ({**row, **record} if isinstance(record, dict) else Bad(f"column '{column}' holds no records")),
            )
