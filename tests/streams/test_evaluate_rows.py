"""`headrace evaluate` on files that others wrote: what it reads, what it says, what it refuses, each in one line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from headrace.streams import cli, logs

EARNS = {"a": 0.1, "b": 0.2, "c": 0.6}
MU = {"a": 0.5, "b": 0.3, "c": 0.2}
OPEN_BANDIT = Path(__file__).parents[3] / "shared/data/obd_small/bts/all/all.csv.gz"
MAPPINGS = Path(__file__).parents[2] / "examples/mappings"


@pytest.fixture
def headrace(tmp_path, monkeypatch, capsys):
    """Runs `headrace evaluate ...` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["headrace", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def rows(n=2_000, *, k=1, seed=0, **columns):
    """Decisions of `k` showings a row each; `columns` change or add columns: a value, or a function of the row."""
    rng = np.random.default_rng(seed)
    made = []
    for decision in range(n):
        for position in range(k):
            item = str(rng.choice(list(MU), p=list(MU.values())))
            row = {
                "user_id": f"u{decision % 400}",
                "decision_id": f"d{decision}",
                "ts": 1_790_000_000_000 + decision,
                "position": position,
                "item_id": item,
                "propensity": MU[item],
                "reward": float(rng.random() < EARNS[item]),
            }
            for name, value in columns.items():
                row[name] = value(row) if callable(value) else value
            made.append({name: value for name, value in row.items() if value is not None})
    return made


def write(path: Path, table) -> Path:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        if ".csv" in path.name:
            writer = csv.DictWriter(file, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        else:
            file.writelines(json.dumps(row) + "\n" for row in table)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz"])
def test_the_uniform_target_from_any_kind_of_file(headrace, tmp_path, name):
    code, out, err = headrace(write(tmp_path / name, rows()), "--target", "uniform", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    answer = json.loads(out)
    truth = sum(EARNS.values()) / 3
    assert answer["interval"][0] < truth < answer["interval"][1]
    assert answer["value"] == pytest.approx(truth, abs=0.04)
    assert answer["logged"]["value"] == pytest.approx(sum(MU[i] * EARNS[i] for i in MU), abs=0.04)
    assert (answer["decisions"], answer["users"], answer["headline"]) == (2_000, 400, "SNDR")
    assert answer["ess"] == pytest.approx(2_000 / sum((1 / 3) ** 2 / m for m in MU.values()), rel=0.05)


def test_a_parquet_file_says_the_same_as_the_csv(headrace, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = rows(600)
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "log.parquet")
    answers = [
        json.loads(headrace(path, "--target", "uniform", "--json")[1])
        for path in (tmp_path / "log.parquet", write(tmp_path / "log.csv", table))
    ]
    assert answers[0] | {"log": ""} == answers[1] | {"log": ""}


def test_popular_is_the_item_that_earned_most_elsewhere_and_a_floor(headrace, tmp_path):
    code, out, _ = headrace(write(tmp_path / "log.csv", rows()), "--target", "popular", "--json")
    truth = 0.9 * EARNS["c"] + 0.1 * sum(EARNS.values()) / 3
    assert code == 0
    assert json.loads(out)["value"] == pytest.approx(truth, abs=0.08)


def test_another_policys_probabilities_may_stand_in_columns(headrace, tmp_path):
    other = {"a": 0.2, "b": 0.2, "c": 0.6}
    path = write(tmp_path / "log.csv", rows(candidate=lambda row: other[row["item_id"]]))
    (tmp_path / "map.toml").write_text(
        '[log]\nitem_id = "item_id"\npropensity = "propensity"\nreward = "reward"\ntargets = { new = "candidate" }\n'
    )
    code, out, err = headrace(path, "--mapping", "map.toml", "--target", "new", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["value"] == pytest.approx(sum(other[i] * EARNS[i] for i in other), abs=0.05)
    assert answer["headline"] == "SNIPS" and "DR" not in answer["estimates"], "what else it might show is not known"
    code, _, err = headrace(path, "--mapping", "map.toml", "--target", "linucb")
    assert code == 2 and "this log can answer uniform, popular, new" in err


def test_rows_of_one_decision_are_a_slate_and_the_table_says_so(headrace, tmp_path):
    path = write(tmp_path / "log.csv", rows(1_500, k=2))
    code, out, _ = headrace(path, "--target", "uniform")
    assert code == 0
    assert "1,500 decisions of 400 users" in out
    assert "* cascade-DR" in out and "RIPS" in out
    assert "a showing at position" in out
    last = out.strip().splitlines()[-2]
    assert last.startswith("* uniform would have earned 0.") and "the logged policy earned 0." in last


def test_the_plot_is_drawn(headrace, tmp_path):
    path = write(tmp_path / "log.csv", rows(1_000, k=2))
    code, out, _ = headrace(path, "--target", "uniform", "--plot", "picture.png")
    assert code == 0 and "plot: picture.png" in out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert headrace(path, "--target", "uniform", "--plot", "picture.doc")[0] == 2


@pytest.mark.parametrize(
    ("columns", "options", "code", "line"),
    [
        ({"propensity": 1.0}, (), 1, "no estimate: 100% of the choices had propensity 1"),
        ({"propensity": 0.0}, (), 1, "no estimate: 2,000 of 2,000 propensities are not in (0, 1]"),
        ({"propensity": 1.5}, (), 1, "propensities are not in (0, 1]"),
        ({"reward": 0.0}, (), 1, "no estimate: no reward at all"),
        ({"propensity": 0.5}, (), 1, "no estimate: the weights average 0.667"),
        ({}, ("--min-ess", 1_900), 1, "decisions, 1900 are wanted: log more"),
        ({"reward": "many"}, (), 1, "2,000 rows are not usable: reward is not a number; first in row 1"),
        ({"propensity": ""}, (), 1, "no propensity: column 'propensity' is empty; first in row 1"),
        ({"propensity": 1e-300}, (), 1, "2,000 rows are not usable: propensity is below 1e-09; first in row 1"),
        ({"candidates": 0}, (), 1, "candidates is not between 1 and 1,000,000,000"),
        ({"position": 10**22}, (), 1, "position is not between -1,000,000,000 and 1,000,000,000"),
        ({"reward": 1e300}, (), 1, "reward is not between -1,000,000,000 and 1,000,000,000"),
        ({"propensity": None}, (), 2, "no column is called propensity; the columns are user_id"),
        ({}, ("--level", 2), 2, "--level 2: give a share between 0.5 and 1"),
        ({}, ("--arm", "policy"), 2, "--arm is for our own records"),
        ({}, ("--save", "x.jsonl"), 2, "--save writes records of a topic range"),
    ],
)
def test_what_it_cannot_stand_behind_is_one_line(headrace, tmp_path, columns, options, code, line):
    path = write(tmp_path / "log.csv", rows(**columns))
    done, out, err = headrace(path, "--target", "uniform", "--json", *options)
    assert (done, out) == (code, ""), "with --json nothing but an answer stands on stdout"
    assert err.count("\n") == 1 and line in err


def test_what_is_no_log_is_said(headrace, tmp_path):
    assert "neither a file nor a topic range" in headrace("nowhere.csv", "--target", "uniform")[2]
    assert "no known kind of file" in headrace(write(tmp_path / "log.txt", rows(5)), "--target", "uniform")[2]
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"item_id,propensity,reward\n" * 50_000)[:-20])
    assert "not a whole gzip file" in headrace(broken, "--target", "uniform")[2]
    (tmp_path / "map.toml").write_text('[log]\nitem_id = "sku"\npropensity = "propensity"\nreward = "reward"\n')
    path = write(tmp_path / "log.csv", rows(5))
    assert "no column 'sku' that the mapping names" in headrace(path, "--mapping", "map.toml", "--target", "popular")[2]


@pytest.mark.skipif(not OPEN_BANDIT.exists(), reason="shared/data/obd_small is not there")
def test_the_open_bandit_log_with_the_mapping_that_is_shipped(headrace):
    """10,000 impressions of Thompson sampling: the uniform policy's own log earned .0038 a showing."""
    given = (OPEN_BANDIT, "--mapping", MAPPINGS / "open_bandit.toml", "--json", "--target")
    code, out, err = headrace(*given, "uniform")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["logged"]["value"] == pytest.approx(42 / 10_000)
    assert answer["interval"][0] < 0.0038 < answer["interval"][1]
    assert [p["position"] for p in answer["positions"]] == [1, 2, 3]
