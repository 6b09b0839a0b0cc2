"""What a worker decides with: encoders, catalogue and policies, loaded once a process and shared by its partitions."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.export.defaults import ensure_text, ensure_user
from headrace.streams.encoder import UserEncoder
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.settings import Settings
from headrace.streams.texts import TextEncoder


@dataclass(frozen=True)
class Models:
    encoder: UserEncoder
    items: ItemStore
    policies: Policies
    recommender: Recommender


def load_models(settings: Settings) -> Models:
    """Builds the default artifacts where they are not cached yet. Raises what the artifacts' readers raise."""
    encoder = UserEncoder(
        ensure_user(settings.encoder.artifact),
        cache_bytes=settings.encoder.cache_bytes,
        window=settings.worker.history,
        threads=settings.encoder.threads,
    )
    texts = TextEncoder(ensure_text(settings.catalogue.text_model), threads=settings.catalogue.threads)
    items = ItemStore(encoder.project, dim=encoder.dim)
    policies = Policies(settings, items, dim=encoder.dim)
    recommender = Recommender(settings, items=items, policies=policies, encoder=encoder, texts=texts)
    return Models(encoder, items, policies, recommender)
