"""Texts become vectors that depend on the text alone, and texts in a language the model does not know stay apart."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headrace.export.defaults import ensure_text, ensure_user
from headrace.streams.encoder import UserEncoder
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.texts import TextEncoder
from headrace.streams.unfamiliar import Familiarity, hashed_ngrams

TITLES = [
    "trail running shoe",
    "road running shoe for men",
    "espresso machine",
    "coffee beans, dark roast, 1 kg",
    "red wine",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "a",
    "",
    "x" * 3_000,
    "Kaffeemaschine für das Büro",
    "usb hub " * 90,
    "children picture book about a dragon that is afraid of the dark and of the bicycle pump in the shed",
]
CHINESE = ["云南普洱茶 陈年熟茶饼 357克", "无线蓝牙耳机 降噪 长续航", "儿童绘本 故事书 3-6岁", "云南普洱茶 散装 500克"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(ensure_text())


@pytest.fixture(scope="module")
def alone(encoder: TextEncoder) -> list[bytes]:
    return [encoder.encode([title]).tobytes() for title in TITLES]


@settings(max_examples=10, deadline=None)
@given(picks=st.lists(st.integers(0, len(TITLES) - 1), min_size=1, max_size=25), threads=st.sampled_from([1, 2]))
def test_a_vector_does_not_depend_on_its_batch(alone: list[bytes], picks: list[int], threads: int) -> None:
    encoder = _ENCODERS.setdefault(threads, TextEncoder(ensure_text(), threads=threads))
    vectors = encoder.encode([TITLES[i] for i in picks])
    assert [vector.tobytes() for vector in vectors] == [alone[i] for i in picks]


_ENCODERS: dict[int, TextEncoder] = {}


@pytest.mark.parametrize("n_words", [2, 9, 25])
def test_every_number_of_rows_gives_the_same_bits(encoder: TextEncoder, n_words: int) -> None:
    """43 texts of one length fill the largest batch, a middle one and small ones."""
    words = ["red", "tea", "cup", "shoe", "bag", "lamp", "desk", "pen", "coat", "ring", "sofa", "bike"]
    texts = [" ".join(words[(i * j + i) % len(words)] for j in range(n_words)) for i in range(43)]
    together = encoder.encode(texts)
    for i in (0, 31, 32, 39, 40, 42):
        assert encoder.encode(texts[i : i + 1])[0].tobytes() == together[i].tobytes()
    assert encoder.encode(texts[20:30]).tobytes() == together[20:30].tobytes()


def test_rows_are_unit_and_mean_what_they_say(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TITLES)
    assert vectors.shape == (len(TITLES), encoder.dim) == (len(TITLES), 384) and vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(np.delete(lengths, 8), 1, atol=1e-5) and lengths[8] < 1  # 3,000 letters in a row are no word
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.3 > likeness[0, 2] and likeness[2, 3] > likeness[2, 4]
    assert encoder.encode([]).shape == (0, 384)


def test_a_query_is_remembered_and_equals_the_batch(encoder: TextEncoder) -> None:
    first = encoder.encode_one("espresso machine")
    assert encoder.encode_one("espresso machine") is first
    assert np.abs(first - encoder.encode(TITLES)[2]).max() < 1e-5
    assert not first.flags.writeable


def test_text_that_is_no_unicode_is_still_a_text(encoder: TextEncoder) -> None:
    assert np.isfinite(encoder.encode(["half a \ud83d smile", "\x00 \u200b", "🦊" * 200])).all()


def test_chinese_titles_stay_apart_and_one_warning_names_the_cure(caplog: pytest.LogCaptureFixture) -> None:
    encoder = TextEncoder(ensure_text())
    with caplog.at_level(logging.WARNING, "headrace.texts"):
        vectors = encoder.encode([*CHINESE, "green tea"])
        encoder.encode(CHINESE)
    assert encoder.unfamiliar == 2 * len(CHINESE)
    [warning] = caplog.records
    assert (
        "headrace export text" in warning.message and "text_model" in warning.message and "`vector`" in warning.message
    )
    likeness = vectors @ vectors.T
    assert np.linalg.norm(vectors[:4], axis=1) == pytest.approx(0.2, abs=1e-5)  # little, beside a vector of the shop's
    likeness[:4, :4] /= 0.04
    assert likeness[0, 1] < 0.3 and likeness[0, 2] < 0.3 and likeness[0, 3] > likeness[0, 1] + 0.2
    assert vectors[4].tobytes() == encoder.encode(["green tea"])[0].tobytes()
    states = UserEncoder(ensure_user(), cache_bytes=0).project(vectors)
    assert (states @ states.T)[0, 1] < 0.5 < np.linalg.norm(states[0])  # apart where the policy looks, too


@pytest.mark.parametrize(
    "title", ["беспроводные наушники", "ワイヤレスイヤホン", "무선 이어폰", "سماعات لاسلكية", "हेडफ़ोन"]
)
def test_other_scripts_are_told(encoder: TextEncoder, title: str) -> None:
    before = encoder.unfamiliar
    encoder.encode([title])
    assert encoder.unfamiliar == before + 1


@pytest.mark.parametrize(
    "title", ["Żółta kurtka przeciwdeszczowa", "áo khoác mùa đông", '4K TV 55"', "", "...", "red shoe ⏏"]
)
def test_what_the_model_can_read_is_left_to_it(encoder: TextEncoder, title: str) -> None:
    before = encoder.unfamiliar
    encoder.encode([title])
    assert encoder.unfamiliar == before


def test_words_unknown_in_a_title_set_it_apart_in_the_measure_of_their_share(encoder: TextEncoder) -> None:
    rows = encoder.encode(["Apple iPhone 15 手机壳", "Apple iPhone 15 充电器", "Apple iPhone 15", "Sony наушники"])
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths == pytest.approx([11 / 20, 11 / 20, 1, 4 / 20], abs=1e-5)
    case, charger, english, russian = rows / lengths[:, None]
    assert 0.4 < case @ charger < 0.9 and 0.6 < case @ english < 0.9  # the phone is known, what it is for is not
    assert russian @ encoder.encode(["Sony"])[0] > 0.2 > abs(case @ russian)
    blended = encoder.encode_one("Apple iPhone 15 手机壳")
    assert np.abs(blended - case).max() < 1e-5


def test_a_title_of_two_languages_is_split_where_they_meet(encoder: TextEncoder) -> None:
    tokenizer = Tokenizer.from_file(str(ensure_text() / "tokenizer.json"))
    text = "USB充电器 для Samsung, 25W"
    split = Familiarity(tokenizer).split(text, tokenizer.encode(text))
    assert split is not None and (split.known, split.unknown) == ("USB Samsung, 25W", "充电器 для")
    assert split.share == pytest.approx((9 + 6) / (9 + 6 + 3 + 7 + 1))


@settings(max_examples=15, deadline=None)
@given(words=st.lists(st.sampled_from(["red", "茶", "чай", "✓", "25", "shoe", "スープ"]), max_size=6))
def test_no_two_unknown_words_make_titles_alike(words: list[str]) -> None:
    """Whatever else stands in the titles: another unknown word, another vector."""
    encoder = _ENCODERS.setdefault(1, TextEncoder(ensure_text()))
    one, other = encoder.encode([" ".join([*words, "耳机"]), " ".join([*words, "普洱"])])
    assert one @ other < 0.995 * np.linalg.norm(one) * np.linalg.norm(other)


@given(text=st.text(max_size=40))
def test_ngram_vectors_are_unit_and_repeatable(text: str) -> None:
    vector = hashed_ngrams(text, 64)
    assert vector.tobytes() == hashed_ngrams(text, 64).tobytes()
    norm = np.linalg.norm(vector)
    assert abs(norm - 1) < 1e-5 or norm == 0


@pytest.mark.parametrize(
    ("one", "near", "far"),
    [
        ("普洱茶叶 500克", "普洱茶饼", "蓝牙耳机 2米"),
        ("беспроводные наушники", "наушник беспроводной", "кастрюля эмалированная"),
        ("무선 이어폰", "이어폰 케이스", "강아지 사료"),
        ("हेडफ़ोन", "हेडफ़ोन वायरलेस", "सूती साड़ी"),
        ("🦊🍕", "🦊", "🚲"),
    ],
)
def test_ngram_vectors_share_what_the_texts_share(one: str, near: str, far: str) -> None:
    a, b, c = (hashed_ngrams(text, 384) for text in (one, near, far))
    assert a @ b > 0.35 > 0.2 > abs(a @ c)


def test_a_corrupt_or_wrong_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch, match="a user encoder stands where a text encoder is needed"):
        TextEncoder(ensure_user())
    shutil.copytree(ensure_user(), tmp_path / "user")
    (tmp_path / "user" / "step-8.onnx").write_bytes(b"rubbish")
    with pytest.raises(ArtifactMismatch, match=r"step-8\.onnx is corrupt.*export it again"):
        UserEncoder(tmp_path / "user", cache_bytes=0)
