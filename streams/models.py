"""What a worker decides with: encoders, catalogue and policies, loaded together and shared by its partitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.streams import contents, encoders
from headrace.streams.broadcast import Broadcast
from headrace.streams.encoder import UserEncoder
from headrace.streams.encoders import Encoders
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import decode_policy_version
from headrace.streams.rules.book import heard
from headrace.streams.settings import Settings
from headrace.streams.texts import TextEncoder

RULES = "rules"


@dataclass
class Models:
    """One set. All that depends on the encoders hangs here, so that another set can take its place between two
    records (swap.py)."""

    encoders: Encoders
    encoder: UserEncoder
    items: ItemStore
    policies: Policies
    recommender: Recommender
    encoded: dict[int, str] = field(default_factory=dict)  # by partition: by which text encoder all items are encoded

    def complete(self, *, partitions: int) -> bool:
        """Whether the catalogue has encoded every item, of all partitions of `items`, with the text encoder of this
        set."""
        wanted = self.encoders.text_version
        return all(self.encoded.get(partition) == wanted for partition in range(partitions))

    def apply(self, topic: str, record: Any) -> str | None:
        """Takes one broadcast record; returns what it was to the catalogue: new, changed, removed, else None."""
        if isinstance(record, contents.Encoded):
            self.encoded[record.partition] = record.text_version
            return None
        if topic == "item-vectors":
            return self.items.apply(record)
        if topic == "policy-versions":
            self.policies.apply(record)
        return None


def load_models(settings: Settings, found: Encoders | None = None) -> Models:
    """Without `found` the settings' own artifacts: the default ones are built where they are not cached yet.

    Raises what the artifacts' readers raise.
    """
    found = found or encoders.of_settings(settings)
    encoder = UserEncoder(
        found.user,
        cache_bytes=settings.encoder.cache_bytes,
        window=settings.worker.history,
        threads=settings.encoder.threads,
    )
    texts = TextEncoder(found.text, threads=settings.catalogue.threads)
    items = ItemStore(encoder.tower, text_version=texts.version)
    policies = Policies(settings, items, dim=encoder.dim, encoder_version=encoder.version)
    recommender = Recommender(settings, items=items, policies=policies, encoder=encoder, texts=texts)
    recommender.encoder_serial = found.serial
    return Models(found, encoder, items, policies, recommender)


def broadcast(settings: Settings) -> Broadcast:
    """What a set of models is fed with, the announcements of the next one, and the rules, which outlive both."""
    return Broadcast(
        settings,
        {
            "item-vectors": contents.decode,
            "policy-versions": lambda message: decode_policy_version(message.value() or b""),
            encoders.TOPIC: encoders.decode,  # None for what is no announcement
            RULES: heard,
        },
        nulls=(RULES,),
    )
