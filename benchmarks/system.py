"""headrace as a benchmark runs it: an embedded broker and every role a process of its own, watched from outside.

What was applied is read from the committed progress records, what was sent from the ends of the topic `events`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from headrace.streams import http, kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.changelog import PROGRESS, Progress, decode_progress
from headrace.streams.records import decode_item
from headrace.streams.settings import Settings
from headrace.streams.supervise import ROLES, Supervisor

RESULTS = Path(__file__).parent / "results"
_TICKS = os.sysconf("SC_CLK_TCK")
_NEAR = 64  # records from the end of a changelog partition within which its last progress is first looked for


class System:
    """Broker and topics from the start, roles from `start_roles`. Settings come from `settings_of(data_dir, address)`.

    `log` (data_dir/roles.log) holds what the roles said.
    """

    def __init__(self, data_dir: Path, settings_of: Callable[[str, str], Settings]) -> None:
        self._broker = Broker(data_dir / "broker", short_lived=False)
        self._data_dir = data_dir
        self._settings_of = settings_of
        self._roles: Supervisor | None = None

    def __enter__(self) -> System:
        self._broker.start()
        try:
            self.settings = self._settings_of(str(self._data_dir), self._broker.bootstrap)
            topics.create(self.settings)
            self._near = kafka.consumer(self.settings, "benchmark", fetch_wait_max_ms=10, enable_partition_eof=True)
            self._log = (self._data_dir / "roles.log").open("a", encoding="utf-8")
        except BaseException:
            self._broker.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_roles()
        self._near.close()
        self._broker.stop()
        self._log.close()
        if error is not None:
            print((self._data_dir / "roles.log").read_text("utf-8")[-3_000:], file=sys.stderr)

    # -- roles --------------------------------------------------------------------------------------------------------

    def start_roles(self, roles: Sequence[str] = ROLES, *, workers: int = 1, ready_s: float = 120) -> None:
        """Returns when every role is ready."""
        self._roles = Supervisor(self.settings, roles, workers=workers, output=self._say)
        self._roles.start()
        self.wait(self._roles.ready, "the roles", limit_s=ready_s)

    def stop_roles(self) -> None:
        if self._roles is not None:
            self._roles.stop()
            self._roles = None

    def _say(self, role: str, line: str) -> None:
        if not self._log.closed:
            print(f"{role:>9} | {line}", file=self._log, flush=True)

    def wait(self, reached: Callable[[], Any], what: str, *, limit_s: float, every_s: float = 0.05) -> float:
        """Waits until `reached()`; the time (Unix s) it then is. A role that cannot be kept running ends the wait."""
        end = time.monotonic() + limit_s
        while not reached():
            self.check()
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {limit_s:g} s; see {self._data_dir / 'roles.log'}")
            time.sleep(every_s)
        return time.time()

    def check(self) -> None:
        """Raises HeadraceError where a role could not be kept running."""
        if self._roles is not None:
            self._roles.check()

    def restarts(self) -> int:
        return sum(self._roles.restarts().values()) if self._roles else 0

    def pids(self) -> dict[str, int]:
        assert self._broker.pid is not None
        return {**(self._roles.pids() if self._roles else {}), "broker": self._broker.pid}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each role and the broker so far."""
        return {name: cpu_s(pid) for name, pid in self.pids().items()}

    def metrics(self, role: str) -> dict[str, float]:
        """{sample name with its labels: value} of a role's /metrics now."""
        assert self._roles is not None
        address = http.address_of(self.settings, self._roles.pids()[role])
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value
            for family in families
            for s in family.samples
        }

    # -- what was committed -------------------------------------------------------------------------------------------

    def ends(self, topic: str) -> dict[int, int]:
        """{partition: offset after its last committed record}."""
        name = self.settings.topic(topic)
        partitions = self._near.list_topics(name, timeout=10).topics[name].partitions
        return {p: self._near.get_watermark_offsets(TopicPartition(name, p), timeout=10)[1] for p in partitions}

    def sent(self) -> int:
        """Messages in the topic `events`: its writers use no transactions, so that every offset is one."""
        return sum(self.ends("events").values())

    def progress(self) -> dict[int, Progress]:
        """The last committed progress of each partition of `interactions`, found near the changelog's end."""
        topic = self.settings.topic("users-changelog")
        return {
            p: self._last_progress(TopicPartition(topic, p), end) for p, end in self.ends("users-changelog").items()
        }

    def _last_progress(self, at: TopicPartition, end: int) -> Progress:
        found, near = None, _NEAR
        while found is None and near < 2 * max(end, _NEAR):
            for key, value in self._read(at, max(0, end - near)):
                if key == PROGRESS and value is not None:
                    found = value
            near *= 8
        return Progress(clock={}, counts={}) if found is None else decode_progress(found)

    def _read(self, at: TopicPartition, begin: int) -> list[tuple[bytes | None, bytes | None]]:
        """Committed records of a partition from an offset to its present end."""
        self._near.assign([TopicPartition(at.topic, at.partition, begin)])
        records = []
        while True:
            for message in kafka.consume(self._near, 1_000, 1.0):
                if (error := message.error()) is None:
                    records.append((message.key(), message.value()))
                elif error.code() == kafka.KafkaError._PARTITION_EOF:
                    return records
                else:
                    kafka.check(error)

    def counts(self) -> Counter[str]:
        """Cumulative counts of all partitions, as committed: `events/click/applied`, `decisions/policy/lints`, …"""
        total: Counter[str] = Counter()
        for progress in self.progress().values():
            total.update(progress.counts)
        return total

    def items_encoded(self) -> int:
        """Items whose vector stands in `item-vectors`."""
        known: set[str] = set()

        def on_message(message: kafka.Message) -> None:
            if message.value() and not (message.key() or b"\0").startswith(b"\0"):
                item = decode_item(message.value() or b"")
                if not item.pending:
                    known.add(item.item_id)

        kafka.read_to_end(self.settings, self.settings.topic("item-vectors"), on_message)
        return len(known)

    def consumer(self, topic: str) -> Consumer:
        """Reads the committed records of a topic from their start."""
        name = self.settings.topic(topic)
        reader = kafka.consumer(self.settings, "benchmark", fetch_wait_max_ms=10)
        reader.assign([TopicPartition(name, p, OFFSET_BEGINNING) for p in self.ends(topic)])
        return reader


def total(counts: Counter[str], prefix: str, suffix: str = "") -> int:
    """The sum of the counts whose names begin and end so."""
    return sum(n for name, n in counts.items() if name.startswith(prefix) and name.endswith(suffix))


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, Any]:
    """Where and when the figures were taken; `load` is the machine's load average before the run."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_name(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def write(name: str, figures: dict[str, Any]) -> None:
    """The figures as benchmarks/results/NAME.json, and as one line on stdout."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(msgspec.json.encode(figures).decode(), flush=True)
