from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from headrace.policy.base import U64
from headrace.policy.behaviour import Behaviour, CoOccurrence, Popularity, behaviour
from headrace.policy.keys import KeyIndex
from headrace.policy.snapshot import pack, unpack

DAY = 86_400_000
T0 = 1_790_000_000_000


def make_behaviour(n: int = 200, *, items: int = 30, seed: int = 0, at: int = T0) -> Behaviour:
    random = np.random.default_rng(seed)
    keys = random.integers(1, 2**63, items, dtype=np.uint64) if items > 1000 else KEYS[:items]
    drawn = keys[(random.random((n, 5)) ** 2 * items).astype(np.int64)]
    drawn[:, 4][random.random(n) < 0.5] = 0  # short histories
    bought = random.random(n) < 0.2
    return Behaviour(
        items=drawn[:, 0],
        weights=np.where(bought, 5.0, random.choice([0.0, 1.0, 2.0], n)),
        bought=bought,
        times=at + random.integers(-DAY, DAY, n),
        previous=drawn[:, 1:],
    )


KEYS: U64 = np.random.default_rng(5).integers(1, 2**63, 1000, dtype=np.uint64)


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [KEYS, np.arange(1, 3000, dtype=np.uint64), np.arange(1, 900, dtype=np.uint64) << np.uint64(48)]
)
def test_key_index_is_a_dictionary(keys: U64) -> None:
    index, known = KeyIndex(), {}
    for part in np.array_split(np.random.default_rng(0).permutation(keys), 7):
        rows = index.add(np.concatenate([part, part[:3], np.zeros(1, np.uint64)]))
        known |= dict(zip(part.tolist(), rows.tolist(), strict=False))
        assert rows[-1] == -1
    assert sorted(known.values()) == list(range(len(keys))) and len(index) == len(keys)
    assert np.array_equal(index.keys[index.rows(keys)], keys)
    assert [known[k] for k in keys.tolist()] == index.rows(keys).tolist()
    unknown = np.array([[0, 2**63 + 5], [12345678901234567, 2**64 - 1]], np.uint64)
    assert (index.rows(unknown) == -1).all()


# -- popularity -------------------------------------------------------------------------------------------------------


def test_popularity_is_the_decayed_sum_on_a_log_scale() -> None:
    model, counts = Popularity(half_life_ms=DAY), defaultdict(float)
    batches = [make_behaviour(seed=i, at=T0 + i * DAY) for i in range(4)]
    for batch in batches:
        model.learn(batch)
    now = max(int(b.times[b.weights > 0].max()) for b in batches)
    for b in batches:
        for key, weight, time in zip(b.items.tolist(), b.weights.tolist(), b.times.tolist(), strict=True):
            counts[key] += weight * 0.5 ** ((now - time) / DAY)
    expected = np.array([np.log1p(counts[k]) for k in KEYS[:30].tolist()]) / np.log1p(max(counts.values()))
    assert np.allclose(model.scores(KEYS[:30]), expected, atol=1e-6)
    best = sorted(counts, key=lambda k: (-counts[k], k))
    assert model.top(10).tolist() == best[:10]
    assert model.scores(np.array([[0, 77]], np.uint64)).tolist() == [[0, 0]]


def test_nothing_learned_is_nothing_known() -> None:
    assert not Popularity().scores(KEYS).any() and not len(Popularity().top(5)) and Popularity().shards() == {}
    model = CoOccurrence()
    views, buys = model.scores(KEYS[:6].reshape(2, 3), KEYS[:8].reshape(2, 4))
    assert not views.any() and not buys.any() and not model.neighbours(KEYS[:3], 4).any() and model.shards() == {}


# -- co-occurrence ----------------------------------------------------------------------------------------------------


