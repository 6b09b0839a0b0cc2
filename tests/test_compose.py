"""docker-compose.yml and the Kubernetes manifests as they stand; tests/integration/test_deploy.py starts them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from headrace.streams import configuration
from tests.compose import ROOT, services

ROLES = ["ingest", "catalogue", "worker", "learner"]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy/kubernetes/headrace.yaml").read_text("utf-8")))


def test_every_role_is_a_service_with_the_command_of_the_contract() -> None:
    ours = {name: service.command for name, service in services().items() if service.ours}
    roles = {role: ["headrace", "run", "--role", role] for role in ROLES}
    assert ours == {"topics": ["headrace", "topics", "create"], **roles}


def test_every_published_port_is_bound_to_loopback() -> None:
    ports = [port for service in services().values() for port in service.ports]
    assert len(ports) >= 3
    assert all(port.startswith("127.0.0.1:") for port in ports), ports


def test_environment_is_made_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in services().values():
        assert all(isinstance(value, str) for value in service.environment.values()), service.name
        if not service.ours:
            continue
        for name, value in service.environment.items():
            assert name.startswith("HEADRACE_")
            monkeypatch.setenv(name, value)
        settings = configuration.load()
        assert settings.metrics.port == 9108 and settings.metrics.host == "0.0.0.0"


def test_mounted_files_exist_and_are_read_only() -> None:
    mounts = [v for service in services().values() for v in service.volumes if v.startswith("./")]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (ROOT / source).exists() and mode == "ro", mount


def test_prometheus_scrapes_the_services_that_there_are() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.compose.yml").read_text("utf-8"))
    (discovery,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert discovery["names"] == ROLES
    assert str(discovery["port"]) == services()["worker"].environment["HEADRACE_METRICS__PORT"]


def test_kubernetes_runs_what_compose_runs() -> None:
    compose = services()
    settings = next(m["data"] for m in manifests() if m["kind"] == "ConfigMap")
    assert settings.keys() == compose["worker"].environment.keys()
    commands = {
        container["name"]: container["command"]
        for m in manifests()
        if m["kind"] in ("Job", "Deployment", "StatefulSet")
        for container in m["spec"]["template"]["spec"]["containers"]
    }
    assert commands == {name: service.command for name, service in compose.items() if service.ours}


def test_image_holds_every_room_and_runs_without_privileges() -> None:
    rooms = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"].values()
    sent = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {f"!{room}" for room in rooms} <= set(sent) and sent[0] == "*"
    dockerfile = (ROOT / "deploy/Dockerfile").read_text("utf-8")
    (uid,) = re.findall(r"useradd .*--uid (\d+)", dockerfile)
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["headrace"]
    pods = [m["spec"]["template"]["spec"] for m in manifests() if m["kind"] in ("Job", "Deployment", "StatefulSet")]
    contexts = [pod["securityContext"] for pod in pods]
    assert len(contexts) == 5
    assert all(c["runAsNonRoot"] is True and c["runAsUser"] == int(uid) for c in contexts), contexts
    assert services()["worker"].environment["HEADRACE_DATA_DIR"] in dockerfile
