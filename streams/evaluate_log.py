"""Where `headrace evaluate` finds a log and a policy: topic ranges, files of records, published versions, snapshots.

A topic range is `transitions`, or `transitions@FROM:TO` by offsets, either end left out at will; TO is not read. A file
of records holds one record of `transitions` a line, as JSON: `--save` writes it, `.jsonl` or `.jsonl.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.export.artifact import MANIFEST
from headrace.policy.base import Arrays, Meta, Policy
from headrace.policy.names import BASELINES, LEARNED, POLICIES
from headrace.policy.snapshot import unpack
from headrace.streams import kafka, start, topics
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.records import (
    PolicyVersion,
    Transitions,
    decode_policy_version,
    decode_transitions,
)
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of, make_policy

_RANGE = re.compile(r"transitions(?:@(\d*):(\d*))?")
Take = Callable[[Transitions], Any]
_decode_line = msgspec.json.Decoder(Transitions).decode


@dataclass(frozen=True)
class Range:
    """Offsets of `transitions`: `first` is read, `end` is not; None is the topic's present end."""

    first: int
    end: int | None


def topic_range(log: str) -> Range | None:
    """None where `log` is no topic range, but a file."""
    found = _RANGE.fullmatch(log)
    if found is None or Path(log).exists():
        return None
    first, end = (int(text) if text else None for text in found.groups())
    return Range(first or 0, end)


def from_topic(settings: Settings, wanted: Range, take: Take) -> None:
    """Hands over what is committed there now. Raises HeadraceError where the range holds nothing, BrokerError where
    Kafka does not answer."""
    count = 0

    def on_message(message: kafka.Message) -> None:
        nonlocal count
        inside = message.offset() >= wanted.first and (wanted.end is None or message.offset() < wanted.end)
        if inside and message.key() != kafka.FENCE_KEY:
            take(decode_transitions(message.value() or b""))
            count += 1

    topics.reach(settings)
    topic = settings.topic("transitions")
    ends = kafka.read_to_end(settings, topic, on_message, partition=0)
    if not count:
        raise HeadraceError(f"{topic} holds no record in that range; it ends at offset {ends[0]}")


def is_records(path: Path) -> bool:
    """Whether the file holds our own records: each line is a JSON list, a foreign row is an object."""
    if not re.search(r"\.(jsonl|ndjson)(\.gz)?$", path.name.lower()):
        return False
    return next((line.lstrip() for line in _lines(path) if line.strip()), b"").startswith(b"[")


def from_file(path: Path, take: Take) -> None:
    """Hands over every record. Raises HeadraceError for a line that is none, and names it."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                message = _decode_line(line)
            except msgspec.DecodeError as error:
                raise HeadraceError(
                    f"{path}: line {number:,} is no record of transitions ({error}); write the file with --save"
                ) from None
            take(message)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise HeadraceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def saving(path: Path) -> Iterator[Take]:
    """What is handed over while the block runs is written to `path`.

    Raises SettingsError for a name that would not be read again, HeadraceError where the file cannot be written.
    """
    if not re.search(r"\.jsonl(\.gz)?$", path.name.lower()):
        raise SettingsError(f"--save {path}: name the file .jsonl or .jsonl.gz")
    try:
        with _open(path, "wb") as file:
            yield lambda message: file.write(msgspec.json.encode(message) + b"\n")
    except OSError as error:
        raise HeadraceError(f"{path}: cannot be written: {error.strerror or error}") from None


def _open(path: Path, mode: Literal["rb", "wb"]) -> Any:
    return gzip.open(path, mode) if path.name.lower().endswith(".gz") else path.open(mode)


# -- policies ---------------------------------------------------------------------------------------------------------


def policy(settings: Settings, name: str, *, dim: int) -> Policy:
    """A baseline by its name, a learned policy as last published (or NAME@VERSION), or a snapshot's file or folder.

    Raises SettingsError for what is none of these, HeadraceError where it is not there or was made to other widths.
    """
    if name in BASELINES:
        return make_policy(settings, name, dim=dim)
    published, _, version = name.partition("@")
    if published in LEARNED:
        return _published(settings, published, version, dim=dim)
    path = Path(name)
    if path.exists():
        return _snapshot(settings, path, dim=dim)
    raise SettingsError(
        f"--target {name}: neither uniform, one of {', '.join(BASELINES + LEARNED)} (NAME@VERSION for a certain "
        "version), nor the file or folder of a snapshot"
    )


def _published(settings: Settings, name: str, version: str, *, dim: int) -> Policy:
    found: list[PolicyVersion] = []

    def take(message: kafka.Message) -> None:
        key, value = message.key() or b"", message.value()
        if value is not None and (key == name.encode() or (version and key.startswith(f"staged/{name}/".encode()))):
            found.append(decode_policy_version(value))

    topics.reach(settings)
    topic = settings.topic("policy-versions")
    kafka.read_to_end(settings, topic, take)
    if version:
        found = [record for record in found if str(record.version) == version]
    if not found:
        if version:
            raise HeadraceError(
                f"{topic} holds version {version} of {name} no more, or never did: the latest and the staged ones stay"
            )
        raise HeadraceError(f"{topic} holds no version of {name} yet: an arm must run it, and have learned something")
    arrays, meta = arrays_of(found[-1])
    return _restored(settings, f"{name} {found[-1].version}", name, arrays, meta, dim=dim)


def _snapshot(settings: Settings, path: Path, *, dim: int) -> Policy:
    """A folder that `headrace train` wrote, or one file of arrays as `policy.snapshot.pack` makes them."""
    if path.is_dir():
        if not (path / MANIFEST).exists():
            raise SettingsError(f"--target {path}: no {MANIFEST} there; name a folder that `headrace train` wrote")
        trained = start.read(path)
        arrays, meta = trained.parts[trained.policy]
        return _restored(settings, str(path), trained.policy, arrays, meta, dim=dim)
    data = path.read_bytes()
    try:
        arrays, meta = unpack(data, hashlib.sha256(data).hexdigest())
    except ValueError as error:
        raise HeadraceError(f"{path}: {error}") from None
    name = str(meta.get("policy"))
    if name not in POLICIES:
        raise HeadraceError(f"{path}: is a snapshot of {name!r}, which is no policy known here")
    return _restored(settings, str(path), name, arrays, meta, dim=dim)


def _restored(settings: Settings, what: str, name: str, arrays: Arrays, meta: Meta, *, dim: int) -> Policy:
    made = make_policy(settings, name, dim=dim)
    try:
        made.restore(arrays, meta)
    except (ValueError, KeyError) as error:
        raise HeadraceError(f"{what} does not fit these records and settings: {error}") from None
    return made
