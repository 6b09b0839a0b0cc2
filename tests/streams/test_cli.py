"""The command line as a script meets it: exit codes, and one line on stderr that says what to do."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.export.artifact import ArtifactError
from headrace.streams import cli, logs, topics
from headrace.streams.configuration import as_environment


@pytest.fixture
def headrace(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_alone_it_lists_its_commands(headrace):
    code, out, err = headrace()
    assert (code, err) == (0, "")
    for command in ("demo", "run", "broker", "topics", "items", "events", "check", "export"):
        assert f"\n  {command} " in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fly"], "No such command 'fly'; see `headrace --help`"),
        (["topics"], "Missing command; see `headrace topics --help`"),
        (["run", "--rolle", "worker"], "No such option: --rolle"),
        (
            ["run", "--role", "werker"],
            "--role werker: there is no role 'werker'; choose from ingest, catalogue, worker",
        ),
        (["items", "load"], "Missing argument 'FILE.{jsonl,csv,parquet}'; see `headrace items load --help`"),
        (["events", "replay", "x.csv", "--speed", "fast"], "--speed fast: give a number of times faster"),
        (["check", "--config", "nope.toml"], "there is no settings file nope.toml"),
        (["demo", "--seconds", "0"], "choose 1 to 86400 seconds"),
    ],
)
def test_wrong_usage_and_settings_are_one_line_and_exit_code_2(headrace, arguments, line):
    code, out, err = headrace(*arguments)
    assert code == 2
    assert out == "" and err.count("\n") == 1
    assert err.startswith("headrace: ") and line in err


def test_a_failure_is_one_line_and_exit_code_1(headrace, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").touch()
    code, out, err = headrace("broker", "--data-dir", "data")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "choose an empty one with --data-dir" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["rules", "list"],
        ["explain", "r-1"],
        ["subject", "u1"],
        ["erase", "u1"],
        ["report", "bias"],
        ["policy", "list"],
        ["policy", "freeze", "policy", "--why", "x"],
        ["topics", "create"],
    ],
)
def test_without_a_broker_every_command_says_what_to_do(headrace, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.5)
    (tmp_path / "headrace.toml").write_text('[kafka]\n"bootstrap.servers" = "127.0.0.1:1"\n')
    code, out, err = headrace(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("headrace: Kafka at 127.0.0.1:1 does not answer") and err.count("\n") == 1
    assert "start it (`headrace broker` starts one here)" in err


def test_a_traceback_is_shown_only_with_debug(headrace, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("headrace.streams.check.check", fail)
    code, _, err = headrace("check")
    assert (code, err.count("\n")) == (1, 1)
    assert err == "headrace: ZeroDivisionError: a mistake of ours; run it again with --debug and report it\n"

    _, _, err = headrace("check", "--debug")
    assert "Traceback" in err and err.endswith("report it\n")


def test_an_error_of_policy_or_export_is_told_as_it_is(headrace, monkeypatch):
    def fail(*_, **__):
        raise ArtifactError("encoder/ is corrupt: export it again")

    monkeypatch.setattr("headrace.streams.check.check", fail)
    assert headrace("check") == (1, "", "headrace: encoder/ is corrupt: export it again\n")


@pytest.mark.kafka
def test_check_says_what_is_in_force_and_what_is_well(settings):
    mine = settings()
    command = [sys.executable, "-m", "headrace.streams.cli", "check", "--config", "/dev/null"]
    environment = {"HOME": str(Path.home()), "PATH": "", **as_environment(mine)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert f'topics.prefix = "{mine.topics.prefix}"' in done.stdout
    for part in (
        "kafka: 1 broker at",
        "topics: as the settings want them",
        "text encoder: sha256:",
        "user encoder: sha",
    ):
        assert f"# {part}" in done.stdout


@pytest.mark.kafka
def test_check_names_each_problem_with_its_cure(headrace, settings, monkeypatch, tmp_path):
    artifact = tmp_path / "encoder"
    artifact.mkdir()
    (artifact / "manifest.json").write_text("{}")
    mine = settings(create=False, encoder={"artifact": str(artifact)})
    for name, value in as_environment(mine).items():
        monkeypatch.setenv(name, value)

    code, _, err = headrace("check")

    assert code == 1
    assert "topics: topic " in err and "create it with `headrace topics create`" in err
    assert "user encoder: encoder.artifact = " in err


def test_a_property_kafka_does_not_know_is_a_wrong_setting(headrace, monkeypatch):
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVER", "x:1")
    code, _, err = headrace("topics", "check")
    assert (code, err.count("\n")) == (2, 1)
    assert '[kafka] No such configuration property: "bootstrap.server"' in err


def test_a_library_that_floods_the_log_is_heard_once_in_a_while():
    seldom = logs.Seldom()
    record = logging.LogRecord("aiokafka.conn", logging.ERROR, "", 0, "away", (), None)
    ours = logging.LogRecord("headrace.worker", logging.ERROR, "", 0, "told", (), None)
    assert [seldom.filter(record) for _ in range(100)].count(True) == 1
    assert all(seldom.filter(ours) for _ in range(100))
