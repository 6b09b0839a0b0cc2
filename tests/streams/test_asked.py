"""Queries in a state: of the text's space; whichever encoders serve understand them, or know that they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from headrace.export.item_tower import ItemTower
from headrace.streams.asked import Asked
from headrace.streams.describe import Ask
from headrace.streams.state import Notes, UserState
from headrace.streams.texts import TextEncoder
from tests.engine import HOUR, T0, event

RANDOM = np.random.default_rng(8)
VECTORS = {text: RANDOM.standard_normal(384).astype(np.float32) for text in ("tea", "coffee")} | {"": np.zeros(384)}


class Texts:
    def __init__(self, version: str) -> None:
        self.version = version

    def encode_one(self, text: str) -> Any:
        return VECTORS[text]


def asked(version: str = "sha256:one", *, seed: int = 1) -> tuple[Asked, ItemTower]:
    tower = ItemTower(np.random.default_rng(seed).standard_normal((64, 384)).astype(np.float32))
    return Asked(cast(TextEncoder, Texts(version)), tower), tower


def test_what_is_packed_is_the_text_s_vector_in_whichever_space() -> None:
    mine, tower = asked()
    notes = Notes(texts={7: mine.pack("tea"), 8: mine.pack("coffee"), 9: mine.pack("")})
    assert {len(raw) for raw in notes.texts.values()} == {4 + 384}
    for serving, its in ((mine, tower), asked(seed=2)):
        found = serving.vectors(notes)
        for key, text in ((7, "tea"), (8, "coffee")):
            assert found[key] @ its.vectors(VECTORS[text][None])[0] > 0.999
        assert not found[9].any()


def test_what_another_text_encoder_or_the_release_before_has_written_is_not_understood() -> None:
    mine, other = asked()[0], asked("sha256:two")[0]
    notes = Notes(texts={1: mine.pack("tea"), 2: other.pack("tea"), 3: np.zeros(64, np.float16).tobytes()})
    assert mine.vectors(notes).keys() == {1} and other.vectors(notes).keys() == {2}
    assert mine.vectors(None) == mine.vectors(Notes(texts={})) == {}


def test_more_texts_than_are_kept_at_hand_stay_the_same(monkeypatch: Any) -> None:
    mine, _ = asked()
    monkeypatch.setattr("headrace.streams.asked._KEPT", 1)
    notes = Notes(texts={7: mine.pack("tea"), 8: mine.pack("coffee")})
    first = mine.vectors(notes)
    assert mine.vectors(Notes(texts={8: notes.texts[8]}))[8].tobytes() == first[8].tobytes()
    assert mine.vectors(notes)[7].tobytes() == first[7].tobytes()


def test_a_query_of_before_counts_for_nothing_until_it_is_asked_again(log: Any) -> None:
    """The state of a user whose query another text encoder has encoded is the state without its words; also in the
    company of a user who asked the same of this one, and no longer when he asks again."""

    def states(*users: str) -> Any:
        recommender = log.engine.recommender
        taken: list[Any] = []
        encode = recommender.encoder.encoded

        def watching(histories: Any, lookup: Any) -> Any:
            taken.append(encode(histories, lookup))
            return taken[-1]

        recommender.encoder.encoded = watching
        try:
            log.write(*(event(user=user, item="toys-0", at=T0 + HOUR) for user in users), at=T0 + HOUR)
        finally:
            del recommender.encoder.encoded
        return taken[-1].states

    for user in ("old", "new"):
        log.write(event("search", user=user, text="coffee beans"))
    key = b"uold"
    state = UserState.unpack(log.engine.states[key])
    assert state.notes is not None
    state.notes.texts = {k: b"xxxx" + v[4:] for k, v in state.notes.texts.items()}
    log.engine.states[key] = state.pack()
    log.engine.recommender.forget()
    together = states("old", "new")
    assert not np.allclose(together[0], together[1])
    log.write(event("search", user="old", text="coffee beans", at=T0 + HOUR), at=T0 + HOUR)
    again = UserState.unpack(log.engine.states[key])
    assert again.notes is not None and all(v[:4] != b"xxxx" for v in again.notes.texts.values())
    cached = states("old", "new")
    log.engine.recommender.forget()
    held = {user: UserState.unpack(log.engine.states[b"u" + user.encode()]) for user in ("old", "new")}
    asks = [cast(Ask, SimpleNamespace(user_id=user, state=state)) for user, state in held.items()]
    assert log.engine.recommender.describer.encode(asks).states.tobytes() == cached.tobytes()
