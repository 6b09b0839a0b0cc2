"""Engines on real models, shared by the tests of a module."""

import numpy as np
import pytest

from headrace.streams.engine import Engine
from headrace.streams.models import load_models
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import (
    Item,
)
from headrace.streams.settings import Settings
from tests.engine import ITEMS, PLACEMENTS, Log


@pytest.fixture(scope="module")
def shared():
    """Models with a catalogue of sixteen titles. `Settings()` of a test must not change what they are made of."""
    models = load_models(Settings(placements=PLACEMENTS))
    vectors = models.recommender.texts.encode([title for _, _, title in ITEMS]).astype(np.float16)
    for offset, ((item, category, title), vector) in enumerate(zip(ITEMS, vectors, strict=True)):
        models.items.apply(Item(item, 0, offset, vector.tobytes(), item, 10.0 + offset, category, title=title))
    models.items.settle()
    return models


@pytest.fixture
def make(shared):
    """`make(arms={...})`: an engine with settings, and so policies, of its own on the shared catalogue and encoders."""

    def engine(*, states=None, progress=None, **sections):
        sections["placements"] = PLACEMENTS | sections.get("placements", {})
        settings = Settings(**sections)
        policies = Policies(settings, shared.items, dim=shared.encoder.dim)
        texts = shared.recommender.texts
        recommender = Recommender(settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=texts)
        shared.encoder.flush()
        return Engine(settings, 0, recommender, states=states, progress=progress)

    return engine


@pytest.fixture
def log(make):
    return Log(make())
