"""A partition of the worker without Kafka: entries in, what came of them out. For tests of engines."""

import itertools

import msgspec

from headrace.streams.records import (
    Batch,
    Event,
    Request,
    decode_transitions,
)

T0 = 1_790_000_000_000
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TITLES = {
    "shoes": ["Trail running shoe", "Road running shoe", "Waterproof hiking boot", "Leather walking shoe"],
    "coffee": ["Espresso coffee beans", "Dark roast ground coffee", "Decaf coffee pods", "Filter coffee blend"],
    "garden": ["Steel garden spade", "Garden watering can", "Pruning shears", "Terracotta flower pot"],
    "toys": ["Wooden toy train", "Plush teddy bear", "Board game for four", "Building blocks set"],
}
ITEMS = [(f"{category}-{i}", category, title) for category, titles in TITLES.items() for i, title in enumerate(titles)]
PLACEMENTS = {"default": {"k": 10}, "home": {"k": 3}}  # policies are made for so many context columns
_numbers = itertools.count()


class Log:
    """A partition of `interactions`: numbers records, applies and accepts them, keeps what came out."""

    def __init__(self, engine):
        self.engine, self.offset = engine, -1
        self.slates, self.records, self.effects = [], [], None

    def write(self, *entries, at=None, tick=False, expect_failure=False):
        self.offset += 1
        at = T0 if at is None else at
        batch = Batch("events/0", at, entries=list(entries), tick=tick)
        # what is applied is what was on the wire
        batch = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
        self.effects = self.engine.apply(batch, self.offset)
        self.engine.accept(self.effects)
        assert expect_failure or not self.effects.failed
        slates = [msgspec.json.decode(message) for _, message in self.effects.recommendations]
        self.slates += slates
        self.records += [r for raw in self.effects.transitions for r in decode_transitions(raw).records]
        return slates

    def of(self, kind):
        return [r for r in self.records if isinstance(r, kind)]


def event(kind="view", *, user="u", item=None, at=T0, **more):
    return Event(more.pop("id", f"e{next(_numbers)}"), user, kind, at, at, item_id=item, **more)


def ids(slate):
    return [item["item_id"] for item in slate["items"]]


def counted(log, *name):
    return log.effects.counts[name]


def request(*, user="u", at=T0, **more):
    return Request(more.pop("id", f"q{next(_numbers)}"), user, at, at, **more)
