"""`headrace erase USER`: the erasure message, written for the shop, and the wait until it is applied."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from confluent_kafka import KafkaException, Producer

from headrace.streams import kafka, topics
from headrace.streams.errors import HeadraceError
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.people import subject
from headrace.streams.people.expiry import Lapses
from headrace.streams.settings import Settings

Look = Callable[[set[str]], dict[str, subject.Told]]
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
    lapses, look = Lapses(settings), partial(subject.of_changelog, settings)
    names = reached(look, user, lapses, now)  # before aliases go
    _write(settings, user, message)
    yield f"asked for {user} to be forgotten, up to {subject.time_of(now)}"
    if len(names) > 1:
        yield f"and with him what is the same person: {', '.join(sorted(names - {user}))}"
    deadline = time.monotonic() + wait_s
    while not is_done(look, user, names, now):
        if time.monotonic() > deadline:
            raise HeadraceError(
                f"no worker has erased {user} after {wait_s:g} s: see that ingest and workers run; the message stays"
                " and is applied when they do"
            )
        time.sleep(_LOOK_EVERY_S)
        names |= reached(look, user, lapses, now)  # an identity may have been under way
    yield "done: his state, open decisions and aliases are gone, late events of his are dropped"
    found = subject.describe(settings, user, also=names)
    for topic, records in found["records"].items():
        if records["count"]:
            until = subject.time_of(records["gone_by"])
            yield f"{topic}: {records['count']:,} records remain until {until} at the latest"
    yield f"the changelog's bytes: {found['states_leave'].removeprefix('with an erasure, ')}"
    yield "the shop's own topics are the shop's; its message in `erasures` holds the id until it writes a null there"


def reached(look: Look, user: str, lapses: Lapses, now_ms: int) -> set[str]:
    """The ids that an erasure of this one, at `now_ms`, reaches: whom it was merged into, and all that were merged into
    these. Who is erased already may be a new user since."""
    found = set[str]()
    chain, waiting = {user}, {user}
    while waiting:
        found |= waiting
        following = set[str]()
        for name, told in look(waiting).items():
            if told.erased is not None and told.erased >= now_ms:
                continue
            if told.state is not None and told.state.notes is not None:
                following.update(told.state.notes.merged)
            if name in chain and told.alias is not None:
                then = lapses.of_alias(told.alias)
                if then is None or then > lapses.now(now_ms):
                    chain.add(told.alias.user_id)
                    following.add(told.alias.user_id)
        waiting = following - found
    return found


def is_done(look: Look, user: str, names: set[str], ts: int) -> bool:
    """Whether all of these ids are erased up to `ts` (Unix ms), or nothing is held of them; `user` is erased."""
    told = look(names)
    erased = {name for name, said in told.items() if said.erased is not None and said.erased >= ts}
    return user in erased and not any(told[name].state or told[name].alias for name in names - erased)


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
