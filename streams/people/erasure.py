"""`headrace erase USER`: the erasure message, written for the shop, and the wait until it is applied."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from confluent_kafka import KafkaException, Producer

from headrace.streams import kafka, topics
from headrace.streams.errors import HeadraceError
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.people import subject
from headrace.streams.settings import Settings

_LOOK_EVERY_S = 0.5


def erase(settings: Settings, user: str, *, wait_s: float) -> Iterator[str]:
    """Writes the message, then says what happened, line by line.

    Raises HeadraceError where Kafka does not take it, or no worker has applied it after `wait_s` seconds.
    """
    topics.require(settings, wait=False)
    now = int(time.time() * 1000)
    message = msgspec.json.encode({"user_id": user, "ts": now})
    refused = Decoder(settings).erasure(message, now_ms=now, sent_ms=now)
    if isinstance(refused, Rejection):
        raise HeadraceError(f"{refused.sentence}: give the user_id as the shop writes it")
    _write(settings, user, message)
    yield f"asked for {user} to be forgotten, up to {subject.time_of(now)}"
    deadline = time.monotonic() + wait_s
    while not subject.is_erased(settings, user, now):
        if time.monotonic() > deadline:
            raise HeadraceError(
                f"no worker has erased {user} after {wait_s:g} s: see that ingest and workers run; the message stays"
                " and is applied when they do"
            )
        time.sleep(_LOOK_EVERY_S)
    yield "done: his state, open decisions and aliases are gone, late events of his are dropped"
    found = subject.describe(settings, user)
    for topic, records in found["records"].items():
        if records["count"]:
            until = subject.time_of(records["gone_by"])
            yield f"{topic}: {records['count']:,} records remain until {until} at the latest"
    yield f"the changelog's bytes: {found['states_leave'].removeprefix('with an erasure, ')}"
    yield "the shop's own topics are the shop's; its message in `erasures` holds the id until it writes a null there"


def _write(settings: Settings, user: str, message: bytes) -> None:
    producer = Producer(kafka.client_config(settings))
    failed: list[str] = []

    def delivered(error: object, _: kafka.Message) -> None:
        if error is not None:
            failed.append(str(error))

    try:
        kafka.produce(producer, settings.topic("erasures"), key=user.encode(), value=message, on_delivery=delivered)
        left = producer.flush(30)
    except KafkaException as error:
        raise HeadraceError(f"the erasure was not written: {error.args[0].str()}") from error
    if failed or left:
        raise HeadraceError(f"the erasure was not written ({failed[0] if failed else 'no answer'}): try again")
