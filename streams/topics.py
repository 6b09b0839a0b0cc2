"""Every topic of headrace: its partitions, how it is cleaned, how long it is kept, how large its messages may be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from headrace.streams import kafka
from headrace.streams.errors import BrokerError, TopicsError
from headrace.streams.settings import Settings

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Topic:
    """`ours`: headrace alone writes it, and its settings are as here; a shop's topic may differ.

    `fixed`: the number of partitions means something, and no role starts where it differs.
    """

    name: str  # with the prefix
    partitions: int
    ours: bool
    fixed: bool
    config: dict[str, str] = field(default_factory=dict)


def table(settings: Settings) -> list[Topic]:
    """All topics as the settings want them, the shop's first."""
    t = settings.topics
    usual, large = {"max.message.bytes": str(t.max_message_bytes)}, {"max.message.bytes": str(t.large_message_bytes)}
    # A segment is deleted when its newest record is old enough: the longer it is written to, the longer its oldest one
    # outlives the retention.
    kept = {"cleanup.policy": "delete", "retention.ms": str(t.retention), "segment.ms": str(t.segment)}
    dead = {**kept, "retention.ms": str(t.dead_letters_retention)}
    compact = {"cleanup.policy": "compact"}
    # Kafka cleans no segment that is written to, and none in which little is overwritten, unless told by when.
    prompt = {
        **compact,
        "segment.ms": str(t.compaction_lag),
        "max.compaction.lag.ms": str(t.compaction_lag),
        "delete.retention.ms": str(t.tombstones),
    }
    # Read whole at every start: small segments, cleaned often, so that little of what is overwritten is read again.
    # Each transaction leaves a marker, and the cleaner keeps markers for delete.retention.ms: by default for a day.
    reread = {**prompt, "segment.bytes": str(33_554_432), "min.cleanable.dirty.ratio": "0.3"}
    few_keys = {**reread, "segment.bytes": str(4_194_304)}

    def shop(name: str, partitions: int, config: dict[str, str]) -> Topic:
        return Topic(settings.topic(name), partitions, False, False, {**config, **usual})

    def ours(name: str, partitions: int, config: dict[str, str], *, fixed: bool = True) -> Topic:
        return Topic(settings.topic(name), partitions, True, fixed, {**config, **large})

    return [
        shop("events", t.events_partitions, kept),
        shop("items", t.requests_partitions, compact),
        shop("requests", t.requests_partitions, kept),
        shop("rules", 1, compact),
        shop("identities", t.requests_partitions, kept),
        shop("erasures", t.requests_partitions, prompt),
        ours("recommendations", t.interactions_partitions, kept, fixed=False),
        ours("recommendations-shadow", t.interactions_partitions, kept, fixed=False),
        ours("dead-letters", 1, dead, fixed=False),
        ours("interactions", t.interactions_partitions, kept),
        ours("users-changelog", t.interactions_partitions, reread),
        ours("ingest-offsets", 1, few_keys),  # one partition: a source finds its position whatever else changes
        ours("item-vectors", 1, reread),
        ours("transitions", 1, kept),  # one partition: one total order for the learner
        ours("policy-versions", 1, reread),
        ours("policy-commands", 1, kept),  # what people want of the learner, in order
        ours("encoder-versions", 1, few_keys),  # every announcement has a key of its own: none is ever lost
    ]


