"""The usual Faust app doing the same work: one event at a time, a table, a send. Run by benchmarks/standard_load.py.

It gets headrace's own state format, encoder, candidates, policy (as last published) and message, so that only the way
of working differs. It promises less: at-least-once, no outcomes, no propensities remembered, nothing learned.
"""

from __future__ import annotations

import hashlib
import os
import time

import faust
import msgspec
from load import settings_of

from headrace.export.names import type_code
from headrace.streams.describe import Ask
from headrace.streams.models import broadcast, load_models
from headrace.streams.records import item_key
from headrace.streams.state import UserState, short_hash

settings = settings_of(os.environ["DATA_DIR"], os.environ["BOOTSTRAP"])
PARTITIONS = settings.topics.events_partitions
app = faust.App(
    os.environ["APP"],
    broker=f"kafka://{settings.bootstrap}",
    store="memory://",
    web_enabled=False,
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
    broker_max_poll_records=2_000,
    datadir=os.environ["DATA_DIR"],
)
raw = faust.Schema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
events = app.topic(os.environ["EVENTS"], schema=raw)
slates = app.topic(os.environ["APP"] + "-recommendations", schema=raw, partitions=PARTITIONS)
users = app.Table("users", partitions=PARTITIONS, key_type=bytes, value_type=bytes, schema=raw)
models = load_models(settings)
done = 0


def load() -> None:
    """The catalogue and the policy versions, as a worker reads them at its start."""
    reader = broadcast(settings)
    reader.start()
    reader.wait_caught_up()
    reader.close()
    for name, record in reader.take():
        models.apply(name, record)
    models.items.settle()


@app.agent(events)
async def on_event(stream: faust.StreamT) -> None:
    global done
    async for message in stream.events():
        event = msgspec.json.decode(message.value)
        user = event["user_id"]
        packed = users.get(message.key)
        state = UserState.unpack(packed) if packed else UserState()
        if not state.see(short_hash("e", event["event_id"]), horizon=settings.worker.seen):
            continue
        state.append(item_key(event["item_id"]), type_code=type_code(event["type"]), ts=event["ts"], window=50)
        digest = hashlib.blake2b(event["event_id"].encode(), digest_size=20).digest()
        ask = Ask(
            user_id=user, state=state, arm=models.policies.live.shares.arm(user),
            trigger_kind="event", trigger_id=event["event_id"], ts=event["ts"], sent_ms=event["ts"],
            placement="default", context={}, recommendation=digest[:12],
            stream=int.from_bytes(digest[12:], "little"), request=None,
        )  # fmt: skip
        decision = models.recommender.decide([ask], now=event["ts"])[0]
        users[message.key] = state.pack()
        if decision is not None:
            await slates.send(key=message.key, value=decision.message)
        done += 1


@app.task
async def create_topic() -> None:
    await slates.declare()


@app.timer(1.0)
async def report() -> None:
    print(f"done {time.time():.3f} {done}", flush=True)


if __name__ == "__main__":
    load()
    faust.Worker(app, loglevel="WARN", quiet=True, redirect_stdouts=False).execute_from_commandline()
