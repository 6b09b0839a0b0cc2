"""The report is one file, asks for nothing else, and a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.simulation import report
from headrace.simulation.intervals import Estimate
from headrace.simulation.plots import COLOURS, Course

ARMS = ("policy", "item_to_item", "popular", "random", "oracle")


def make_run(**changes: Any) -> report.Run:
    days = np.linspace(0.3, 6.7, 12)
    level = dict(zip(ARMS, (0.6, 0.3, 0.2, 0.1, 1.2), strict=True))
    seconds = np.linspace(0, 20, 500)
    run: dict[str, Any] = {
        "summary": {
            "seconds": 20,
            "events_sent": 10_000,
            "events_applied": 9_850,
            "duplicates": 100,
            "dead_letters": 50,
            "recommendations": 6_000,
            "policy_versions": 80,
            "freshness_ms": {"p50": 12.0, "p99": 90.0},
            "outcome_to_policy_ms": {"p50": 300.0, "p99": 800.0},
        },
        "window_days": 7,
        "rate": 500,
        "speed": 10_080,
        "arms": {arm: Estimate(500, y, 0.9 * y, 1.1 * y) for arm, y in level.items()},
        "courses": {
            arm: Course(days, y + 0 * days, 0.9 * y + 0 * days, 1.1 * y + 0 * days) for arm, y in level.items()
        },
        "freshness": list(zip(seconds, 10 + seconds, strict=True)),
        "outcome_to_policy": np.linspace(50, 800, 300),
        "sent_per_second": np.full(20, 500.0),
        "slates_per_second": np.full(20, 300.0),
        "versions": [(s / 4, s) for s in range(80)],
        "planted": [("duplicates", 100, 100), ("rubbish of 2 kinds", 50, 49), ("rubbish: NaN", 25, 24)],
        "missing": ["rubbish (<b>) at 0@17: no dead letter"],
        "settings": [("users", "2,000")],
    }
    return report.Run(**{**run, **changes})


def test_one_file_that_asks_for_nothing_else(tmp_path: Path) -> None:
    page = report.write(make_run(), tmp_path / "new").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "@import" not in page and "<script" not in page and "<link" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert len(re.findall(r"<svg", page)) == 6
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_figures_and_the_faults_are_on_it() -> None:
    page = report.render(make_run())
    assert "2.00×" in page and "intervals apart" in page  # 0.6 against 0.3
    assert "33%" in page  # (0.6 − 0.3) / (1.2 − 0.3)
    assert "nothing is missing" in page and "1 missing" in page
    assert "rubbish (&lt;b&gt;) at 0@17" in page
    for arm in ARMS:
        assert COLOURS[arm] in page and arm.replace("_", " ") in page


def test_lost_events_are_said() -> None:
    run = make_run()
    short = {**run.summary, "events_applied": 9_840}
    assert "+10 unaccounted" in report.render(make_run(summary=short))


def test_a_run_too_short_for_anything_still_gives_a_page() -> None:
    nobody = Estimate(0, float("nan"), float("nan"), float("nan"))
    nothing = np.zeros(0)
    empty = make_run(
        summary={
            **make_run().summary,
            "freshness_ms": {"p50": None, "p99": None},
            "outcome_to_policy_ms": {"p50": None, "p99": None},
        },
        arms=dict.fromkeys(ARMS, nobody),
        courses={arm: Course(nothing, nothing, nothing, nothing) for arm in ARMS},
        freshness=[],
        outcome_to_policy=nothing,
        sent_per_second=nothing,
        slates_per_second=nothing,
        versions=[],
        planted=[],
        missing=[],
    )
    assert "<svg" in report.render(empty)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    """Screenshots of the light and the dark page: drawn, different, and with every arm's colour in them."""
    import matplotlib.image

    page = report.write(make_run(), tmp_path)
    pictures = {}
    for scheme, flag in (("light", "1"), ("dark", "0")):
        picture = tmp_path / f"{scheme}.png"
        subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={flag}",
                "--window-size=1200,2600", f"--screenshot={picture}", page.as_uri(),
            ],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        pictures[scheme] = np.asarray(matplotlib.image.imread(picture))[:, :, :3]
    assert pictures["light"].mean() > 0.8 > 0.3 > pictures["dark"].mean()
    for arm in ARMS:
        colour = np.array([int(COLOURS[arm][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        near = (np.abs(pictures["light"] - colour) < 0.02).all(axis=2)
        assert near.sum() > 50, arm