def create(settings: Settings) -> list[str]:
    """Creates what is missing and waits until it can be written; returns the names created.

    What exists is left as it is (see `check`). Raises BrokerError where Kafka cannot be reached, TopicsError where it
    refuses.
    """
    client = kafka.admin(settings)
    wanted = table(settings)
    known = _partitions(client, settings)
    missing = [topic for topic in wanted if topic.name not in known]
    if not missing:
        return []
    new = [
        NewTopic(topic.name, topic.partitions, settings.topics.replication_factor, config=topic.config)
        for topic in missing
    ]
    for name, future in client.create_topics(new, operation_timeout=_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicsError(f"topic {name} cannot be created: {error.args[0].str()}") from error
    _wait_for_leaders(client, settings, {topic.name for topic in missing})
    return [topic.name for topic in missing]


def check(settings: Settings) -> list[str]:
    """How the topics differ from the settings, one line each with the cure; empty where all is well."""
    client = kafka.admin(settings)
    known = _partitions(client, settings)
    wanted = table(settings)
    differences = [line for topic in wanted if (line := _shape(topic, known))]
    configs = _configs(client, [topic.name for topic in wanted if topic.name in known])
    for topic in wanted:
        if topic.name in configs:
            differences += _settings_that_differ(topic, configs[topic.name], settings)
    return differences


def compacted(settings: Settings, name: str) -> bool:
    """Whether a topic keeps the last message of every key for ever: what it does not hold is then known to be gone."""
    topic = settings.topic(name)
    return _configs(kafka.admin(settings), [topic])[topic].get("cleanup.policy") == "compact"


def configured(settings: Settings, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """{topic, without the prefix: Kafka's own settings of it, by their names there}."""
    found = _configs(kafka.admin(settings), [settings.topic(name) for name in names])
    return {name: found[settings.topic(name)] for name in names}


def partitions(settings: Settings, name: str) -> int:
    """How many a topic has. Raises BrokerError where Kafka does not answer, TopicsError where it is missing."""
    topic, known = settings.topic(name), _partitions(kafka.admin(settings), settings)
    if topic not in known:
        raise TopicsError(f"topic {topic} is missing: create it with `headrace topics create`")
    return known[topic]


def require(settings: Settings, *, wait: bool = True) -> None:
    """For the start of a role: waits for Kafka, then raises TopicsError where it could not work with the topics found.

    That is where one is missing, or has another number of partitions: the partition of a user follows from it. A
    command does not `wait`: it raises BrokerError where Kafka does not answer.
    """
    client = kafka.admin(settings)
    while True:
        try:
            known = _partitions(client, settings)
            break
        except BrokerError as error:
            if not wait:
                raise
            kafka.say_outage(str(error))
    wrong = [line for topic in table(settings) if (line := _shape(topic, known))]
    if wrong:
        more = f" (and {len(wrong) - 1} more: see `headrace topics check`)" if len(wrong) > 1 else ""
        raise TopicsError(wrong[0] + more)


def reach(settings: Settings) -> None:
    """For commands that only read. Raises BrokerError where Kafka does not answer."""
    _partitions(kafka.admin(settings), settings)


def _shape(topic: Topic, known: dict[str, int]) -> str | None:
    found = known.get(topic.name)
    if found is None:
        return f"topic {topic.name} is missing: create it with `headrace topics create`"
    if topic.fixed and found != topic.partitions:
        return (
            f"topic {topic.name} has {found} partitions and the settings say {topic.partitions}: {_cure(topic, found)}"
        )
    return None


def _cure(topic: Topic, found: int) -> str:
    if topic.name.endswith(("interactions", "users-changelog")):
        return (
            f"the number is fixed when the topics are created, so set topics.interactions_partitions = {found},"
            f" or choose another topics.prefix"
        )
    return "delete the topic and run `headrace topics create`, or choose another topics.prefix"


def _settings_that_differ(topic: Topic, found: dict[str, str], settings: Settings) -> list[str]:
    lines = []
    for name, value in topic.config.items():
        if found.get(name) == value or (not topic.ours and name != "cleanup.policy"):
            continue
        lines.append(
            f"topic {topic.name} has {name}={found.get(name)} and the settings say {value}: kafka-configs.sh"
            f" --bootstrap-server {settings.bootstrap} --alter --topic {topic.name} --add-config {name}={value}"
        )
    return lines


def _partitions(client: AdminClient, settings: Settings) -> dict[str, int]:
    """{topic: partitions} of all topics there are."""
    try:
        found = client.list_topics(timeout=_TIMEOUT_S).topics
    except KafkaException as error:
        raise BrokerError(unreachable(settings, error)) from error
    return {name: len(topic.partitions) for name, topic in found.items()}


def unreachable(settings: Settings, error: KafkaException) -> str:
    return (
        f"Kafka at {settings.bootstrap} does not answer ({error.args[0].str()}):"
        f" start it (`headrace broker` starts one here), or set bootstrap.servers under [kafka]"
    )


def _wait_for_leaders(client: AdminClient, settings: Settings, names: set[str]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        topics = client.list_topics(timeout=_TIMEOUT_S).topics
        found = [topics[name] for name in names if name in topics]
        if len(found) == len(names) and all(p.leader >= 0 for topic in found for p in topic.partitions.values()):
            return
        time.sleep(0.02)
    raise TopicsError(
        f"the topics created have no leader after {_TIMEOUT_S:g} s: look at the brokers of {settings.bootstrap}"
    )


def _configs(client: AdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    found: dict[str, dict[str, str]] = {}
    for resource, future in client.describe_configs(resources, request_timeout=_TIMEOUT_S).items():
        try:
            entries: dict[str, Any] = future.result()
        except KafkaException as error:
            raise TopicsError(f"the settings of topic {resource.name} cannot be read: {error.args[0].str()}") from error
        found[resource.name] = {name: entry.value for name, entry in entries.items()}
    return found
