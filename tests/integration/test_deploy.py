"""The deployment as it stands: the services of docker-compose.yml are started with the commands and environments that
stand there (engine not needed), and every rule and panel is asked of a real Prometheus that scrapes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.export.defaults import ensure_text, ensure_user
from headrace.streams import child
from headrace.streams.jvm import find_java, find_kafka
from headrace.streams.settings import cache_dir
from tests.compose import ROOT, Service, services
from tests.shop import Shop

pytestmark = pytest.mark.kafka
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)
ROLES = ("ingest", "catalogue", "worker", "learner")


def free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Compose:
    """The file's services as processes of this machine: host names, ports and volumes mapped, nothing else changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = services()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = dict(zip(("9092", "9093", "19092"), free_ports(3), strict=True))

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._ports['9092']}"

    def start_kafka(self) -> None:
        """The image turns KAFKA_A_B=v into the property a.b=v, formats the disk and starts: so do we, with Java."""
        folder = self.folder / "kafka"
        folder.mkdir()
        environment = self.services["kafka"].environment
        properties = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): self._here(value)
            for name, value in environment.items()
            if name not in ("KAFKA_HEAP_OPTS",)
        }
        properties["log.dirs"] = str(folder / "data")
        file = folder / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        kafka = [
            find_java(os.environ),
            *environment["KAFKA_HEAP_OPTS"].split(),
            "-Dorg.apache.logging.log4j.level=WARN",
            "-cp",
            find_kafka(os.environ, cache_dir()).classpath,
        ]
        subprocess.run(
            [*kafka, "kafka.tools.StorageTool", "format", "--cluster-id=headrace-compose-test", "-c", str(file)],
            check=True,
            capture_output=True,
        )
        self._start("kafka", [*kafka, "kafka.Kafka", str(file)], dict(os.environ))

    def healthy(self, name: str) -> bool:
        """What the file's healthcheck says, asked here."""
        check = [self._here(word) for word in self.services[name].healthcheck]
        return subprocess.run(check, capture_output=True, timeout=10).returncode == 0

    def start(self, service: Service) -> None:
        data = self.folder / service.name
        data.mkdir(exist_ok=True)
        mapped = {name: self._here(value, data) for name, value in service.environment.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._start(service.name, service.command, {**os.environ, "PATH": path, **mapped})

    def _here(self, value: str, data: Path | None = None) -> str:
        if data is not None:
            value = value.replace("/var/lib/headrace", str(data))
        value = re.sub(r"\b(kafka|localhost)(?=:\d)", "127.0.0.1", value)
        value = value.replace("//:", "//127.0.0.1:")
        return re.sub(r"([:/])(9092|9093|19092)\b", lambda m: m[1] + str(self._ports[m[2]]), value)

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = child.start(command, stdout=log, env=env, cwd=self.folder)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")[-3000:]

    def target(self, role: str) -> str | None:
        """host:port of the role, from what it entered itself in targets.json."""
        try:
            (target,) = json.loads((self.folder / role / "targets.json").read_text())
        except (OSError, ValueError):
            return None
        return str(target["targets"][0])

    def ready(self, role: str) -> bool:
        if self.processes[role].poll() is not None:
            pytest.fail(f"{role} ended:\n{self.log(role)}")
        target = self.target(role)
        return target is not None and get(f"http://{target}/readyz") == (200, "ok\n")

    def stop(self) -> dict[str, int]:
        """Ends all, the roles first, at once; exit statuses by service."""
        roles = [name for name in self.processes if name != "kafka"]
        for name in roles:
            self.processes[name].send_signal(signal.SIGTERM)
        statuses = {name: child.stop(self.processes[name], grace_s=15) for name in roles}
        child.stop(self.processes["kafka"], grace_s=5)
        return statuses


def wait_until(condition: Callable[[], bool], *, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Kafka, topics, then every role, each as the file says. The encoders are built first, as in the image."""
    ensure_text()
    ensure_user()
    running = Compose(tmp_path_factory.mktemp("compose"))
    try:
        running.start_kafka()
        wait_until(lambda: running.healthy("kafka"), deadline_s=120)
        running.start(running.services["topics"])
        assert running.processes.pop("topics").wait(120) == 0, running.log("topics") + running.log("kafka")
        for role in ROLES:
            running.start(running.services[role])
        yield running
    finally:
        running.stop()


def test_every_service_becomes_ready_as_it_stands(compose: Compose, wait_for: Any) -> None:
    for role in ROLES:
        wait_for(lambda role=role: compose.ready(role), deadline=120)
        status, text = get(f"http://{compose.target(role)}/metrics")
        assert status == 200 and f'headrace_role_info{{role="{role}"}} 1.0' in text
        assert get(f"http://{compose.target(role)}/healthz")[0] == 200


# -- Prometheus -------------------------------------------------------------------------------------------------------


class Prometheus:
    """Debian's Prometheus with our configuration; only targets and intervals are the test's."""

    def __init__(self, folder: Path, targets: list[Path]) -> None:
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
        (job,) = [j for j in config["scrape_configs"] if j["job_name"] == "headrace"]
        job["file_sd_configs"][0]["files"] = [str(path) for path in targets]
        config["scrape_configs"] = [job]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = child.start(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        status, text = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert status == 200, f"{path} {parameters}: {status} {text}"
        return json.loads(text)["data"]

    def values(self, query: str) -> list[str]:
        """The values a query returns now. Fails where Prometheus refuses it."""
        return [sample["value"][1] for sample in self.ask("query", query=query)["result"]]

    def stop(self) -> None:
        child.stop(self._process, grace_s=5)


@pytest.fixture(scope="module")
def prometheus(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), [compose.folder / r / "targets.json" for r in ROLES])
    try:
        wait_until(lambda: get(f"{running.url}/-/ready")[0] == 200, deadline_s=60)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def shop(compose: Compose) -> Iterator[Shop]:
    """A small shop whose users act on what they are shown, as long as the test runs."""
    ended = threading.Event()
    small = Shop(compose.bootstrap)
    thread = threading.Thread(target=small.trade, args=(ended,), name="shop", daemon=True)
    thread.start()
    yield small
    ended.set()
    thread.join(10)


def expressions() -> dict[str, str]:
    """What is asked: every recording rule, every alert with its thresholds taken off, every panel's targets."""
    found = {}
    for file in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((ROOT / "deploy/prometheus" / file).read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                found[rule.get("record") or rule["alert"]] = without_thresholds(rule["expr"])
    for panel in json.loads((ROOT / "deploy/grafana/headrace.json").read_text("utf-8"))["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} ({target['refId']}, panel {panel['id']})"] = target["expr"].replace(
                "$__rate_interval", "20s"
            )
    return found


def without_thresholds(expr: str) -> str:
    """An alert's query as it is on a system that is well: it returns what would be compared."""
    expr = re.sub(r"\s+or absent\([^)]*\)", "", expr)
    expr = re.sub(r"\s(==|!=|>=|<=|>|<)\s(bool )?[\d.]+", " ", expr)
    return re.sub(r"\s<\s(?=scalar)", " - ", expr)


def finite(values: list[str]) -> bool:
    return any(value not in ("NaN", "+Inf", "-Inf") for value in values)


@needs_prometheus
def test_every_rule_and_panel_returns_data(
    compose: Compose, prometheus: Prometheus, shop: Shop, wait_for: Callable[..., Any]
) -> None:
    missing = expressions()
    assert len(missing) > 80

    def answered() -> bool:
        assert shop.error is None, shop.error
        assert prometheus.values('headrace_dead_letters_total{reason="cannot_apply"} > 0') == [], compose.log("worker")
        for name in [name for name, query in missing.items() if finite(prometheus.values(query))]:
            del missing[name]
        return not missing

    try:
        wait_for(answered, deadline=120)
    except pytest.fail.Exception:
        pytest.fail(f"no data for {missing}\n" + "\n".join(f"--- {r}\n{compose.log(r)}" for r in ROLES))

    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    assert prometheus.values('ALERTS{alertstate="firing"}') == []
