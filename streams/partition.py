"""Which partition of `interactions` a user lives in: Kafka's own default, so that any client can compute it."""

from __future__ import annotations

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=262_144)
def partition_of(user_id: str, partitions: int) -> int:
    """murmur2 of the UTF-8 user id, made positive, modulo `partitions`: what Kafka's Java client does with a key."""
    positive: int = murmur2(user_id.encode()) & 0x7FFFFFFF
    return positive % partitions
