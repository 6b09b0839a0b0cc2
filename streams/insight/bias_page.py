"""The bias report as one HTML page that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from headrace.streams.errors import HeadraceError
from headrace.streams.insight.bias import Figures
from headrace.streams.insight.page import INK, STYLE, draw, template, tile

CATALOGUE, SHOWN, CLICKED, BOUGHT = "#8c8c8c", "#0072b2", "#e69f00", "#009e73"  # Okabe & Ito 2008
_TERMS = (
    ("slot", "one position of a slate that was really shown. A decision shown in another order than ours counts not."),
    ("clicked", "the slot earned something by the settings' rewards; bought: a purchase that was not returned."),
    (
        "drawn at random",
        "every slot's propensity is logged, so shown slots can be weighed as if their items had been drawn evenly from"
        " the candidates. What a group gets then is what its items are worth wherever they stand, and whoever chose"
        " them; the interval is 95 %.",
    ),
    ("coverage", "of the catalogue's items, how many were shown at all."),
    ("Gini", "how unevenly: 0 where every item is shown alike, near 1 where one takes all."),
    ("popularity", "what all users did with an item in the time read, purchases counting most, slates or no slates."),
    ("looked at", "by the examination model, from slates and slots drawn at random: how often a place is seen at all."),
)


def write(found: Figures, folder: Path) -> Path:
    """Writes `bias.html` into `folder`, which is made if need be. Raises HeadraceError where it cannot be written."""
    path = folder / "bias.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(render(found), "utf-8")
    except OSError as error:
        raise HeadraceError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def render(found: Figures) -> str:
    page = template("headrace.streams.insight", "bias.html")
    findings = [f"<li>{escape(line)}</li>" for line in found["findings"]]
    popularity = found["groups"]["popularity"]
    return page.substitute(
        style=STYLE,
        lead=escape(lead(found)),
        tiles="".join(tile(*each) for each in _tiles(found)),
        findings=f"<ul>{''.join(findings)}</ul>" if findings else "<p>Nothing does.</p>",
        kinds="".join(
            _section(kind, rows) for kind, rows in found["groups"].items() if kind != "popularity" and len(rows) > 1
        ),
        popularity=escape(_popularity(found["popularity"])),
        popularity_plot=_popularity_plot(popularity),
        position_plot=_position_plot(found["positions"]),
        arms="".join(_arm(name, figures) for name, figures in found["arms"].items()),
        terms="".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS),
    )


def lead(found: Figures) -> str:
    first, last = (datetime.fromtimestamp(found[name] / 1000, UTC) for name in ("first_ms", "last_ms"))
    return (
        f"{found['decisions']:,} decisions from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC,"
        f" {found['all']['shown']:,} slots of {found['items']:,} items."
    )


def _tiles(found: Figures) -> list[tuple[str, str, str]]:
    whole, popularity = found["all"], found["groups"]["popularity"]
    tiles = [
        (f"{whole['coverage']:.0%}", "of the catalogue was shown", f"{found['items']:,} items"),
        (f"{whole['gini']:.2f}", "Gini of exposure", "0: all alike"),
        (f"{whole['rate']:.2%}", "clicks a slot", f"{whole['clicked']:,} clicks, {whole['bought']:,} bought"),
    ]
    if popularity and popularity[0]["shown_times"] is not None:
        tiles.append((f"{popularity[0]['shown']:.0%}", "of the slots", "go to the most popular tenth"))
    if found["groups"]["new items"][0]["items"]:
        new = found["groups"]["new items"][0]
        tiles.append(
            (f"{new['shown']:.1%}", "of the slots go to new items", f"{new['catalogue']:.1%} of the catalogue")
        )
    return tiles


def _section(kind: str, rows: Sequence[Figures]) -> str:
    heads = ("items", "catalogue", "shown", "clicked", "bought", "clicks a slot", "drawn at random")
    table = "".join(_row(row) for row in rows)
    return (
        f"<section><h2>By {escape(kind)}</h2><p>Shares of the catalogue, of what is shown, of the clicks and of the"
        f" purchases.</p>{_shares_plot(kind, rows)}<table><thead><tr><th>{escape(kind)}</th>"
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{table}</tbody></table></section>"
    )


def _row(row: Figures) -> str:
    shares = "".join(f"<td>{row[name]:.1%}</td>" for name in ("catalogue", "shown", "clicked", "bought"))
    drawn = row["drawn"]
    random = "–" if drawn["rate"] is None else f"{drawn['rate']:.2%} ({drawn['low']:.2%} – {drawn['high']:.2%})"
    rate = "–" if row["rate"] is None else f"{row['rate']:.2%}"
    return f"<tr><td>{escape(row['name'])}</td><td>{row['items']:,}</td>{shares}<td>{rate}</td><td>{random}</td></tr>"


def _arm(name: str, f: Figures) -> str:
    rate = "–" if f["rate"] is None else f"{f['rate']:.2%}"
    cells = (f"{f['decisions']:,}", rate, f"{f['bought']:,}", f"{f['coverage']:.0%}", f"{f['gini']:.2f}")
    shares = (f"{f['new']:.1%}", f"{f['popular tenth']:.1%}")
    return f"<tr><td>{escape(name.replace('_', ' '))}</td>{''.join(f'<td>{c}</td>' for c in (*cells, *shares))}</tr>"


def _popularity(f: Figures) -> str:
    told = {name: "–" if value is None else f"{value:+.2f}" for name, value in f.items()}
    return (
        "How often an item is shown goes with its popularity by a rank correlation of"
        f" {told['with_shown']}; what it is worth when drawn at random by {told['with_worth']}."
    )


# -- plots ------------------------------------------------------------------------------------------------------------


def _shares_plot(kind: str, rows: Sequence[Figures]) -> str:
    with draw(f"kind-{kind}", f"Shares by {kind}", width=9.6, height=1.1 + 0.42 * len(rows)) as drawing:
        axes = drawing.axes()
        axes.grid(axis="x")
        bars = (("catalogue", CATALOGUE), ("shown", SHOWN), ("clicked", CLICKED), ("bought", BOUGHT))
        for offset, (name, colour) in enumerate(bars):
            places = [len(rows) - 1 - place + (1.5 - offset) * 0.2 for place in range(len(rows))]
            axes.barh(places, [100 * row[name] for row in rows], height=0.18, color=colour, label=name)
        axes.set_yticks(range(len(rows)), [_plain(row["name"]) for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("% of all")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=9.5)
    return drawing.svg


def _popularity_plot(rows: Sequence[Figures]) -> str:
    known = [row for row in rows if row["shown_times"] is not None]
    with draw("popularity", "Exposure and worth by popularity") as drawing:
        axes = drawing.axes()
        axes.grid(axis="y")
        places = range(len(known))
        axes.plot(places, [row["shown_times"] for row in known], "o-", color=SHOWN, label="shown, × its share")
        worth = [(x, row) for x, row in enumerate(known) if row["worth_times"] is not None]
        axes.errorbar(
            [x for x, _ in worth],
            [row["worth_times"] for _, row in worth],
            yerr=[
                [max(row["worth_times"] - row["worth_low"], 0) for _, row in worth],
                [max(row["worth_high"] - row["worth_times"], 0) for _, row in worth],
            ],
            fmt="s", color=CLICKED, capsize=3, label="clicks when drawn at random, × the mean",
        )  # fmt: skip
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xticks(list(places), [row["name"].replace("most popular tenth", "1").replace("tenth ", "")
                                       .replace("nothing known", "none") for row in known])  # fmt: skip
        axes.set_xlabel("tenths by popularity, the most popular first")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9.5)
    return drawing.svg


def _position_plot(rows: Sequence[Figures]) -> str:
    with draw("position", "Clicks by position") as drawing:
        axes = drawing.axes()
        axes.grid(axis="y")
        drawn = [row for row in rows if row["drawn"]["rate"] is not None]
        axes.plot([row["position"] + 1 for row in rows], [100 * (row["rate"] or 0) for row in rows], "o-", color=SHOWN,
                  label="as shown")  # fmt: skip
        axes.errorbar(
            [row["position"] + 1 for row in drawn],
            [100 * row["drawn"]["rate"] for row in drawn],
            yerr=[
                [100 * max(row["drawn"]["rate"] - row["drawn"]["low"], 0) for row in drawn],
                [100 * max(row["drawn"]["high"] - row["drawn"]["rate"], 0) for row in drawn],
            ],
            fmt="s", color=CLICKED, capsize=3, label="drawn at random",
        )  # fmt: skip
        theta = [(row["position"] + 1, row["examination"]) for row in rows if row["examination"] is not None]
        if theta and drawn:
            first = drawn[0]["drawn"]["rate"]
            axes.plot([x for x, _ in theta], [100 * first * y for _, y in theta], "--", color=CATALOGUE,
                      label="by how often it is looked at")  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("position")
        axes.set_ylabel("% of slots clicked")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9.5)
    return drawing.svg


def _plain(text: str) -> str:
    """As a label: matplotlib reads what stands between two dollars as mathematics."""
    return (text if len(text) <= 28 else text[:27] + "…").replace("$", r"\$")