def naive(batches: list[Behaviour], half_life: float) -> dict[bool, dict[int, dict[int, float]]]:
    """Pairs as of each first item's latest pair, by what was bought."""
    events: dict[bool, dict[int, list[tuple[int, float, int]]]] = {False: defaultdict(list), True: defaultdict(list)}
    for b in batches:
        for item, weight, bought, time, previous in zip(b.items, b.weights, b.bought, b.times, b.previous, strict=True):
            for place, before in enumerate(previous):
                if before and before != item and weight > 0:
                    strength = (1.0 if bought else weight) / (place + 1)
                    events[bool(bought)][int(before)].append((int(item), float(strength), int(time)))
    pairs: dict[bool, dict[int, dict[int, float]]] = {False: {}, True: {}}
    for bought, by_item in events.items():
        for before, found in by_item.items():
            latest = max(time for *_, time in found)
            sums: dict[int, float] = defaultdict(float)
            for item, strength, time in found:
                sums[item] += strength * 0.5 ** ((latest - time) / half_life)
            pairs[bought][before] = sums
    return pairs


def test_co_occurrence_is_the_share_of_what_followed() -> None:
    model = CoOccurrence(half_life_ms=DAY, shards=4)
    batches = [make_behaviour(seed=i, at=T0 + i * DAY) for i in range(4)]
    for batch in batches:
        model.learn(batch)
    pairs = naive(batches, DAY)
    recent = np.array([[KEYS[0], KEYS[3], 0], [KEYS[7], 99, KEYS[0]], [0, 0, 0]], np.uint64)
    candidates = np.repeat(np.append(KEYS[:30], np.uint64(4242))[None], 3, axis=0)
    for bought, scores in zip((False, True), model.scores(recent, candidates), strict=True):
        for row in range(3):
            fading = np.array([1 / (h + 1) if key else 0 for h, key in enumerate(recent[row].tolist())])
            for column, key in enumerate(candidates[row].tolist()):
                share = 0.0
                for f, before in zip(fading, recent[row].tolist(), strict=True):
                    sums = pairs[bought].get(before, {})
                    share += f * sums.get(key, 0.0) / (sum(sums.values()) + 5)
                expected = np.sqrt(share / max(fading.sum(), 1e-9))
                assert np.isclose(scores[row, column], expected, atol=1e-4), (bought, row, column)


def test_neighbours_are_those_that_follow_most() -> None:
    model = CoOccurrence(half_life_ms=DAY)
    batch = make_behaviour(500)
    model.learn(batch)
    pairs = naive([batch], DAY)
    found = model.neighbours(np.append(KEYS[:30], np.uint64(4242)), 5)
    assert not found[30].any()
    for row, key in enumerate(KEYS[:30].tolist()):
        shares: dict[int, float] = defaultdict(float)
        for bought in (False, True):
            sums = pairs[bought].get(key, {})
            for other, weight in sums.items():
                shares[other] += weight / (sum(sums.values()) + 5)
        best = sorted(shares.values(), reverse=True)[:5]
        assert np.allclose([shares[k] for k in found[row].tolist() if k], best, rtol=1e-3)


def test_a_full_item_keeps_its_heaviest_neighbours() -> None:
    model = CoOccurrence(cap=3)

    def follow(item: int, times: int) -> None:
        one = Behaviour(
            items=KEYS[[item] * times], weights=np.ones(times), bought=np.zeros(times, np.bool_),
            times=np.full(times, T0), previous=KEYS[[[0]] * times],
        )  # fmt: skip
        model.learn(one)

    for item, times in ((1, 5), (2, 1), (3, 3), (4, 2), (5, 1), (6, 4)):
        follow(item, times)
    assert model.neighbours(KEYS[:1], 5)[0].tolist() == [*KEYS[[1, 6, 3]].tolist(), 0, 0]
    views, _ = model.scores(KEYS[None, :1], KEYS[None, 1:7])
    assert np.allclose(views[0], np.sqrt(np.array([5, 0, 3, 0, 0, 4]) / (16 + 5)))  # all 16 count in the total


