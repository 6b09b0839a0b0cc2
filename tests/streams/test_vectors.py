"""What an item's vector is made of."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.streams.messages import ShopItem
from headrace.streams.vectors import MAX_TEXT, content_hash, fused, projected, text_of

ATTRIBUTES = ("brand", "genres")
FROZEN = [0.0134416, 0.073976, 0.0061555, -0.094491]  # another matrix would make strangers of all stored vectors


def of(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.float16).astype(np.float32)


def test_the_words_of_an_item() -> None:
    item = ShopItem(
        item_id="i", title=" Trail  shoe ", text="Light.\nDry.", category="sport/running_shoes",
        attributes={"brand": "Acme", "genres": ["a", "b", 3], "sku": "XJ-9", "weight": 300},
    )  # fmt: skip
    assert text_of(item, ATTRIBUTES) == "Trail shoe. sport running shoes. Acme. a, b. Light. Dry."
    assert text_of(ShopItem(item_id="i", attributes={"sku": "XJ-9", "brand": 7}), ATTRIBUTES) == ""
    assert text_of(ShopItem(item_id="i", title=" \n "), ATTRIBUTES) == ""
    assert len(text_of(ShopItem(item_id="i", title="x", text="word " * 10_000), ATTRIBUTES)) == MAX_TEXT


def test_projection_keeps_angles_from_any_dimension() -> None:
    rng = np.random.default_rng(3)
    for d in (64, 384, 4096):
        vectors = rng.normal(size=(12, d)) + rng.normal(size=d)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        low = np.stack([projected(v.tolist(), 384) for v in vectors])
        assert np.allclose(np.linalg.norm(low, axis=1), 1, atol=1e-5)
        assert np.abs(low @ low.T - unit @ unit.T).max() < 0.2  # 1/sqrt(384) = 0.05 is one standard deviation


def test_projection_is_the_same_for_ever() -> None:
    assert projected([1.0, -2.0, 0.5], 384)[:4] == pytest.approx(FROZEN, abs=1e-6)


def test_projection_takes_huge_and_tiny_numbers() -> None:
    vector = [3.0, -4.0, 12.0]
    for scale in (1e-300, 1e15):
        assert np.allclose(projected([v * scale for v in vector], 384), projected(vector, 384), atol=1e-6)


def test_fusion_is_the_normalised_mean_or_the_one_there_is() -> None:
    a, b = np.eye(384, dtype=np.float32)[:2]
    assert np.allclose(of(fused(a, b))[:2], 0.5**0.5, atol=1e-3)
    assert np.array_equal(of(fused(a, None)), a) and np.array_equal(of(fused(None, 5 * b)), b)
    assert fused(None, None) == b"" == fused(np.zeros(384, np.float32), None)
    assert np.array_equal(of(fused(np.zeros(384, np.float32), b)), b)


def test_a_text_counts_by_its_length_beside_a_vector_of_the_shop_s_own() -> None:
    a, b = np.eye(384, dtype=np.float32)[:2]
    little, full, more = (of(fused(length * a, 3 * b))[0] for length in (0.2, 1, 5))
    assert little == pytest.approx(0.2 / 1.04**0.5, abs=1e-3) and full == more == pytest.approx(0.5**0.5, abs=1e-3)
    assert fused(0.2 * a, None) == fused(a, None)


def test_a_vector_is_named_by_its_content() -> None:
    a, b = np.eye(384, dtype=np.float32)[:2]
    assert content_hash(fused(a, None)) == content_hash(fused(a, None)) != content_hash(fused(b, None))
    assert content_hash(b"") == ""
