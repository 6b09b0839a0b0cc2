"""`headrace explain RECOMMENDATION_ID`: one slate, from the log: who decided, on what, among what, by which rules, why.

Everything is read from the topics as it was written, nothing is decided again. Only the scores of candidates that were
not shown are computed: where the whole candidate table was logged (`decisions.full_share`) and `policy-versions` still
holds the version that decided. A user who was erased since is not shown, even where a record of him still waits for its
retention.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from headrace.policy.base import Query
from headrace.policy.features import SCALARS
from headrace.streams import evaluate_log, kafka, topics
from headrace.streams.errors import HeadraceError
from headrace.streams.insight import attributed
from headrace.streams.kafka import Message
from headrace.streams.people import subject
from headrace.streams.people.subject import time_of
from headrace.streams.records import Closed, Erased, Opened, Outcome, Transition, decode_transitions
from headrace.streams.records import item_key as key_of
from headrace.streams.rules.logged import unpack
from headrace.streams.settings import Settings
from headrace.streams.titles import Titles, read_titles

Found = dict[str, Any]
_LISTED = 20  # candidates that the lines for a person name; the JSON has them all


def explain(settings: Settings, name: str) -> Found:
    """As JSON could hold it; times are Unix ms, arrays lists.

    Raises HeadraceError, in one line, where no topic holds the slate, or its user has been erased.
    """
    topics.require(settings, wait=False)
    slates, records = _slates(settings, name), _records(settings, name)
    opened = next((record for record in records if isinstance(record, Opened)), None)
    if not slates and opened is None:
        kept = " and ".join(settings.topic(topic) for topic in ("recommendations", "transitions"))
        raise HeadraceError(f"{name}: no such recommendation_id in {kept}; older slates have left them (retention)")
    user = opened.user_id if opened is not None else str(slates[0][1]["user_id"])
    ts = opened.ts if opened is not None else int(slates[0][1]["ts"])
    if any(isinstance(record, Erased) for record in records) or subject.is_erased(settings, user, ts):
        raise HeadraceError(f"{name}: its user was erased since; the slate is not shown")
    wanted = {key_of(item["item_id"]) for _, slate in slates for item in slate["items"]}
    wanted |= {*_candidates(opened), *attributed.entry_keys(opened)} if opened is not None else set()
    return told(settings, name, slates, records, read_titles(settings, wanted))


def told(
    settings: Settings, name: str, slates: list[tuple[str, Found]], records: list[Transition], titles: Titles
) -> Found:
    """From what the topics hold of this id: `slates` are (topic, message), `records` those of `transitions`."""
    opened = next((record for record in records if isinstance(record, Opened)), None)
    own = [(topic, s) for topic, s in slates if s["policy"]["arm"] != "shadow"]
    topic, slate = own[0] if own else ("", None)
    found: Found = {"recommendation_id": name, "topic": topic, **_heads(opened, slate)}
    found["slate"] = _shown(opened, slate, titles)
    by_item = [] if opened is None else attributed.attributions(settings, opened, titles)
    for at, item in enumerate(found["slate"]):
        item["attributions"] = by_item[at] if at < len(by_item) else []
    if opened is None:
        found["not_logged"] = "transitions holds no record of this decision: its candidates and state are not known"
    else:
        found |= _of_decision(settings, opened, titles)
    found["unmet"] = list(slate.get("unmet", ())) if slate is not None else []
    found["outcomes"] = [_outcome(record) for record in records if isinstance(record, Outcome)]
    closed = next((record for record in records if isinstance(record, Closed)), None)
    found["closed"] = None if closed is None else {
        "as": closed.closed_as, "ts": closed.ts, "rewards": dict(zip(closed.shown, closed.rewards, strict=False)),
    }  # fmt: skip
    found["beside"] = [
        {"policy": s["policy"], "items": [item["item_id"] for item in s["items"]]}
        for _, s in slates
        if s["policy"]["arm"] == "shadow"
    ]
    return found


# -- the topics -------------------------------------------------------------------------------------------------------


def _slates(settings: Settings, name: str) -> list[tuple[str, Found]]:
    """Messages of both topics with this id: the shop's first."""
    found, mark = list[tuple[str, Found]](), name.encode()

    for topic in ("recommendations", "recommendations-shadow"):

        def take(message: Message, topic: str = topic) -> None:
            raw = message.value() or b""
            if mark in raw:  # most messages are not worth decoding
                slate = json.loads(raw)
                if slate.get("recommendation_id") == name:
                    found.append((topic, slate))

        kafka.read_to_end(settings, settings.topic(topic), take)
    return found


