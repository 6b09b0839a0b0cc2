"""`headrace evaluate` on our own records: what the worker logs can be asked about any policy, to the last bit."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from headrace.policy.checks import make_examples
from headrace.policy.evaluation.evaluation import Refused
from headrace.policy.snapshot import pack
from headrace.streams import cli, evaluate_log, evaluate_records, logs, start
from headrace.streams.engine import Engine
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.evaluate_records import Decisions
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.records import Closed, Erased, Opened, Transitions
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy, version_of
from tests.engine import ITEMS, PLACEMENTS, T0, Log, event
from tests.factories import make_closed, make_impression, make_opened, make_outcome, make_transitions

ARMS = ("lints", "neural_linear", "popular", "random")


def read(messages, settings, *, arm=None) -> Decisions:
    found = Decisions(settings, arm=arm)
    for message in messages:
        found.read(message)
    return found


def save(messages, path) -> None:
    with evaluate_log.saving(path) as write:
        for message in messages:
            write(message)


def read_file(path) -> list[Transitions]:
    found = []
    evaluate_log.from_file(path, found.append)
    return found


def make_settings(**sections) -> Settings:
    shares = {"shares": dict.fromkeys(ARMS, 0.25)}
    return Settings(placements=PLACEMENTS, arms=shares, **{"decisions": {"full_share": 1.0}, **sections})


@pytest.fixture(scope="module")
def learned(shared):
    """The arms' policies, those that learn after a few hundred examples."""
    found = {}
    for name in ARMS:
        policy = make_policy(make_settings(), name, dim=shared.encoder.dim)
        policy.learn(make_examples(policy, n=300))
        found[name] = policy
    return found


@pytest.fixture(scope="module")
def messages(shared, learned):
    """What four arms showed 120 users, who saw all of it and clicked on the first item of every third slate."""
    settings = make_settings()
    policies = Policies(settings, shared.items, dim=shared.encoder.dim)
    for name in ("lints", "neural_linear"):
        policies.apply(version_of(name, *learned[name].snapshot(), version=3, offset=0, replay_from=0, created_ms=0))
    recommender = Recommender(
        settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=shared.recommender.texts
    )
    shared.encoder.flush()
    log = Log(Engine(settings, 0, recommender))
    for i in range(120):
        user = f"u{i}"
        (slate,) = log.write(event("click", user=user, item=ITEMS[i % 16][0], at=T0 + i))
        name = slate["recommendation_id"]
        answers = [event("impression", user=user, recommendation_id=name, at=T0 + i)]
        if i % 3 == 0:
            first = slate["items"][0]["item_id"]
            answers.append(event("click", user=user, item=first, recommendation_id=name, at=T0 + i))
        log.write(*answers)
    return [Transitions(0, i, T0, False, [record]) for i, record in enumerate(log.records)]


def test_what_the_worker_logged_is_scored_again_with_the_same_propensities(messages, learned):
    settings = make_settings()
    for arm in ARMS:
        full = evaluate_records.whole(read(messages, settings, arm=arm).judged())
        log = evaluate_records.under(learned[arm], full)
        assert len(full) > 10
        assert log.target == pytest.approx(log.propensities, abs=1e-9), arm


def test_any_policy_can_be_asked(messages, learned, shared):
    found = read(messages, make_settings())
    full = evaluate_records.whole(found.judged())
    for name in ("item_to_item", "linucb"):
        policy = make_policy(make_settings(), name, dim=shared.encoder.dim)
        log = evaluate_records.under(policy, full)
        assert ((log.target > 0) & (log.target <= 1)).all()
        assert np.isfinite(log.model.q).all() and np.isfinite(log.model.v_onwards).all()
        assert log.model.v.shape == log.rewards.shape


def test_the_mean_over_the_targets_choice_is_the_mean_of_the_features(messages, shared):
    """Under the uniform target: the plain mean over the candidates left, and an item's own features where it stood."""
    found = read(messages, make_settings())
    full = evaluate_records.whole(found.judged())[:3]
    policy = make_policy(make_settings(), "random", dim=shared.encoder.dim)
    chosen, x, expected = evaluate_records._rescored(full, policy, 10)
    opened = full[0].opened
    n = len(opened.candidates) // 8
    items = np.frombuffer(opened.all_items, "<f2").reshape(n, -1).astype(np.float32)
    column = slice(policy.dim, 2 * policy.dim)  # φ's second block is the item's vector
    assert expected[0, 0, column] == pytest.approx(items.mean(axis=0), abs=1e-5)
    assert x[0, 0, column] == pytest.approx(np.frombuffer(opened.items, "<f2")[: policy.dim].astype(np.float32))
    assert chosen[0, : len(opened.slate)] == pytest.approx([1 / (n - j) for j in range(len(opened.slate))])


