"""`headrace report bias` on the broker: nothing shown is one line, what was shown is a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from headrace.streams import cli, logs
from headrace.streams.records import Item, encode
from tests.factories import make_impression, make_opened, make_outcome, make_transitions

if TYPE_CHECKING:
    from tests.conftest import MakeSettings

pytestmark = pytest.mark.kafka


def test_the_report_is_made_of_what_the_topics_hold(
    settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = settings()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    Path("headrace.toml").write_text(
        f'[kafka]\n"bootstrap.servers" = "{made.bootstrap}"\n[topics]\nprefix = "{made.topics.prefix}"\n', "utf-8"
    )

    def headrace(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "report", "bias", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(str(ended.value.code)), *capsys.readouterr()

    code, out, err = headrace()
    assert (code, out) == (1, "") and err.count("\n") == 1 and "holds no shown decision" in err

    producer = Producer({"bootstrap.servers": made.bootstrap})
    for i in range(4):
        item = Item(f"i{i}", 0, i, b"", "", 5.0 + i, "toys" if i % 2 else "books")
        producer.produce(made.topic("item-vectors"), key=item.item_id, value=encode(item))
    for i in range(20):
        opened = make_opened(f"r-{i}", user=f"u{i}", slate=["i0", "i1", "i2"])
        records = make_transitions(opened, make_impression(f"r-{i}", positions=[0, 1, 2]), make_outcome(f"r-{i}"))
        producer.produce(made.topic("transitions"), value=encode(records))
    assert producer.flush(10) == 0

    code, out, err = headrace("--out", "pages")
    assert (code, err) == (0, "") and "20 decisions" in out
    assert "By category" in Path("pages/bias.html").read_text("utf-8")
    code, out, _ = headrace("--json", "--last", "5")
    assert code == 0 and json.loads(out)["decisions"] == 5 and out.count("\n") == 1
