"""Policy versions as the learner publishes and the worker serves them: which part, which arrays, which policy.

Parts: a learned policy by its name (`neural_linear`), the behaviour models by shard (`popularity/3`,
`co_occurrence/17`), the gate's record (`gate`), staged versions (`staged/linucb/2`), the history (`history/7`).
"""

from __future__ import annotations

from headrace.policy import registry
from headrace.policy.base import Arrays, Meta, Policy
from headrace.policy.names import POLICIES
from headrace.policy.snapshot import pack, unpack
from headrace.streams.context import ContextEncoder
from headrace.streams.records import PolicyVersion
from headrace.streams.settings import Settings

SERVED = (*POLICIES, "popularity", "co_occurrence")  # what a worker takes up; other records are the learner's own
MISFIT = (ValueError, LookupError, TypeError)  # what comes of a record that is damaged, or of another release


def make_policy(settings: Settings, name: str, *, dim: int) -> Policy:
    """A policy that has learned nothing, as the settings want it; `dim` is the user encoder's."""
    options = settings.policy.model_dump(exclude={"name", "start"})
    return registry.make(name, dim=dim, contexts=ContextEncoder(settings).size, **options)


def part_of(record: PolicyVersion) -> tuple[str, int]:
    """(policy or behaviour model, shard); shard 0 for a part that is whole."""
    name, _, shard = record.part.partition("/")
    return name, int(shard or 0)


def arrays_of(record: PolicyVersion) -> tuple[Arrays, Meta]:
    """What was published. Raises policy.snapshot.SnapshotError where the bytes are not those announced."""
    return unpack(record.arrays, record.sha256)


def version_of(
    part: str, arrays: Arrays, meta: Meta, *, version: int, offset: int, replay_from: int, created_ms: int
) -> PolicyVersion:
    """The record of one part as it is after the message at `offset`."""
    data, sha256 = pack(arrays, meta)
    return PolicyVersion(
        part=part,
        policy=part.partition("/")[0],
        version=version,
        offset=offset,
        replay_from=replay_from,
        created_ms=created_ms,
        sha256=sha256,
        arrays=data,
        meta=meta,
    )
