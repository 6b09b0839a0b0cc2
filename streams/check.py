"""`headrace check`: what is in force, and whether Kafka, the topics and the models are there for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaException

from headrace.export import artifact, defaults
from headrace.streams import kafka, start, topics, user_artifact
from headrace.streams.configuration import effective
from headrace.streams.errors import ArtifactMismatch, HeadraceError
from headrace.streams.settings import Settings

Say = Callable[[str], None]
Problem = str


def check(settings: Settings, *, say: Say, complain: Say) -> bool:
    """Says the settings and what is well, complains about each problem in one line with its cure; True if all is well.

    Missing default models are built (a minute, once a machine), as the roles would do.
    """
    for key, value in effective(settings).items():
        say(f"{key} = {value}")
    problems = 0
    parts = (
        ("kafka", _kafka),
        ("topics", _topics),
        ("text encoder", _text),
        ("user encoder", _user),
        ("policy", _policy),
    )
    for part, look in parts:
        if part == "topics" and problems:
            continue  # Kafka was not reached: the same line again
        found, well = look(settings)
        for problem in found:
            complain(f"{part}: {problem}")
        if not found:
            say(f"# {part}: {well}")
        problems += len(found)
    return problems == 0


def _kafka(settings: Settings) -> tuple[list[Problem], str]:
    try:
        brokers = kafka.admin(settings).list_topics(timeout=10).brokers
    except HeadraceError as error:
        return [str(error)], ""
    except KafkaException as error:
        return [topics.unreachable(settings, error)], ""
    return [], f"{len(brokers)} broker{'s' if len(brokers) != 1 else ''} at {settings.bootstrap}"


def _topics(settings: Settings) -> tuple[list[Problem], str]:
    try:
        return topics.check(settings), "as the settings want them"
    except HeadraceError as error:
        return [str(error)], ""


def _text(settings: Settings) -> tuple[list[Problem], str]:
    return _model("catalogue.text_model", settings.catalogue.text_model, defaults.ensure_text, "text")


def _user(settings: Settings) -> tuple[list[Problem], str]:
    key, name, text = "encoder.artifact", settings.encoder.artifact, settings.catalogue.text_model
    found, well = _model(key, name, partial(defaults.ensure_user, text=text), "user")
    if not found:
        try:
            user_artifact.load(defaults.ensure_user(name, text=text), text=artifact.load(defaults.ensure_text(text)))
        except (ArtifactMismatch, artifact.ArtifactError) as error:
            return [f"{key} = {name!r}: {error}"], ""
    return found, well


def _policy(settings: Settings) -> tuple[list[Problem], str]:
    try:
        return [], f"begins from {start.check(settings)}"
    except HeadraceError as error:
        return [str(error)], ""


def _model(key: str, name: str, ensure: Callable[[str], object], kind: artifact.Kind) -> tuple[list[Problem], str]:
    try:
        loaded = artifact.load(str(ensure(name)), kind)
    except (artifact.ArtifactError, OSError) as error:
        return [f"{key} = {name!r}: {error}"], ""
    return [], f"{loaded.manifest.version} in {loaded.path}"
