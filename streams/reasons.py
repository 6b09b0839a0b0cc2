"""Why an item stands in a slate, in a few words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.export.names import type_code
from headrace.policy.features import SCALARS
from headrace.streams.items import ItemStore
from headrace.streams.settings import Settings

_VERBS = {
    "view": "viewed", "click": "clicked", "like": "liked", "share": "shared", "add_to_cart": "put in the cart",
    "remove_from_cart": "had in the cart", "purchase": "bought", "rating": "rated", "anchor": "are looking at",
}  # fmt: skip
_WORDS = {"search": "searched", "comment": "commented", "post": "posted"}
ANCHOR = 254  # the code of the item that a request names as being looked at
_SIMILAR = 0.35  # below this cosine, calling an item similar would mislead


class Reasons:
    """Names the history entry nearest to the item, or says that it is popular or being tried out."""

    def __init__(self, settings: Settings) -> None:
        self._names = {type_code(name): name for name in settings.event_types} | {ANCHOR: "anchor"}
        self._popularity = SCALARS.index("popularity")

    def of(
        self,
        items: ItemStore,
        rows: NDArray[np.int64],
        vectors: NDArray[np.float32],
        columns: NDArray[np.float32],
        history: NDArray[np.int64],
        codes: NDArray[np.uint8],
        recent: NDArray[np.float32],
        explored: NDArray[np.bool_],
    ) -> list[list[str]]:
        """Reasons by decision and position; `rows` (B, k), `vectors` (B, k, d), `columns` (B, k, m) are the slate's.
        `history` (B, h) rows and `codes` (B, h) event type codes of the latest entries."""
        similarity = np.matmul(vectors, recent.transpose(0, 2, 1))  # (B, k, 5)
        nearest = similarity.argmax(axis=2)
        strength = similarity.max(axis=2)
        popular = columns[:, :, self._popularity] > 0
        out = []
        for i in range(len(rows)):
            because = self._because(items, history[i].tolist(), codes[i].tolist())
            out.append(
                [
                    because[n]
                    if s >= _SIMILAR and because[n]
                    else "popular now"
                    if p and not e
                    else "something new to you"
                    for n, s, p, e in zip(
                        nearest[i].tolist(),
                        strength[i].tolist(),
                        popular[i].tolist(),
                        explored[i].tolist(),
                        strict=True,
                    )
                ]
            )
        return out

    def _because(self, items: ItemStore, history: list[int], codes: list[int]) -> list[str]:
        """A sentence for each of the five latest entries, empty where there is none."""
        sentences = []
        for row, code in zip(history[:5], codes[:5], strict=True):
            name = self._names.get(code, "")
            if row != items.none:
                sentences.append(f"because you {_VERBS.get(name, 'chose')} {items.ids[row]}")
            else:
                sentences.append(f"because of what you {_WORDS[name]}" if name in _WORDS else "")
        return sentences
