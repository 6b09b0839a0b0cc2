"""Settings: which layer wins, and what a person reads when one of them is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from headrace.streams.configuration import effective, load
from headrace.streams.errors import SettingsError
from headrace.streams.settings import EventType, Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    Path("headrace.toml").write_text(text, "utf-8")
    return Path("headrace.toml")


def test_without_a_file_the_defaults_hold():
    assert load() == Settings()


def test_the_file_of_the_current_folder_is_read_and_the_environment_wins(monkeypatch):
    write('data_dir = "state"\n[worker]\nseen = 5\nhistory = 9\n')
    monkeypatch.setenv("HEADRACE_WORKER__SEEN", "7")
    monkeypatch.setenv("HEADRACE_DATA_DIR", "/var/lib/headrace")

    found = load()

    assert (found.worker.seen, found.worker.history, found.data_dir) == (7, 9, Path("/var/lib/headrace"))


def test_the_command_line_wins_over_both(monkeypatch):
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "kafka:9092")
    assert load().bootstrap == "kafka:9092"
    assert load(overrides={"kafka": {"bootstrap.servers": "here:1"}}).bootstrap == "here:1"


def test_kafka_properties_by_any_spelling(monkeypatch):
    write('[kafka]\nsasl.username = "me"\n"socket.keepalive.enable" = true\n"socket.timeout.ms" = 9000\n')
    monkeypatch.setenv("HEADRACE_KAFKA__SASL_PASSWORD", "hush")

    assert load().kafka == {
        "sasl.username": "me",
        "sasl.password": "hush",
        "socket.keepalive.enable": "true",
        "socket.timeout.ms": "9000",
    }


def test_values_built_by_hand_know_no_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_WORKER__SEEN", "7")
    assert Settings().worker.seen == 32


def test_event_types_change_the_built_in_ones_and_add_new_ones():
    found = load(write('[event_types.click]\nreward = 3\n[event_types.wishlist]\nreward = 2\nwindow = "2d"\n'))

    assert found.event_types["click"] == EventType(reward=3)
    assert found.event_types["purchase"] == Settings().event_types["purchase"]
    assert found.event_types["wishlist"].window == 2 * 86_400_000


def test_tables_and_lists_can_come_from_the_environment_as_json(monkeypatch):
    monkeypatch.setenv("HEADRACE_ARMS__SHARES", '{"policy": 0.5, "random": 0.5}')
    monkeypatch.setenv("HEADRACE_CONTEXT__DEVICE__VALUES", '["mobile", "web"]')

    found = load()

    assert found.arms.shares == {"policy": 0.5, "random": 0.5}
    assert found.context["device"].values == ("mobile", "web")
    assert found.placements["default"].k == 10


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[topics]\nprefx = 'x'\n", r"topics.prefx = \"x\": there is no such setting; did you mean topics.prefix\?"),
        ("[wrker]\nseen = 1\n", r"wrker = .*: there is no such setting; did you mean worker\?"),
        ("[worker]\nfloor = 0.1\n", r"worker.floor = 0.1: there is no such setting; did you mean policy.floor\?"),
        ("[worker]\nseen = 0\n", r"worker.seen = 0: input should be greater than or equal to 1"),
        ("[worker]\nseen = 'many'\n", r"worker.seen = \"many\": input should be a valid integer"),
        ("[ingest]\ntick = '3 weeks'\n", r'ingest.tick = "3 weeks": write a duration such as "250ms"'),
        ("[event_types.x]\nitem = 'optionl'\n", r"event_types.x.item = .*'optional'.*; did you mean 'optional'\?"),
        ("[policy]\nname = 'linucbb'\n", r"policy.name = \"linucbb\": unknown policy; choose one of random"),
        ("[arms.shares]\npolicy = 0.5\n", r"arms = .*: shares sum to 0.5: make them sum to 1"),
        (
            "[policy]\ndiscount = 0.99\n",
            r"neural_linear has neither discount nor change_detector: serve a linear policy",
        ),
        ("[topics]\nprefix = 'a b'\n", r"topics.prefix = \"a b\": string should match pattern"),
        ("[worker\n", r"headrace.toml is no valid TOML: .*line 1.*mend that line"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_cure(text, line):
    with pytest.raises(SettingsError, match=line) as told:
        load(write(text))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("headrace.toml")


def test_every_mistake_is_told_at_once():
    with pytest.raises(SettingsError) as told:
        load(write("[worker]\nseen = 0\nhistory = 1\n"))
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("HEADRACE_WRKER__SEEN", "1", r"HEADRACE_WRKER__SEEN, which is no setting.*did you mean HEADRACE_WORKER\?"),
        ("HEADRACE_WORKER__SEEEN", "1", r"environment: HEADRACE_WORKER__SEEEN = \"1\".*did you mean worker.seen\?"),
        ("HEADRACE_WORKER__SEEN", "x", r"environment: HEADRACE_WORKER__SEEN = \"x\": input should be a valid integer"),
        ("HEADRACE_ARMS__SHARES", "{", r"error parsing value for field .arms.* of the environment: write a value in"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(monkeypatch, name, value, line):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=line):
        load()


def test_a_file_that_is_named_must_exist():
    with pytest.raises(
        SettingsError, match=r"there is no settings file nope\.toml: give an existing one with --config"
    ):
        load(Path("nope.toml"))


def test_a_file_that_is_not_utf8_is_one_line():
    Path("headrace.toml").write_bytes(b'data_dir = "\xff"')
    with pytest.raises(SettingsError, match=r"headrace\.toml is not UTF-8"):
        load()


def test_what_is_in_force_is_shown_as_toml_with_secrets_masked():
    kafka = {"sasl.username": "me", "sasl.password": "hush", "ssl.key.password": "hush"}
    found = Settings(kafka=kafka, arms={"shares": {"policy": 1.0}})

    lines = [f"{key} = {value}" for key, value in effective(found).items()]
    shown = tomllib.loads("\n".join(lines))

    assert shown["kafka"] == {"sasl.username": "me", "sasl.password": "***", "ssl.key.password": "***"}
    assert shown["worker"]["max_trigger_age"] == "10m"
    assert shown["event_types"]["purchase"]["window"] == "7d"
    assert "hush" not in "\n".join(lines) + repr(found)
    shown["kafka"] = kafka
    assert Settings(**shown) == found, "what is shown can be used as a file"
