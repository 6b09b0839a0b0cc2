"""Every role answers /metrics, /healthz and /readyz, and stands in targets.json as long as it lives."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from headrace.streams import http
from headrace.streams.errors import SettingsError
from headrace.streams.metrics import Metrics
from headrace.streams.settings import Settings


def get(server: http.Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def serve(settings: Settings, role: str = "worker", *, ready=lambda: True, alive=lambda: True) -> http.Server:
    return http.serve(Metrics(CollectorRegistry(), role), ready=ready, alive=alive, settings=settings)


@pytest.fixture
def mine(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path, metrics={"port": 0})


def test_metrics_are_prometheus_text(mine):
    server = serve(mine)
    status, text = get(server, "/metrics")
    server.close()

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert families["headrace_role_info"].samples[0].labels == {"role": "worker"}


def test_readiness_and_liveness_are_asked_anew_each_time(mine):
    state = {"ready": False, "alive": True}
    server = serve(mine, ready=lambda: state["ready"], alive=lambda: state["alive"])

    before = get(server, "/readyz"), get(server, "/healthz")
    state.update(ready=True, alive=False)
    after = get(server, "/readyz"), get(server, "/healthz")
    server.close()

    assert before == ((503, "not ready\n"), (200, "ok\n"))
    assert after == ((200, "ok\n"), (503, "not alive\n"))


def test_another_path_says_what_there_is(mine):
    server = serve(mine)
    assert get(server, "/") == (404, "try /metrics, /healthz or /readyz\n")
    server.close()


def test_a_second_role_takes_the_next_free_port(tmp_path):
    first = serve(Settings(data_dir=tmp_path, metrics={"port": 0}))
    second = serve(Settings(data_dir=tmp_path, metrics={"port": first.port}), "learner")

    targets = json.loads((tmp_path / "targets.json").read_text())
    assert second.port > first.port
    assert [(t["targets"], t["labels"]["role"]) for t in targets] == [
        ([first.address], "worker"),
        ([second.address], "learner"),
    ]
    assert all(name == "role" or name.startswith("__") for t in targets for name in t["labels"]), "pids make no series"
    first.close()
    second.close()
    assert json.loads((tmp_path / "targets.json").read_text()) == []


def test_the_entry_of_a_dead_process_goes_with_the_next_registration(mine, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = {"targets": ["127.0.0.1:9"], "labels": {"role": "ingest", "__meta_headrace_pid": str(dead.pid)}}
    (tmp_path / "targets.json").write_text(json.dumps([stale]))

    server = serve(mine)

    assert [t["targets"] for t in json.loads((tmp_path / "targets.json").read_text())] == [[server.address]]
    server.close()


def test_many_register_at_once_and_none_is_lost(mine, tmp_path):
    (tmp_path / "targets.json").write_text("not json: a crash of an older release")
    with ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda n: serve(mine, f"role-{n}"), range(16)))

    targets = json.loads((tmp_path / "targets.json").read_text())
    for server in servers:
        server.close()

    assert {t["labels"]["role"] for t in targets} == {f"role-{n}" for n in range(16)}


def test_a_host_that_is_not_ours_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match=r"metrics.host = '203.0.113.1'.*choose another port"):
        serve(Settings(data_dir=tmp_path, metrics={"host": "203.0.113.1"}))
