"""`headrace run` and `headrace broker` as a person starts them: real processes, watched over, ended by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.streams.configuration import as_environment, load
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from tests.integration.test_broker import gone

HEADRACE = [sys.executable, "-m", "headrace.streams.cli"]


def headrace(*arguments: str, settings: Settings | None = None, **options) -> subprocess.Popen[str]:
    env = {**os.environ, **(as_environment(settings) if settings else {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*HEADRACE, *arguments], env=env, text=True, **{**pipes, **options})


def test_child_processes_get_the_very_settings(monkeypatch):
    mine = Settings(
        kafka={"bootstrap.servers": "b:1", "sasl.password": "x"},
        event_types={"wish": {"reward": 2}},
        context={"device": {"values": ["web"]}},
    )
    for name, value in as_environment(mine).items():
        monkeypatch.setenv(name, value)
    assert load(Path(os.devnull)) == mine


@pytest.mark.kafka
@pytest.mark.crash
def test_a_killed_role_is_started_again_and_all_end_with_a_signal(settings, wait_for):
    mine = settings()
    lines: list[tuple[str, str]] = []
    with Supervisor(mine, ["ingest"], output=lambda name, line: lines.append((name, line))) as roles:
        wait_for(roles.ready, deadline=60)
        first = roles.pids()["ingest"]
        command = Path(f"/proc/{first}/cmdline").read_bytes().split(b"\0")
        assert command[command.index(b"--role") + 1] == b"ingest"

        os.kill(first, signal.SIGKILL)

        wait_for(lambda: roles.pids().get("ingest", first) != first and roles.ready(), deadline=60)
        second = roles.pids()["ingest"]
        assert roles.restarts() == {"ingest": 1}
        roles.check()
    assert gone(first) and gone(second)
    assert json.loads((mine.data_dir / "targets.json").read_text()) == [], "a drained role signs off"


@pytest.mark.crash
def test_a_role_that_cannot_start_stops_the_whole_with_its_line(tmp_path, wait_for):
    mine = Settings(data_dir=tmp_path, metrics={"host": "203.0.113.1"})  # not an address of this machine
    with Supervisor(mine, ["ingest"], output=lambda *_: None) as roles:
        wait_for(lambda: roles.error, deadline=60)
        with pytest.raises(SettingsError, match=r"^metrics\.host = '203\.0\.113\.1'.*choose another port"):
            roles.check()


@pytest.mark.crash
def test_five_deaths_before_it_was_ready_stop_the_whole(settings, wait_for):
    mine = settings(create=False)
    with Supervisor(mine, ["ingest"], output=lambda *_: None) as roles:
        wait_for(lambda: roles.error, deadline=120)
        with pytest.raises(HeadraceError, match=r"died 5 times before it was ready \(status 1\): .*topics create"):
            roles.check()
        assert roles.restarts() == {"ingest": 4}


@pytest.mark.kafka
@pytest.mark.crash
def test_roles_end_when_the_one_that_watches_them_is_killed(settings, wait_for):
    mine = settings()
    parent = headrace("run", "--role", "ingest,ingest", "--workers", "2", settings=mine, stdout=subprocess.DEVNULL)
    target = mine.data_dir / "targets.json"
    wait_for(target.exists, deadline=60)
    pid = int(wait_for(lambda: json.loads(target.read_text()))[0]["labels"]["__meta_headrace_pid"])
    assert pid != parent.pid

    parent.kill()
    parent.communicate()

    wait_for(lambda: gone(pid), deadline=20)


@pytest.mark.kafka
def test_run_without_topics_is_one_line(settings):
    run = headrace("run", "--role", "ingest,learner", settings=settings(create=False))
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert said.count("\n") == 1 and "create it with `headrace topics create`" in said


@pytest.mark.kafka
@pytest.mark.crash
def test_the_broker_command_prints_its_address_and_ends_with_a_signal(tmp_path, wait_for):
    command = headrace("broker", "--data-dir", str(tmp_path / "broker"))
    assert command.stdout is not None
    address = command.stdout.readline().strip()
    mine = Settings(data_dir=tmp_path, kafka={"bootstrap.servers": address})

    created = headrace("topics", "create", settings=mine)
    assert "created headrace.events\n" in created.communicate(timeout=60)[0]
    assert created.returncode == 0
    checked = headrace("topics", "check", settings=mine)
    assert checked.communicate(timeout=60) == ("all 17 topics are as the settings want them\n", "")

    command.send_signal(signal.SIGTERM)
    assert command.communicate(timeout=30) == ("", "")
    assert command.returncode == 0