@pytest.mark.parametrize("make", [lambda: Popularity(shards=5), lambda: CoOccurrence(cap=4, shards=5)])
def test_restored_shards_continue_bit_for_bit(make) -> None:  # type: ignore[no-untyped-def]
    never_stopped, restored = make(), make()
    batches = [make_behaviour(seed=i, items=60, at=T0 + i * DAY) for i in range(8)]
    for batch in batches[:5]:
        never_stopped.learn(batch)
    shards = never_stopped.shards()
    assert set(shards) == set(range(5)) and never_stopped.shards() == {}
    restored.learn(make_behaviour(seed=77, items=90))  # what was there before is gone afterwards
    for shard in reversed(shards):
        restored.restore(shard, *unpack(*pack(*shards[shard])))
    for batch in batches[5:]:
        never_stopped.learn(batch)
        restored.learn(batch)
    first, second = never_stopped.shards(), restored.shards()
    assert first.keys() == second.keys()
    for shard, (arrays, meta) in first.items():
        assert pack(arrays, meta) == pack(*second[shard])


@pytest.mark.parametrize("make", [lambda: Popularity(shards=5), lambda: CoOccurrence(cap=4, shards=5)])
def test_shards_resume_from_different_places(make) -> None:  # type: ignore[no-untyped-def]
    """Shard s was saved after s + 1 batches; each is fed what it lacks."""
    never_stopped, resumed = make(), make()
    batches = [make_behaviour(seed=i, items=60, at=T0 + i * DAY) for i in range(7)]
    saved = {}
    for i, batch in enumerate(batches):
        never_stopped.learn(batch)
        if i < 5:
            saved[i] = never_stopped.shards(among=[i])[i]
    for shard, parts in saved.items():
        resumed.restore(shard, *parts)
    for i, batch in enumerate(batches):
        resumed.learn(batch, shards=np.arange(5) < i)
    whole = range(5)
    never_stopped.learn(make_behaviour(seed=9, items=60))  # so that every shard has changed
    resumed.learn(make_behaviour(seed=9, items=60))
    first, second = never_stopped.shards(), resumed.shards()
    assert set(first) == set(second) == set(whole)
    for shard in whole:
        assert pack(*first[shard]) == pack(*second[shard])


def test_only_what_changed_is_given_out_most_changed_first() -> None:
    model = Popularity(shards=1000)
    keys = KEYS[:6]
    of = [int(k % 1000) for k in keys.tolist()]
    assert len(set(of)) == 6
    for i, key in enumerate(keys.tolist()):
        model.learn(behaviour([key] * (i + 1), ["view"] * (i + 1), [T0] * (i + 1), [b""] * (i + 1)))
    assert set(model.shards(2)) == {of[4], of[5]}
    assert set(model.shards(1)) == {of[3]}
    assert set(model.shards()) == set(of[:3])
    model.learn(behaviour([int(keys[0])], ["view"], [T0], [b""]))
    assert set(model.shards()) == {of[0]}


def test_shards_cut_otherwise_are_refused() -> None:
    model = CoOccurrence(shards=4)
    model.learn(make_behaviour())
    shard, (arrays, meta) = next(iter(model.shards().items()))
    with pytest.raises(ValueError, match="does not fit into 5 shards"):
        CoOccurrence(shards=5).restore(shard, arrays, meta)
    with pytest.raises(ValueError, match="neighbours an item"):
        CoOccurrence(shards=4, cap=7).restore(shard, arrays, meta)


def test_records_become_arrays() -> None:
    previous = np.arange(1, 7, dtype="<u8")
    batch = behaviour(
        [1, 2, 3], ["view", "purchase", "dismiss"], [T0, T0, T0], [previous.tobytes(), b"", previous[:1].tobytes()]
    )
    assert batch.previous.tolist() == [[1, 2, 3, 4], [0] * 4, [1, 0, 0, 0]]
    assert batch.weights.tolist() == [1, 5, 0] and batch.bought.tolist() == [False, True, False]
