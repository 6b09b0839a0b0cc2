from __future__ import annotations

import numpy as np
import pytest

from headrace.policy.snapshot import SnapshotError, pack, unpack

ARRAYS = {
    "b": np.arange(6, dtype=np.float64).reshape(2, 3),
    "a": np.array([2**63 + 1], np.uint64),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}


def test_round_trip() -> None:
    meta = {"policy": "lints", "learned": 12, "squares": 0.1 + 0.2}
    arrays, back = unpack(*pack(ARRAYS, meta))
    assert back == meta and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
        assert arrays[name].shape == array.shape
    assert unpack(*pack({}, {}))[0] == {}


def test_equal_snapshots_are_equal_bytes() -> None:
    assert pack(ARRAYS, {"x": 1, "y": 2}) == pack(dict(reversed(ARRAYS.items())), {"y": 2, "x": 1})


def test_views_are_saved_as_they_read() -> None:
    turned = ARRAYS["b"].T
    assert np.array_equal(unpack(*pack({"b": turned}, {}))[0]["b"], turned)


@pytest.mark.parametrize("place", [9, -1])
def test_damage_is_noticed(place: int) -> None:
    data, digest = pack(ARRAYS, {"x": 1})
    damaged = bytearray(data)
    damaged[place] ^= 1
    with pytest.raises(SnapshotError, match="damaged"):
        unpack(bytes(damaged), digest)


@pytest.mark.parametrize("data", [b"", b"no safetensors at all", (2**40).to_bytes(8, "little") + b"{}"])
def test_other_bytes_are_refused(data: bytes) -> None:
    import hashlib

    with pytest.raises(SnapshotError, match="cannot be read"):
        unpack(data, hashlib.sha256(data).hexdigest())


def test_numbers_that_are_not_finite_are_no_meta() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        pack({}, {"x": float("nan")})
