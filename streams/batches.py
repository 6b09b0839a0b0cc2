"""Micro-batches: what was read from one source, one record a partition of `interactions`, in the order read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import msgspec

from headrace.streams import records
from headrace.streams.partition import partition_of
from headrace.streams.records import Batch, Entry

_encode = msgspec.msgpack.Encoder().encode


def micro_batches(
    entries: Iterable[Entry], *, partitions: int, limit_bytes: int, source: str, watermark: int, idle: bool
) -> Iterator[tuple[int, int, bytes]]:
    """Yields (partition, number of entries, record). Each user's entries are in one partition, in the order read.

    A record is closed before its entries pass `limit_bytes`; an entry larger than that has a record of its own. As
    msgpack an entry takes at most twice the bytes of its JSON (a context of one-digit numbers does; text takes less).
    """
    waiting: dict[int, tuple[list[msgspec.Raw], int]] = {}

    def closed(partition: int, batch: list[msgspec.Raw]) -> tuple[int, int, bytes]:
        record = Batch(source, watermark, idle, entries=cast(list[Entry], batch))
        return partition, len(batch), records.encode(record)

    for entry in entries:
        encoded = msgspec.Raw(_encode(entry))
        partition = partition_of(entry.user_id, partitions)
        batch, size = waiting.get(partition, ([], 0))
        if batch and size + len(encoded) > limit_bytes:
            yield closed(partition, batch)
            batch, size = [], 0
        batch.append(encoded)
        waiting[partition] = batch, size + len(encoded)
    for partition, (batch, _) in waiting.items():
        yield closed(partition, batch)
