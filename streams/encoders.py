"""Which encoders are to serve: announcements on `encoder-versions`, and where their artifacts lie.

An announcement has a serial number, its place in the topic from 1 on; the newest one whose artifacts can be read is in
force. Before any, and where none can be read, the settings' own artifacts serve under the number 0.
"""

from __future__ import annotations

import getpass
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka import Producer

from headrace.export import artifact
from headrace.export.defaults import ensure_text, ensure_user
from headrace.streams import kafka, topics, user_artifact
from headrace.streams.errors import ArtifactMismatch, HeadraceError
from headrace.streams.records import Announcement, decode_announcement, encode_announcement
from headrace.streams.settings import Settings

log = logging.getLogger("headrace.encoders")
TOPIC = "encoder-versions"
_WAIT_S = 10.0


@dataclass(frozen=True)
class Encoders:
    """Artifacts that were found and fit each other: folders, versions, and by which announcement they serve."""

    serial: int
    user: Path
    text: Path
    user_version: str
    text_version: str

    def same(self, other: Encoders) -> bool:
        return (self.user_version, self.text_version) == (other.user_version, other.text_version)


def decode(message: kafka.Message) -> tuple[int, Announcement] | None:
    """(serial, announcement) of one record of the topic; None, with a warning, for what is none."""
    try:
        return message.offset() + 1, decode_announcement(message.value() or b"")
    except msgspec.DecodeError as error:
        log.warning("%s@%s is no announcement and is passed over: %s", TOPIC, message.offset(), error)
        return None


def history(settings: Settings) -> list[tuple[int, Announcement]]:
    """All announcements, oldest first."""
    messages: list[kafka.Message] = []
    kafka.read_to_end(settings, settings.topic(TOPIC), messages.append)
    return [found for message in messages if (found := decode(message)) is not None]


def of_settings(settings: Settings) -> Encoders:
    """Raises ArtifactMismatch, one line, where an artifact cannot be read or built, or the two do not fit."""
    return _found(0, settings.encoder.artifact, settings.catalogue.text_model)


def resolve(serial: int, said: Announcement) -> Encoders:
    """The artifacts that an announcement names. Raises ArtifactMismatch where they are not there, or are others."""
    found = _found(serial, said.user, said.text)
    _check("user", said.user, found.user_version, said.user_version)
    _check("text", said.text, found.text_version, said.text_version)
    return found


def _check(what: str, where: str, found: str, announced: str) -> None:
    if found != announced:
        raise ArtifactMismatch(
            f"the {what} encoder in {where} is {found}, announced was {announced}: put the announced artifact there,"
            " or announce again what is there"
        )


def in_force(settings: Settings, *, refused: Callable[[int, ArtifactMismatch], None]) -> Encoders:
    """The newest announcement that can be served here, else the settings' own. `refused` hears of those that cannot.

    Raises ArtifactMismatch where not even the settings' artifacts can be read.
    """
    for serial, said in reversed(history(settings)):
        try:
            return resolve(serial, said)
        except ArtifactMismatch as error:
            refused(serial, error)
    return of_settings(settings)


def text_of(settings: Settings) -> Path:
    """Where the settings' text encoder lies. Raises ArtifactMismatch."""
    try:
        return artifact.load(ensure_text(settings.catalogue.text_model), "text").path
    except artifact.ArtifactError as error:
        raise ArtifactMismatch(str(error)) from None


def state_dim(settings: Settings) -> int:
    """d of the settings' user encoder; raises as `of_settings` does."""
    return artifact.load(of_settings(settings).user, "user").manifest.dims["state"]


def _found(serial: int, user: str, text: str) -> Encoders:
    try:
        texts = artifact.load(ensure_text(text), "text")
        users = artifact.load(ensure_user(user, text=texts.path), "user")
    except artifact.ArtifactError as error:
        raise ArtifactMismatch(str(error)) from None
    user_artifact.load(users.path, text=texts)
    return Encoders(serial, users.path, texts.path, users.version, texts.version)


# -- announcing -------------------------------------------------------------------------------------------------------


def announce(settings: Settings, *, user: str, text: str | None, who: str | None, why: str) -> tuple[int, Announcement]:
    """Announces the artifact `user` (a folder, or "default") and, where given, another text encoder.

    Returns serial and announcement. Raises HeadraceError, one line, where an artifact cannot be served, or Kafka does
    not take it: nothing has then been announced.
    """
    if not why.strip():
        raise HeadraceError("--why is empty: say in a few words why, for those who read the history")
    topics.require(settings, wait=False)
    of_the_settings(settings)  # what the settings say comes first: a learner that starts later adds nothing to this
    last = history(settings)[-1][1]
    user, text = _absolute(user), _absolute(text) if text is not None else last.text
    return _send(settings, _announcement(_found(0, user, text), user, text, who or getpass.getuser(), why.strip()))


def of_the_settings(settings: Settings) -> int | None:
    """Announces the settings' artifacts where they are others than the settings named the last time, or there was no
    last time; returns the serial, None where there is nothing to say. The learner asks this at each start."""
    user, text = settings.encoder.artifact, settings.catalogue.text_model
    wanted = _announcement(of_settings(settings), user, text, "settings", "the settings name these artifacts")
    last = [said for _, said in history(settings) if said.origin == "settings"][-1:]
    if last and (last[0].user_version, last[0].text_version) == (wanted.user_version, wanted.text_version):
        return None
    return _send(settings, msgspec.structs.replace(wanted, origin="settings"))[0]


def _announcement(found: Encoders, user: str, text: str, who: str, why: str) -> Announcement:
    return Announcement(user, found.user_version, text, found.text_version, who, why, int(time.time() * 1000))


def _absolute(where: str) -> str:
    """Workers stand in other folders than who announces."""
    return str(Path(where).resolve()) if Path(where).is_dir() else where


def _send(settings: Settings, said: Announcement) -> tuple[int, Announcement]:
    offsets: list[int] = []
    producer = Producer(kafka.client_config(settings, enable_idempotence=True))
    kafka.produce(
        producer,
        settings.topic(TOPIC),
        key=uuid.uuid4().hex.encode(),
        value=encode_announcement(said),
        on_delivery=lambda error, message: None if error else offsets.append(message.offset()),
    )
    if producer.flush(_WAIT_S) or not offsets:
        raise HeadraceError(f"Kafka at {settings.bootstrap} took no announcement within {_WAIT_S:g} s: try again")
    return offsets[0] + 1, said
