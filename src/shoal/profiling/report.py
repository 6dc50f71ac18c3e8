"""A profile as one HTML file: it has no script and asks nobody for anything, and whatever others chose as a name is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from shoal.profiling.profile import Profile
from shoal.profiling.tables import TITLES, Row, summary, tables

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8884}th{font-weight:500;opacity:.7}
.bar{height:1.4rem;display:flex;border-radius:4px;overflow:hidden;margin:.2rem 0 .6rem}
.busy{background:#2a7f62}.bubble{background:#d0873c}.idle{background:#8885}p.note{opacity:.75}
"""


def html_report(profile: Profile) -> str:
    bars = "".join(
        f"<div>{escape(stage.node)}</div>{_bar((('busy', stage.busy), ('bubble', stage.bubble), ('idle', stage.idle)), profile.wall)}"
        for stage in profile.stages
    )
    body = "".join(f"<h2>{escape(TITLES[name])}</h2>{_table(rows)}" for name, rows in tables(profile).items() if rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in profile.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Profile of {escape(profile.model)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Profile of {escape(profile.model)}</h1><p>{escape(summary(profile))}</p>"
        f"<h2>Busy, bubbles, idle</h2>{bars}{body}{notes}</body></html>\n"
    )


def _bar(parts: Iterable[tuple[str, float]], whole: float) -> str:
    widths = ((name, 100 * seconds / whole if whole else 0.0) for name, seconds in parts)
    return (
        '<div class="bar">' + "".join(f'<div class="{n}" style="width:{w:.3f}%" title="{n} {w:.1f} %"></div>' for n, w in widths) + "</div>"
    )


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    lines = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
