"""`headrace evaluate`: what a policy would have earned, judged by a log of what another one showed.

1 find the log, 2 find the target, 3 estimate or refuse, 4 tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.policy.evaluation.evaluation import MIN_ESS, Evaluation, Logged, Refused, evaluate
from headrace.streams import evaluate_log, evaluate_records, evaluate_rows
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.evaluate_log import Take
from headrace.streams.evaluate_report import as_json, as_lines
from headrace.streams.records import Transitions
from headrace.streams.settings import Settings

_ONLY_A_RANGE = "--save writes records of a topic range; this log is a file already"


@dataclass(frozen=True)
class Question:
    """`log` is a file or a topic range, `target` what is asked about: see docs/evaluation.md."""

    log: str
    target: str | None
    mapping: Path | None = None
    arm: str | None = None
    min_ess: float = MIN_ESS
    level: float = 0.95
    plot: Path | None = None
    save: Path | None = None
    json: bool = False


def run(settings: Settings, asked: Question) -> None:
    """Prints the answer. Raises HeadraceError, one line, also where there is no number to stand behind."""
    if not 0.5 < asked.level < 1:
        raise SettingsError(f"--level {asked.level:g}: give a share between 0.5 and 1, such as 0.95")
    if asked.target is None and asked.save is None:
        raise SettingsError("--target is missing: uniform, popular, a policy's name, or the file of a snapshot")
    wanted = evaluate_log.topic_range(asked.log)
    path = Path(asked.log)
    if wanted is None and not path.exists():
        raise SettingsError(f"{asked.log}: neither a file nor a topic range such as transitions or transitions@0:5000")
    if asked.plot is not None and asked.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"--plot {asked.plot}: name the file .png, .svg or .pdf")
    notes: list[str] = []
    if wanted is not None or evaluate_log.is_records(path):
        if asked.mapping is not None:
            raise SettingsError("--mapping is for foreign files: these are our own records")

        def source(take: Take) -> None:
            evaluate_log.from_topic(settings, wanted, take) if wanted else evaluate_log.from_file(path, take)

        if asked.save is not None:
            if wanted is None:
                raise SettingsError(_ONLY_A_RANGE)
            count = _saved(source, asked.save)
            if asked.target is None:
                print(f"{asked.save}: {count:,} records")
                return
        log, notes = _own(settings, asked, source)
    else:
        if asked.save is not None:
            raise SettingsError(_ONLY_A_RANGE)
        if asked.arm is not None:
            raise SettingsError("--arm is for our own records; leave rows of this log out with skip in the mapping")
        log = evaluate_rows.logged(
            evaluate_rows.read(path, asked.mapping), asked.target or "", floor=settings.policy.floor
        )
    _tell(asked, _judged(asked, log), notes)


def _saved(source: Callable[[Take], None], path: Path) -> int:
    """The number of records written."""
    count = 0
    with evaluate_log.saving(path) as write:

        def take(message: Transitions) -> None:
            nonlocal count
            write(message)
            count += 1

        source(take)
    return count


def _own(settings: Settings, asked: Question, source: Callable[[Take], None]) -> tuple[Logged, list[str]]:
    """Our own records, and what is to be said about them."""
    found = evaluate_records.Decisions(settings, arm=asked.arm)
    source(found.read)
    if asked.arm is not None and asked.arm not in found.arms:
        raise SettingsError(f"--arm {asked.arm}: the log holds {', '.join(found.arms) or 'no decision'}")
    decisions = found.judged()
    if not decisions:
        raise HeadraceError(f"no estimate: no decision of {sum(found.arms.values()):,} was shown")
    target, notes = asked.target or "", list[str]()
    by_chance = target in ("uniform", "random")
    if by_chance and not any(d.bound for d in decisions):
        log = evaluate_records.uniform(decisions, settings, dim=found.dim)
    else:  # what rules leave is known of decisions that were logged whole
        full = _whole(decisions)
        policy = evaluate_log.policy(settings, "random" if by_chance else target, dim=found.dim)
        log = evaluate_records.under(policy, full)
        notes.append(f"{len(full):,} of {len(decisions):,} decisions were logged with all candidates: those are judged")
    if found.left_out:
        notes.append("left out: " + ", ".join(f"{count:,} {why}" for why, count in found.left_out.most_common()))
    still_open = sum(not d.closed for d in decisions)
    if still_open:
        notes.append(f"{still_open:,} of {len(decisions):,} decisions are still open: their rewards may grow")
    return log, notes


def _whole(decisions: list[evaluate_records.Decision]) -> list[evaluate_records.Decision]:
    try:
        return evaluate_records.whole(decisions)
    except Refused as reason:
        raise HeadraceError(f"no estimate: {reason}") from None


def _judged(asked: Question, log: Logged) -> Evaluation:
    try:
        return evaluate(log, min_ess=asked.min_ess, level=asked.level)
    except Refused as reason:
        raise HeadraceError(f"no estimate: {reason}") from None


def _tell(asked: Question, answer: Evaluation, notes: list[str]) -> None:
    if asked.plot is not None:
        from headrace.streams.evaluate_plot import draw

        draw(answer, asked.plot, title=f"{asked.target} judged by {Path(asked.log).name}", level=asked.level)
    if asked.json:
        print(json.dumps(as_json(answer, log=asked.log, target=asked.target or "", level=asked.level, notes=notes)))
        return
    for line in as_lines(answer, log=asked.log, target=asked.target or "", level=asked.level, notes=notes):
        print(line)
    if asked.plot is not None:
        print(f"plot: {asked.plot}")
