"""Texts in bulk, from an exported text encoder: the vectors that are served."""

from __future__ import annotations

import numpy as np

from headrace.export import artifact
from headrace.export.defaults import ensure_text
from headrace.export.text_graph import TextGraph
from headrace.streams.texts import TextEncoder


def test_titles_come_out_as_they_are_served() -> None:
    titles = [
        "running shoe",
        "a stainless steel water bottle with a lid",
        "tea",
        *[f"mug number {n}" for n in range(40)],
    ]
    graph, served = TextGraph(ensure_text()), TextEncoder(ensure_text())
    assert np.abs(graph.embed(titles) - served.encode(titles)).max() < 1e-5
    assert graph.version == served.version == artifact.load(ensure_text()).version


def test_words_are_whole_and_sorted() -> None:
    words = TextGraph(ensure_text()).words()
    assert {"shoe", "coffee"} <= {*words} and words == sorted(words) and all(word.isalpha() for word in words)