def test_only_a_share_is_logged_whole_and_which_is_the_same_in_every_run(shared):
    def full(share):
        settings = make_settings(decisions={"full_share": share})
        policies = Policies(settings, shared.items, dim=shared.encoder.dim)
        texts = shared.recommender.texts
        recommender = Recommender(settings, items=shared.items, policies=policies, encoder=shared.encoder, texts=texts)
        log = Log(Engine(settings, 0, recommender))
        for i in range(100):
            log.write(event("click", user=f"u{i}", item=ITEMS[i % 16][0], id=f"same-{i}", at=T0 + i))
        opened = log.of(Opened)
        sizes = [(len(o.all_items), len(o.all_scalars)) for o in opened]
        whole = [len(o.candidates) // 8 for o in opened]
        assert all(s in ((0, 0), (2 * n * 64, 4 * n * (len(o.scalars) // 4 // len(o.slate))))
                   for s, n, o in zip(sizes, whole, opened, strict=True))  # fmt: skip
        return {o.recommendation_id for o in opened if o.all_items}

    assert full(0.0) == set()
    some = full(0.3)
    assert some == full(0.3)
    assert 10 <= len(some) <= 55  # 30 expected of 100; a fixed draw
    assert some < full(1.0)


# -- what counts as a decision ----------------------------------------------------------------------------------------


def judged(*records, **decisions):
    found = read([make_transitions(*records)], Settings(decisions=decisions))
    return found.judged(), dict(found.left_out)


def test_a_decision_counts_as_learning_counts_it():
    opened = [make_opened(f"r-{n}", user=f"u{n}") for n in range(6)]
    told = [
        make_impression("r-0", positions=[0, 1]),
        make_outcome("r-0", position=1, reward=5.0),
        make_outcome("r-1", position=2, reward=1.0, outcome_id="twice"),
        make_outcome("r-1", position=2, reward=1.0, outcome_id="twice"),
        make_impression("r-2", positions=[0]),
        make_closed("r-2", closed_as="altered"),
        make_closed("r-3", closed_as="unshown"),
        make_impression("r-4", positions=[0]),
        Erased("u4", T0),
    ]
    decisions, left_out = judged(*opened, *told)
    assert [(d.shown, d.rewards) for d in decisions] == [({0, 1}, {1: 5.0}), ({2}, {2: 1.0})]
    assert left_out == {"altered": 1, "unshown": 1, "erased": 1, "not seen yet": 1}
    assert len(judged(*opened, assume_shown=True)[0]) == 6


def test_the_end_settles_it_and_a_return_still_counts():
    records = [
        make_opened(),
        make_outcome(position=1, reward=5.0),
        make_closed(rewards={0: 0.0, 1: 5.0}),
        make_outcome(position=1, reward=-5.0, type="return"),
        make_outcome(position=2, reward=1.0),  # after the end, of a position that was not shown
    ]
    ((decision,), _) = judged(*records)
    assert (decision.shown, decision.rewards, decision.closed) == ({0, 1}, {0: 0.0, 1: 0.0}, True)


def test_rewards_of_two_versions_are_never_mixed():
    opened = [make_opened(f"r-{n}", user=f"u{n}") for n in range(3)]
    told = [make_outcome("r-0", reward_version="r1"), make_outcome("r-1", reward_version="r2", reward=2.0)]
    decisions, left_out = judged(*opened, *told, assume_shown=True)
    assert [d.rewards for d in decisions] == [{0: 2.0}, {}], "what earned nothing has no version"
    assert left_out == {"with rewards of a version before r2": 1}


def test_a_decision_that_earned_under_two_versions_is_left_out():
    told = [
        make_impression("r-0", positions=[0], reward_version="r1"),
        make_outcome("r-0", reward_version="r1"),
        make_outcome("r-0", reward_version="r2", reward=2.0),
        make_impression("r-1", positions=[0], reward_version="r1"),
        make_outcome("r-1", reward_version="r2", reward=2.0),
        make_outcome("r-2", reward_version="r1"),
        make_closed("r-2", rewards={0: 1.0}, reward_version="r2"),
    ]
    decisions, left_out = judged(*(make_opened(f"r-{n}", user=f"u{n}") for n in range(3)), *told)
    assert [d.rewards for d in decisions] == [{0: 2.0}]
    assert left_out == {"with rewards of a version before r2": 2}


def test_what_a_user_does_while_busy_takes_the_decision_out_as_it_does_in_learning():
    opened = [make_opened(f"r-{n}", user=f"u{n}") for n in range(2)]
    told = [make_impression(o.recommendation_id, positions=[0]) for o in opened]
    decisions, left_out = judged(*opened, *told, make_outcome("r-0", busy=True), make_closed("r-0", rewards={0: 1.0}))
    assert [d.rewards for d in decisions] == [{}] and left_out == {"of crawlers": 1}


def test_tables_of_an_encoder_of_another_width_are_not_asked():
    def whole(name: str, d: int) -> Opened:
        made = make_opened(name, user=name, d=d, c=1)
        return msgspec.structs.replace(made, all_items=made.items, all_scalars=made.scalars)

    records = [whole("r-0", 32), whole("r-1", 64), make_impression("r-0", positions=[0]),
               make_impression("r-1", positions=[0])]  # fmt: skip
    found = read([make_transitions(*records)], Settings())
    decisions = found.judged()
    assert found.dim == 64 and len(decisions) == 2
    assert [d.opened.recommendation_id for d in evaluate_records.whole(decisions)] == ["r-1"]
    log = evaluate_records.uniform(decisions, Settings(), dim=found.dim)
    assert log.known.tolist() == [1]


def test_crawlers_are_left_out_and_repeated_records_change_nothing():
    opened = [make_opened("r-0", busy=True), make_opened("r-1"), make_opened("r-1")]
    decisions, left_out = judged(*opened, make_impression("r-0", positions=[0]), make_impression("r-1", positions=[0]))
    assert len(decisions) == 1 and left_out == {"of crawlers": 1}


def test_without_whole_tables_only_the_uniform_target_has_an_answer():
    records = [make_opened(f"r-{n}", user=f"u{n}") for n in range(3)]
    shown = [make_impression(f"r-{n}", positions=[0, 1, 2]) for n in range(3)]
    decisions, _ = judged(*records, *shown)
    with pytest.raises(Refused, match="none of 3 decisions was logged with all of its candidates: raise"):
        evaluate_records.whole(decisions)
    log = evaluate_records.uniform(decisions, Settings(), dim=0)
    assert log.model is None
    assert log.target[0] == pytest.approx([1 / 3, 1 / 2, 1])


# -- files and policies -----------------------------------------------------------------------------------------------


@pytest.fixture
def headrace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["headrace", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


CONFIG = '[placements.home]\nk = 3\n\n[policy]\nname = "lints"\n'


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_a_file_of_records_says_the_same_as_the_records(headrace, messages, tmp_path, name):
    save(messages, tmp_path / name)
    assert evaluate_log.is_records(tmp_path / name)
    assert read_file(tmp_path / name) == messages
    (tmp_path / "headrace.toml").write_text(CONFIG)
    code, out, err = headrace(name, "--target", "uniform", "--min-ess", 10, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["decisions"] == 120
    assert answer["logged"]["value"] == pytest.approx(40 / 120)
    assert any("120 of 120 decisions are still open" in note for note in answer["notes"])
    code, out, err = headrace(name, "--target", "uniform", "--min-ess", 5, "--arm", "random", "--json")
    assert code == 0 and json.loads(out)["ess_share"] == pytest.approx(1.0)
    code, _, err = headrace(name, "--target", "uniform", "--arm", "blue")
    assert code == 2 and err.startswith("headrace: --arm blue: the log holds ") and all(arm in err for arm in ARMS)


def test_a_snapshot_is_a_target_as_a_file_and_as_a_trained_folder(headrace, messages, learned, tmp_path):
    save(messages, tmp_path / "log.jsonl")
    (tmp_path / "headrace.toml").write_text(CONFIG)
    (tmp_path / "lints.safetensors").write_bytes(pack(*learned["lints"].snapshot())[0])
    start.write(tmp_path / "trained", learned["lints"])
    answers = []
    for target in ("lints.safetensors", "trained"):
        code, out, err = headrace("log.jsonl", "--target", target, "--arm", "lints", "--min-ess", 5, "--json")
        assert (code, err) == (0, ""), target
        answers.append(json.loads(out))
    assert answers[0]["estimates"] == answers[1]["estimates"]
    assert answers[0]["ess_share"] == pytest.approx(1.0, abs=1e-6), "judged by its own log"
    assert answers[0]["estimates"]["SNIPS"]["value"] == pytest.approx(answers[0]["logged"]["value"], abs=1e-6)


def test_what_is_no_policy_is_said_in_one_line(headrace, messages, tmp_path):
    save(messages, tmp_path / "log.jsonl")
    (tmp_path / "headrace.toml").write_text(CONFIG)
    code, _, err = headrace("log.jsonl", "--target", "lin_ucb")
    assert code == 2 and "--target lin_ucb: neither uniform, one of random" in err
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    code, _, err = headrace("log.jsonl", "--target", "bad.safetensors")
    assert code == 1 and "snapshot cannot be read" in err
    (tmp_path / "empty").mkdir()
    assert "name a folder that `headrace train` wrote" in headrace("log.jsonl", "--target", "empty")[2]
    assert "--mapping is for foreign files" in headrace("log.jsonl", "--target", "uniform", "--mapping", "m.toml")[2]
    assert "--target is missing" in headrace("log.jsonl")[2]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    save([make_transitions(make_opened())], path)
    path.write_bytes(path.read_bytes() + b'["x"]\n')
    with pytest.raises(HeadraceError, match="line 2 is no record of transitions"):
        read_file(path)
    with pytest.raises(SettingsError, match=r"name the file \.jsonl or \.jsonl\.gz"):
        save([], tmp_path / "log.csv")


def test_a_file_that_was_cut_off_is_said(headrace, tmp_path):
    save([make_transitions(make_opened(f"r-{n}")) for n in range(200)], tmp_path / "log.jsonl.gz")
    data = (tmp_path / "log.jsonl.gz").read_bytes()
    (tmp_path / "log.jsonl.gz").write_bytes(data[: len(data) // 2])
    code, _, err = headrace("log.jsonl.gz", "--target", "uniform")
    assert code == 1 and err.startswith("headrace: log.jsonl.gz: cannot be read: ")


def test_damaged_records_are_left_out():
    whole = make_opened("r-0", c=1)
    whole = msgspec.structs.replace(whole, all_items=whole.items, all_scalars=whole.scalars)
    changes = [
        {},
        {"propensities": whole.propensities[:-3]},
        {"candidates": whole.candidates[:-8] + bytes(8)},  # not one of the slate's
        {"all_items": np.full(3 * 64, np.nan, "<f2").tobytes()},
        {},
    ]
    records = [msgspec.structs.replace(whole, recommendation_id=f"r-{n}", **c) for n, c in enumerate(changes)]
    shown = [make_impression(f"r-{n}", positions=[0]) for n in range(5)]
    ended = msgspec.structs.replace(make_closed("r-4", rewards={0: 1.0}), rewards=[1.0, 2.0])
    decisions, left_out = judged(*records, *shown, ended)
    assert [d.opened is not None for d in decisions] == [True, False, False] and left_out == {"damaged": 2}


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        ("transitions", evaluate_log.Range(0, None)),
        ("transitions@10:20", evaluate_log.Range(10, 20)),
        ("transitions@10:", evaluate_log.Range(10, None)),
        ("transitions@:20", evaluate_log.Range(0, 20)),
        ("events", None),
        ("log.csv", None),
    ],
)
def test_topic_ranges(log, wanted):
    assert evaluate_log.topic_range(log) == wanted


def test_records_survive_json():
    message = make_transitions(make_opened(), make_outcome(), Closed("r", "u", "a", 1, 2, "shown", [0], [1.0], "r1"))
    assert msgspec.json.decode(msgspec.json.encode(message), type=Transitions) == message
