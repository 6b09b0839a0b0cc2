"""The bias report finds what was planted: a brand that is pushed, places that are not looked at, what is popular."""

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.insight import bias, bias_page
from headrace.streams.insight.bias_log import Reader
from headrace.streams.insight.bias_run import Asked, report, time_ms
from headrace.streams.records import Erased, Item, item_key
from headrace.streams.settings import Settings
from tests.factories import (
    T0,
    make_behaviour,
    make_closed,
    make_impression,
    make_opened,
    make_outcome,
    make_transitions,
)

ITEMS, N, K, FLOOR, DAY = 200, 40, 5, 0.2, 86_400_000
EXAMINED = 1 / (1 + np.arange(K)) ** 0.7
WORTH = 0.3  # of every item alike, but those of the category "good"
CATEGORIES = ("plain", "good", "other", "rest")


def catalogue() -> list[Item]:
    """A tenth of the items is of brand X, a quarter of category "good", a twentieth is new."""
    return [
        Item(
            f"i{i}", 0, i, b"", "", 5.0 + i % 50, CATEGORIES[i % 4],
            attributes={"brand": "X" if i % 10 == 0 else f"B{i % 3}", "weight": 2.0},
            since_ms=T0 - DAY if i >= ITEMS - 10 else T0 - 90 * DAY,
        )
        for i in range(ITEMS)
    ]  # fmt: skip


def log(decisions: int = 4_000, *, seed: int = 0) -> Reader:
    """The policy puts brand X and popular items first, which are worth no more; a fifth of the slates is random."""
    random = np.random.default_rng(seed)
    reader = Reader(Settings())
    pushed = np.array([2.0 if i % 10 == 0 else 0.0 for i in range(ITEMS)])
    popular = 1 / (1 + np.arange(ITEMS)[::-1]) ** 0.5
    worth = np.array([2 * WORTH if i % 4 == 1 else WORTH for i in range(ITEMS)])
    for number in range(decisions):
        even = random.random() < 0.2
        left = random.permutation(ITEMS)[:N].tolist()
        scores = pushed + 3 * popular + random.gumbel(size=ITEMS) * 0.8
        slate, propensities, explored = [], [], []
        for _ in range(K):
            floor = 1.0 if even else FLOOR
            best = max(left, key=lambda i: scores[i])
            item = int(random.choice(left)) if random.random() < floor else best
            propensities.append(floor / len(left) + (1 - floor) * (item == best))
            explored.append(item != best)
            slate.append(item)
            left.remove(item)
        name = f"r-{number}"
        opened = make_opened(
            name, user=f"u{number % 500}", k=K, ts=T0 + number * 1_000,
            arm="random" if even else "policy", policy="random" if even else "linucb",
            slate=[f"i{i}" for i in slate], propensities=np.array(propensities).tobytes(),
            explored=np.array(explored, np.uint8).tobytes(), candidates=bytes(8 * N),
        )  # fmt: skip
        records: list[Any] = [opened, make_impression(name, positions=list(range(K)))]
        for position in np.flatnonzero(random.random(K) < EXAMINED * worth[slate]).tolist():
            records.append(make_outcome(name, position=position))
            if random.random() < 0.2:
                records.append(make_outcome(name, position=position, type="purchase", reward=5.0))
        records += [
            make_behaviour(item_key(f"i{i}"), ts=T0 + number)
            for i in random.choice(ITEMS, 3, p=popular / popular.sum())
        ]
        reader.read(make_transitions(*records))
    return reader


@pytest.fixture(scope="module")
def found() -> bias.Figures:
    return report(log(), catalogue(), topic="transitions", asked=Asked())


def group(found: bias.Figures, kind: str, name: str) -> bias.Figures:
    return next(row for row in found["groups"][kind] if row["name"] == name)


def test_a_brand_that_is_pushed_is_found(found: bias.Figures) -> None:
    x = group(found, "brand", "X")
    assert x["catalogue"] == 0.1 and x["shown_times"] > 2
    assert x["worth_low"] < 0.8 < x["worth_high"]  # none of them is of the category "good"
    assert any(line.startswith("brand X: shown") and "more often" in line for line in found["findings"])
    assert not any(line.startswith("brand B") and "more often" in line for line in found["findings"])


def test_what_is_worth_more_is_told_apart_from_what_is_shown_more(found: bias.Figures) -> None:
    """Items of this category get twice the clicks wherever they stand, and are shown like others."""
    good = group(found, "category", "good")
    others = [group(found, "category", name)["drawn"]["rate"] for name in ("other", "rest")]
    assert good["drawn"]["rate"] / np.mean(others) == pytest.approx(2, rel=0.25)
    assert good["clicked"] > 1.4 * good["shown"]


def test_how_often_each_position_is_looked_at(found: bias.Figures) -> None:
    told = [row["examination"] for row in found["positions"]]
    assert told == pytest.approx(EXAMINED.tolist(), abs=0.12)
    assert any(line.startswith("position 5") for line in found["findings"])


def test_popular_items_are_shown_more_and_are_worth_no_more(found: bias.Figures) -> None:
    most, least = found["groups"]["popularity"][0], found["groups"]["popularity"][9]
    assert most["shown_times"] > 1.3 * least["shown_times"]
    assert found["popularity"]["with_shown"] > 0.2 > abs(found["popularity"]["with_worth"])