def _records(settings: Settings, name: str) -> list[Transition]:
    """Records of `transitions` about this decision, and of the erasure of its user after it."""
    found, mark, user = list[Transition](), name.encode(), ""

    def take(message: Message) -> None:
        nonlocal user
        raw = message.value() or b""
        if mark not in raw and not (user and user.encode() in raw):
            return
        for record in decode_transitions(raw).records:
            if isinstance(record, Opened | Outcome | Closed) and record.recommendation_id == name:
                user = record.user_id
                found.append(record)
            elif isinstance(record, Erased) and record.user_id == user:
                found.append(record)

    kafka.read_to_end(settings, settings.topic("transitions"), take)
    return found


# -- the decision -----------------------------------------------------------------------------------------------------


def _heads(opened: Opened | None, slate: Found | None) -> Found:
    if opened is not None:
        return {
            "user_id": opened.user_id, "ts": opened.ts, "placement": opened.placement, "arm": opened.arm,
            "policy": opened.policy, "version": opened.policy_version, "encoder_version": opened.encoder_version,
            "trigger": {"kind": opened.trigger_kind, "id": opened.trigger_id}, "shadow": opened.shadow,
            "counts_for_learning": not opened.busy,
        }  # fmt: skip
    s = slate or {}
    policy = s.get("policy", {})
    return {
        "user_id": s.get("user_id"), "ts": s.get("ts"), "placement": s.get("placement"), "arm": policy.get("arm"),
        "policy": policy.get("name"), "version": policy.get("version"), "encoder_version": s.get("encoder_version"),
        "trigger": s.get("trigger"), "shadow": False, "counts_for_learning": None,
    }  # fmt: skip


def _shown(opened: Opened | None, slate: Found | None, titles: Titles) -> list[Found]:
    """The slate by position: from the message, and with what the policy saw of each item from the record."""
    items: list[Found] = list(slate["items"]) if slate is not None else []
    if not items and opened is not None:  # the message has left its topic; score and reason with it
        propensities = np.frombuffer(opened.propensities, "<f8").tolist()
        items = [
            {"item_id": item, "position": at, "score": None, "propensity": p, "explored": bool(e), "reason": None}
            for at, (item, p, e) in enumerate(zip(opened.slate, propensities, opened.explored, strict=True))
        ]
    signals: list[Found] = [{} for _ in items]
    if opened is not None and len(opened.scalars) == 4 * len(items) * len(SCALARS):
        rows = np.frombuffer(opened.scalars, "<f4").reshape(len(items), len(SCALARS)).tolist()
        signals = [dict(zip(SCALARS, row, strict=True)) for row in rows]
    return [
        {**item, "title": titles.get(key_of(item["item_id"]), ("", None))[1], "signals": seen}
        for item, seen in zip(items, signals, strict=True)
    ]


def _of_decision(settings: Settings, opened: Opened, titles: Titles) -> Found:
    state = np.frombuffer(opened.state, "<f4")
    keys = _candidates(opened)
    candidates: list[Found] = [
        {"item_id": titles[key][0], "title": titles[key][1]} if key in titles else {"item_key": key} for key in keys
    ]
    scores, why_not = _rescored(settings, opened)
    if scores is not None:
        for candidate, (score, probability) in zip(candidates, scores, strict=True):
            candidate |= {"score": score, "probability": probability}
    return {
        "state": {"size": len(state), "norm": float(np.linalg.norm(state)), "values": state.tolist()},
        "context": np.frombuffer(opened.context, "<f4").tolist(),
        "rules": list(opened.rules),
        "rules_at": opened.rules_at,
        "candidates": candidates,
        "candidates_without_scores": why_not,
    }


def _candidates(opened: Opened) -> list[int]:
    keys: list[int] = np.frombuffer(opened.candidates, "<u8").tolist()
    return keys


def _rescored(settings: Settings, opened: Opened) -> tuple[list[tuple[float, float]] | None, str]:
    """(score, probability at the first position) of every candidate; or None and why not."""
    n, d = len(opened.candidates) // 8, len(opened.state) // 4
    if not n or len(opened.all_items) != 2 * n * d or len(opened.all_scalars) != 4 * n * len(SCALARS):
        share = settings.decisions.full_share
        return None, f"their features were not logged: of {share:.1%} of the decisions they are (decisions.full_share)"
    behavioural = opened.policy in ("random", "popular", "item_to_item")  # their scores are signals, logged
    try:
        asked = opened.policy if behavioural else f"{opened.policy}@{opened.policy_version}"
        policy = evaluate_log.policy(settings, asked, dim=d)
        query = Query(
            states=np.frombuffer(opened.state, "<f4")[None],
            contexts=np.frombuffer(opened.context, "<f4")[None],
            keys=np.frombuffer(opened.candidates, "<u8")[None],
            items=np.frombuffer(opened.all_items, "<f2").reshape(1, n, d).astype(np.float32),
            scalars=np.frombuffer(opened.all_scalars, "<f4").reshape(1, n, len(SCALARS)),
            mask=np.ones((1, n), np.bool_),
            streams=np.zeros(1, np.uint64),
        )
        places = {key: at for at, key in enumerate(_candidates(opened))}
        slate = np.array([[places[key_of(item)] for item in opened.slate]], np.int64)
        bound = unpack([opened.constraints], [n], n=n)
        probabilities, scores = policy.distributions(query, slate, bound)
    except HeadraceError as error:
        return None, str(error)
    except (ValueError, LookupError, msgspec.DecodeError) as error:  # made under other settings or by another release
        return None, f"today's settings do not read what was logged ({error})"
    return list(zip(scores[0].tolist(), probabilities[0, 0].tolist(), strict=True)), ""


