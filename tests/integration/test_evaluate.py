"""`headrace evaluate` on the broker, over a log that the whole loop made: shop, worker, learner."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from headrace.simulation.loop import Loop, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.world import World
from headrace.streams import cli, kafka, logs
from headrace.streams.records import PolicyVersion, Transitions, encode
from headrace.streams.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import MakeSettings

pytestmark = pytest.mark.kafka
START_MS = 1_700_000_000_000
EVENTS = 2_500
LOOP = {
    "policy": {"name": "lints", "floor": 0.5},
    "decisions": {"full_share": 1.0},
    "arms": {"shares": {"policy": 0.6, "random": 0.4}},
}


def play(settings: Settings) -> tuple[list[Transitions], list[PolicyVersion]]:
    """A day of a small shop; what its worker and its learner wrote."""
    world = World(WorldSettings(items=150, arriving=5, users=150), start_ms=START_MS, seed=3)
    loop = Loop(settings, world, text_vectors(settings, world.catalogue))
    messages, versions = list[Transitions](), list[PolicyVersion]()
    learn = loop.learning.apply

    def apply(message: Transitions, offset: int, **more: Any) -> list[PolicyVersion]:
        published = learn(message, offset, **more)
        messages.append(message)
        versions.extend(v for v in published if v.part == "lints")
        return published

    loop.learning.apply = apply  # type: ignore[method-assign]
    loop.run(events=EVENTS, start_ms=START_MS, span_ms=DAY_MS)
    return messages, versions


@pytest.fixture
def headrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_topic_range_of_the_whole_loop(
    settings: MakeSettings, headrace: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    mine = settings(**LOOP)
    messages, versions = play(mine)
    producer = Producer(kafka.client_config(mine))
    for message in messages:
        kafka.produce(producer, mine.topic("transitions"), value=encode(message), partition=0)
    for version in versions:
        kafka.produce(
            producer, mine.topic("policy-versions"), key=version.part.encode(), value=encode(version), partition=0
        )
    assert producer.flush(20) == 0
    (tmp_path / "headrace.toml").write_text(
        f'[kafka]\n"bootstrap.servers" = "{mine.bootstrap}"\n\n[topics]\nprefix = "{mine.topics.prefix}"\n\n'
        '[policy]\nname = "lints"\nfloor = 0.5\n'
    )

    def asked(*arguments: object) -> dict[str, Any]:
        code, out, err = headrace(*arguments, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        answer: dict[str, Any] = json.loads(out)
        return answer

    # The uniform policy, judged by the learned one's decisions, earns what the arm that was uniform did earn.
    judged = asked("transitions", "--target", "uniform", "--arm", "policy")
    own = asked("transitions", "--target", "uniform", "--arm", "random")
    assert own["ess_share"] == pytest.approx(1.0)
    assert judged["decisions"] > 200 and judged["ess_share"] > 0.05
    assert abs(judged["value"] - own["value"]) < 4 * (
        judged["estimates"][judged["headline"]]["standard_error"] + own["logged"]["standard_error"]
    )
    assert judged["calibration"] == pytest.approx(1.0, abs=5 * judged["calibration_error"])

    # A published policy, the latest and a certain one; the same from a file of the range.
    latest = asked("transitions", "--target", "lints", "--min-ess", 20)
    assert latest == asked("transitions", "--target", f"lints@{versions[-1].version}", "--min-ess", 20) | {
        "target": "lints"
    }
    code, out, _ = headrace("transitions", "--save", "range.jsonl.gz")
    assert (code, out) == (0, f"range.jsonl.gz: {len(messages):,} records\n")
    saved = asked("range.jsonl.gz", "--target", "lints", "--min-ess", 20)
    assert saved | {"log": ""} == latest | {"log": ""}

    # A part of it, and what is not there.
    half = len(messages) // 2
    assert asked(f"transitions@:{half}", "--target", "uniform")["decisions"] < judged["decisions"] + own["decisions"]
    code, out, err = headrace(f"transitions@{len(messages) + 10}:", "--target", "uniform")
    assert (code, out) == (1, "") and "holds no record in that range; it ends at offset" in err
    code, out, err = headrace("transitions", "--target", "lints@999999")
    assert (code, out) == (1, "") and "holds version 999999 of lints no more" in err
