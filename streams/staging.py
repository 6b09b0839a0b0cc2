"""Staged versions: the last few good ones of every learned policy, to go back to. Pure.

They lie in `policy-versions` under `staged/POLICY/SLOT`; the gate's record lists which of them stand.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.policy.base import Policy
from headrace.streams.records import PolicyVersion
from headrace.streams.versions import version_of

STAGED = "staged"
_FIRST = 16  # boundaries: there is something to go back to before a guardrail has seen enough to say anything


class Staging:
    """A version is staged every `every` boundaries, and sooner while the log is young; `kept` a policy, oldest out."""

    def __init__(self, *, every: int, kept: int) -> None:
        self._every, self._kept = every, kept
        self._staged: dict[str, list[PolicyVersion]] = {}  # oldest first
        self._unpublished: list[PolicyVersion] = []

    def due(self, boundary: int) -> bool:
        young = _FIRST <= boundary < self._every and boundary.bit_count() == 1  # 16, 32, 64, …
        return young or boundary % self._every == 0

    def stage(self, policy: Policy, *, boundary: int, offset: int, created_ms: int) -> None:
        """Keeps the policy as it is, where it is time. One that learned nothing since is not kept twice: a quiet hour
        must not push out what was good before it."""
        if not self.due(boundary):
            return
        name = policy.name
        staged = self._staged.get(name, [])
        staying = staged[1 - self._kept :]
        # By what stands, not by a count: a learner that resumes must overwrite what one that never stopped overwrites.
        taken = {_slot(record) for record in staying}
        record = version_of(
            f"{STAGED}/{name}/{next(slot for slot in range(self._kept) if slot not in taken)}",
            *policy.snapshot(),
            version=boundary,
            offset=offset,
            replay_from=offset + 1,
            created_ms=created_ms,
        )
        if staged and staged[-1].sha256 == record.sha256:
            return
        self._staged[name] = [*staying, record]
        self._unpublished.append(record)

    def find(self, name: str, version: int | None = None) -> PolicyVersion | None:
        """The staged version asked for. Without one the newest but one: what goes wrong now may have begun before the
        newest was staged."""
        staged = self._staged.get(name, [])
        if version is not None:
            return next((record for record in staged if record.version == version), None)
        return staged[-2:][0] if staged else None

    def before(self, name: str, version: int) -> PolicyVersion | None:
        """The newest staged version that is not newer than `version`, else the oldest there is."""
        staged = self._staged.get(name, [])
        good = [record for record in staged if record.version <= version]
        return good[-1] if good else next(iter(staged), None)

    def versions(self, name: str) -> list[int]:
        return [record.version for record in self._staged.get(name, [])]

    def drop_after(self, name: str, version: int) -> None:
        """Forgets what was staged after a version that was put back."""
        self._staged[name] = [record for record in self._staged.get(name, []) if record.version <= version]

    def drop(self, record: PolicyVersion) -> None:
        """Forgets a version that cannot be put back."""
        self._staged[record.part.split("/")[1]].remove(record)

    def publish(self) -> list[PolicyVersion]:
        """What was staged since the last call, and still stands."""
        standing = {record.part: record for records in self._staged.values() for record in records}
        found = [record for record in self._unpublished if standing.get(record.part) is record]
        self._unpublished.clear()
        return found

    def table(self) -> dict[str, list[list[int]]]:
        """{policy: [[slot, version], …]}, oldest first."""
        return {name: [[_slot(record), record.version] for record in records] for name, records in self._staged.items()}

    def resume(self, records: Iterable[PolicyVersion], table: dict[str, list[list[int]]]) -> None:
        """Takes up the records that `table` lists."""
        known = {(record.part, record.version): record for record in records}
        for name, entries in table.items():
            found = [known.get((f"{STAGED}/{name}/{slot}", version)) for slot, version in entries]
            self._staged[name] = [record for record in found if record is not None][-self._kept :]


def _slot(record: PolicyVersion) -> int:
    return int(record.part.rpartition("/")[2])