def _outcome(record: Outcome) -> Found:
    return {
        "type": record.type, "ts": record.ts, "positions": list(record.positions), "reward": record.reward,
        "value": record.value, "matched": record.matched,
    }  # fmt: skip


# -- as lines ---------------------------------------------------------------------------------------------------------


def as_lines(found: Found) -> Iterator[str]:
    """For a person."""
    where = " (side topic: nobody was shown it)" if found["topic"] == "recommendations-shadow" else ""
    yield f"{found['recommendation_id']} for {found['user_id']}, {time_of(found['ts'])}{where}"
    yield f"  decided by {found['policy']} version {found['version']}, arm {found['arm']}, at {found['placement']}"
    trigger = found["trigger"] or {"kind": "?", "id": "?"}
    yield f"  asked for by the {trigger['kind']} {trigger['id']}"
    if found.get("state"):
        state = found["state"]
        kind = "no history" if not state["norm"] else f"length {state['norm']:.3f}"
        yield f"  state: {state['size']} numbers, {kind}; encoder {found['encoder_version']}"
    if found["counts_for_learning"] is False:
        yield "  not learned from: a crawler's, or of somebody who wants no profiling"
    if found.get("not_logged"):
        yield f"  {found['not_logged']}"
    yield from _rule_lines(found)
    yield "slate:"
    rows: list[tuple[str, ...]] = [("", "item", "score", "propensity", "", "reason")]
    for item in found["slate"]:
        how = "explored" if item["explored"] else ""
        score = "" if item["score"] is None else f"{item['score']:.4f}"
        rows.append(
            (str(item["position"]), _named(item), score, f"{item['propensity']:.4f}", how, item["reason"] or "")
        )
    yield from _table(rows)
    yield from attributed.lines(found["slate"])
    yield from _candidate_lines(found)
    yield from _outcome_lines(found)
    for other in found["beside"]:
        policy = other["policy"]
        yield f"in shadow {policy['name']} version {policy['version']} would have shown: {', '.join(other['items'])}"


def _rule_lines(found: Found) -> Iterator[str]:
    if found.get("rules"):
        yield f"  rules that bound it: {', '.join(found['rules'])} (rules known up to offset {found['rules_at']})"
    elif "rules" in found:
        known = f"rules known up to offset {found['rules_at']}" if found["rules_at"] >= 0 else "there were none"
        yield f"  no rule bound it ({known})"
    if found["unmet"]:
        yield f"  rules that could not be met: {', '.join(found['unmet'])}"


def _candidate_lines(found: Found) -> Iterator[str]:
    candidates = found.get("candidates")
    if candidates is None:
        return
    why_not = found["candidates_without_scores"]
    if why_not:
        yield f"candidates: {len(candidates)}, without scores: {why_not}"
        names = [_named(candidate) for candidate in candidates[:_LISTED]]
        yield "  " + ", ".join(names) + (", …" if len(candidates) > _LISTED else "")
        return
    best = sorted(candidates, key=lambda candidate: -candidate["score"])
    yield f"candidates: {len(best)}" + (f", the best {_LISTED}:" if len(best) > _LISTED else ":")
    rows: list[tuple[str, ...]] = [("", "item", "score", "probability first")]
    rows += [("", _named(c), f"{c['score']:.4f}", f"{c['probability']:.4f}") for c in best[:_LISTED]]
    yield from _table(rows)


def _outcome_lines(found: Found) -> Iterator[str]:
    if not found["outcomes"]:
        yield "outcomes: none known"
    for outcome in found["outcomes"]:
        positions = ", ".join(map(str, outcome["positions"]))
        yield f"{time_of(outcome['ts'])}  {outcome['type']} at {positions}, reward {outcome['reward']:+g}"
    if found["closed"]:
        yield f"closed {time_of(found['closed']['ts'])} as {found['closed']['as']}"


def _named(item: Found) -> str:
    name = item.get("item_id") or f"an item that is no longer known ({item.get('item_key')})"
    return f"{name} ({item['title']})" if item.get("title") else str(name)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
