"""The embedded broker: one Apache Kafka node (KRaft) on loopback, with a folder of its own.

    with Broker(Path(".headrace/broker")) as broker:
        print(broker.bootstrap)

It is for development, demo and tests: one node, no replicas, no listeners but 127.0.0.1. It ends with the process that
started it, and started again on the same folder it has everything it had.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.streams import child
from headrace.streams.errors import BrokerError
from headrace.streams.jvm import Kafka, find_java, find_kafka
from headrace.streams.settings import cache_dir

HOST = "127.0.0.1"
_OTHER_FOLDER = "choose another folder with --data-dir, or remove this one"
_LOCK_S = 15.0
_LOG_LIMIT = 20_000_000  # bytes; a longer broker.log is begun anew at the next start

# Small where Kafka's defaults are made for clusters: few internal partitions, no wait before a group forms, a log
# cleaner that fits into a heap of 512 MB; and a session so short that a killed node is let in again in 5 s, not in 13.
_CONFIG = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
background.threads=2
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.io.buffer.size=131072
log.cleaner.backoff.ms=5000
"""


class Broker:
    """One node. `start` returns when a client can talk to it; `stop` ends it within a few seconds.

    `port` None: the port it had before on this folder, else a free one. `short_lived`: for minutes, so Java compiles
    lightly; ready in half the time (2.3 against 4.0 s of CPU), but 3.5 ms of CPU a transaction, against 2.1 ms after
    the full compiler's first 15 s of work. `properties`: more of Kafka's own, where they differ from `_CONFIG`. Raises
    BrokerError, in one line with the cure.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        heap_mb: int = 512,
        short_lived: bool = True,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.port = port
        self._port_given = port is not None
        self._heap_mb = heap_mb
        self._short_lived = short_lived
        self._properties = dict(properties or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The Java process, None when it was never started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        return self.data_dir / "broker.log"

    def start(self, *, timeout_s: float = 60) -> None:
        if self.running:
            return
        java, kafka = find_java(os.environ), find_kafka(os.environ, cache_dir())
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BrokerError(f"cannot make the folder {self.data_dir} ({error.strerror}): choose another") from error
        with _lock(self.data_dir, timeout_s=_LOCK_S) as lock:  # inherited: held until Java is gone
            known = self._read_folder(kafka)
            self._choose_port(known.get("port"))
            if not (self.data_dir / "data" / "meta.properties").exists():
                self._format(java, kafka)
            self._write_folder(kafka)
            self._launch(java, kafka, lock)
        try:
            self._wait_until_ready(timeout_s)
        except BaseException:
            self.stop(grace_s=0)
            raise

    def stop(self, *, grace_s: float = 10) -> None:
        if self._process is not None:
            child.stop(self._process, grace_s=grace_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would: for trials of what an outage does."""
        self.stop(grace_s=0)

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _read_folder(self, kafka: Kafka) -> dict[str, Any]:
        path = self.data_dir / "broker.json"
        if not path.exists():
            foreign = [p.name for p in self.data_dir.iterdir() if p.name != "lock"]
            if foreign:
                raise BrokerError(
                    f"{self.data_dir} holds {foreign[0]} but no broker.json, so it is no embedded broker's folder:"
                    f" choose an empty one with --data-dir"
                )
            return {}
        try:
            known: dict[str, Any] = json.loads(path.read_text("utf-8"))
            written = _version(known["kafka"])
        except (ValueError, KeyError, TypeError) as error:
            raise BrokerError(f"{path} cannot be read ({error}): {_OTHER_FOLDER}") from error
        if written > _version(kafka.version):
            raise BrokerError(
                f"{self.data_dir} was written by Kafka {known['kafka']} and this is the older {kafka.version}:"
                f" set KAFKA_HOME to a Kafka ≥ {known['kafka']}, or {_OTHER_FOLDER}"
            )
        return known

    def _choose_port(self, stored: Any) -> None:
        if self._port_given:
            assert self.port is not None
            if not _is_free(self.port):
                raise BrokerError(f"port {self.port} is taken: stop what listens there, or choose another with --port")
        elif not (isinstance(stored, int) and _is_free(stored)):
            self.port = _free_port()
        else:
            self.port = stored

    def _write_folder(self, kafka: Kafka) -> None:
        config = _CONFIG.format(host=HOST, port=self.port, controller_port=_free_port(), log_dir=self.data_dir / "data")
        config += "".join(f"{name}={value}\n" for name, value in self._properties.items())  # the last one counts
        (self.data_dir / "server.properties").write_text(config, "utf-8")
        partial = self.data_dir / "broker.json.new"
        partial.write_text(json.dumps({"kafka": kafka.version, "port": self.port}), "utf-8")
        partial.replace(self.data_dir / "broker.json")

    # -- the process --------------------------------------------------------------------------------------------------

    def _java(self, java: str, kafka: Kafka, *arguments: str) -> list[str]:
        return [
            java,
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            *(["-XX:TieredStopAtLevel=1"] if self._short_lived else []),
            "-Djava.awt.headless=true",
            "-Dorg.apache.logging.log4j.level=WARN",
            "-cp",
            kafka.classpath,
            *arguments,
        ]

    def _format(self, java: str, kafka: Kafka) -> None:
        self._write_folder(kafka)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        properties = str(self.data_dir / "server.properties")
        arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", properties]
        done = subprocess.run(self._java(java, kafka, *arguments), capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
            raise BrokerError(f"Kafka could not format {self.data_dir} ({said[0]}): {_OTHER_FOLDER}")

    def _launch(self, java: str, kafka: Kafka, lock: IO[str]) -> None:
        fresh = not self.log_path.exists() or self.log_path.stat().st_size > _LOG_LIMIT
        with self.log_path.open("wb" if fresh else "ab") as log:
            self._log_start = log.tell()
            self._process = child.start(
                self._java(java, kafka, "kafka.Kafka", str(self.data_dir / "server.properties")),
                stdout=log,
                cwd=self.data_dir,
                pass_fds=[lock.fileno()],
            )

    def _wait_until_ready(self, timeout_s: float) -> None:
        assert self._process is not None and self.port is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BrokerError(f"Kafka stopped while starting ({self._last_words()}): see {self.log_path}")
            if not _is_free(self.port) and _answers(self.bootstrap):
                return
            time.sleep(0.05)
        raise BrokerError(f"Kafka was not ready within {timeout_s:g} s: see {self.log_path}")

    def _last_words(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", "replace").splitlines()
        telling = [line for line in lines if "Exception" in line or "Error" in line] or lines or ["no word in its log"]
        return telling[-1].strip()[:300]


def _answers(bootstrap: str) -> bool:
    """Whether a client gets the node itself from the broker's metadata."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 2_000})
    try:
        return bool(admin.list_topics(timeout=2).brokers)
    except KafkaException:
        return False


@contextmanager
def _lock(folder: Path, *, timeout_s: float) -> Iterator[IO[str]]:
    """The folder's lock, waited for: a broker that was just stopped needs a moment to leave."""
    deadline = time.monotonic() + timeout_s
    with (folder / "lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"another broker runs on {folder}: use it, stop it, or choose another folder with --data-dir"
                    ) from None
                time.sleep(0.05)
        yield lock


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