def test_new_items_and_prices_have_groups(found: bias.Figures) -> None:
    assert group(found, "new items", "known for at most 7 days")["items"] == 10
    assert [row["items"] for row in found["groups"]["price"]] == [40] * 5
    assert "weight" not in found["groups"]


def test_arms_stand_apart(found: bias.Figures) -> None:
    policy, even = found["arms"]["policy"], found["arms"]["random"]
    assert policy["gini"] > even["gini"] + 0.1
    assert policy["decisions"] + even["decisions"] == found["decisions"] == 4_000


def test_the_figures_are_json_and_shares_are_whole(found: bias.Figures) -> None:
    again = json.loads(json.dumps(found))
    for rows in again["groups"].values():
        for share in ("catalogue", "shown", "clicked", "bought"):
            assert sum(row[share] for row in rows) == pytest.approx(1, abs=0.01)


def test_gini_of_what_is_even_and_of_what_is_not() -> None:
    assert bias.gini(np.full(50, 3)) == pytest.approx(0)
    assert bias.gini(np.eye(1, 50)[0]) == pytest.approx(0.98)
    assert bias.gini(np.zeros(5)) == 0


# -- what counts ------------------------------------------------------------------------------------------------------


def read(*records: Any, **more: Any) -> Reader:
    reader = Reader(Settings(), **more)
    reader.read(make_transitions(*records))
    return reader


def shown(reader: Reader, **more: Any) -> int:
    return len(reader.slots([item.item_id for item in catalogue()], **more).item)


def test_only_what_was_shown_counts() -> None:
    opened = make_opened("r-1", k=3)
    assert shown(read(opened)) == 0
    assert shown(read(opened, make_closed("r-1", rewards={0: 0.0, 2: 0.0}))) == 2
    assert shown(read(opened, make_impression("r-1", positions=[0, 1, 9]))) == 2
    assert shown(read(opened, make_impression("r-1", positions=[0]), make_closed("r-1", closed_as="altered"))) == 0
    assert shown(read(make_opened("r-1", busy=True), make_impression("r-1", positions=[0]))) == 0
    assert shown(read(opened, make_impression("r-1", positions=[0]), Erased("u1", T0))) == 0


def test_a_span_of_time_and_the_last_decisions() -> None:
    records = []
    for i in range(6):
        records += [make_opened(f"r-{i}", ts=T0 + i), make_impression(f"r-{i}", positions=[0])]
    assert shown(read(*records, first_ms=T0 + 2, end_ms=T0 + 5)) == 3
    assert shown(read(*records), last=2) == 2


def test_a_return_takes_its_purchase_back() -> None:
    records = [make_opened("r-1"), make_outcome("r-1", type="purchase", reward=5.0)]
    bought = read(*records).slots([])
    returned = read(*records, make_outcome("r-1", type="return", reward=-5.0)).slots([])
    assert bought.bought.sum() == 1 and returned.bought.sum() == 0


def test_logs_without_a_shown_decision_say_so_in_one_line() -> None:
    with pytest.raises(HeadraceError, match="transitions holds no shown decision") as told:
        report(read(), catalogue(), topic="transitions", asked=Asked())
    assert "\n" not in str(told.value)
    with pytest.raises(HeadraceError, match="catalogue holds no item"):
        report(read(make_opened("r-1"), make_impression("r-1", positions=[0])), [], topic="t", asked=Asked())


def test_times_as_people_write_them() -> None:
    assert time_ms("2026-11-28", "--from", 0) == 1_795_824_000_000
    assert time_ms("2026-11-28T01:00+01:00", "--from", 0) == 1_795_824_000_000
    assert time_ms("1795824000000", "--to", 0) == 1_795_824_000_000
    with pytest.raises(SettingsError, match="--from yesterday: write a time"):
        time_ms("yesterday", "--from", 0)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_group_and_needs_no_network(found: bias.Figures) -> None:
    hurt = {**found, "arms": {"<b>": found["arms"]["policy"]}}
    page = bias_page.render(hurt)
    assert page.count("<svg") == 6 and "&lt;b&gt;" in page and "<b></" not in page
    assert "src=" not in page and 'href="http' not in page and "$" not in page.split("</style>")[1]
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_log_of_one_decision_has_a_page(tmp_path: Any) -> None:
    reader = read(make_opened("r-1", slate=["i0", "i1", "gone"]), make_impression("r-1", positions=[0, 1, 2]))
    figures = report(reader, [Item("i0", 0, 0, b"", ""), Item("i1", 0, 1, b"", "")], topic="t", asked=Asked())
    assert bias_page.write(figures, tmp_path / "new").read_text("utf-8").count("<svg") >= 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_it(found: bias.Figures, tmp_path: Any) -> None:
    """Drawn: every plot's colours are in the picture."""
    import matplotlib.image

    page, picture = bias_page.write(found, tmp_path), tmp_path / "bias.png"
    subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--blink-settings=preferredColorScheme=1",
            "--window-size=1200,4200", f"--screenshot={picture}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    seen = np.asarray(matplotlib.image.imread(picture))[:, :, :3]
    assert seen.mean() > 0.8
    for colour in (bias_page.CATALOGUE, bias_page.SHOWN, bias_page.CLICKED, bias_page.BOUGHT):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(seen - wanted) < 0.02).all(axis=2).sum() > 200, colour
