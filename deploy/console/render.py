"""Turns views into HTML with the templates beside this file. Everything that is inserted is escaped."""

import functools
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from understudy.deploy.common.printable import block, one_line
from understudy.telemetry.slo.view import budget_told, burn_told, verdict, when

FOLDER = Path(__file__).parent
PAGES = (
    ("", "Overview"),
    ("slots", "Slot map"),
    ("members", "Members and sites"),
    ("failovers", "Failovers"),
    ("explain", "Explain"),
    ("objectives", "Objectives"),
    ("envoys", "Envoys"),
    ("plans", "Drills and plans"),
    ("audit", "Audit"),
)
"""The pages of a pool: path and title, in the order of the menu."""

SIGNS = ("✓", "i", "!", "✗")
"""A sign for each level: no problem, notice, warning, alert."""
COPIES_AT_REST = 2
"""A slot with fewer copies is marked on the map."""


def render(template: str, **values: Any) -> str:  # noqa: ANN401 - what the template needs
    """A page."""
    return _templates().get_template(template).render(pages=PAGES, **values)


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    templates.filters.update(
        moment=moment,
        iso=iso,
        sign=SIGNS.__getitem__,
        search=_search,
        pre=_pre,
        verdict=verdict,
        budget=budget_told,
        burn=burn_told,
        when=when,
        cells=cells,
    )
    return templates


def _visible(value: Any) -> Any:  # noqa: ANN401 - any value that a template inserts
    """Text without characters that hide or turn round text, such as U+202E; each is shown as its escape."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def moment(seconds: float | None) -> str:
    """A moment in UTC, to the second; '' for none."""
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else ""


def iso(seconds: float | None) -> str:
    """The same for machines."""
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds else ""


def _search(members: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The members whose name, site or state has the text in it."""
    wanted = text.strip().lower()
    return [
        row
        for row in members
        if not wanted or any(wanted in str(row[name]).lower() for name in ("member", "site", "state"))
    ]


def _pre(text: str) -> Markup:
    """Text of several lines, escaped."""
    return escape(block(text))


def cells(slots: Iterable[Mapping[str, Any]], columns: int) -> Markup:
    """The cells of the slot map in rows. There are thousands of them: a template would take ten times as long."""
    found = [
        f'<div role="gridcell" id="s{int(slot["slot"])}" class="{_look(slot)}">{escape(slot["mark"])}</div>'
        for slot in slots
    ]
    found[:1] = [cell.replace(" id=", ' tabindex="0" id=', 1) for cell in found[:1]]
    rows = ("".join(found[first : first + columns]) for first in range(0, len(found), columns))
    return Markup("\n".join(f'<div role="row">{row}</div>' for row in rows))  # noqa: S704 - each part is escaped


def _look(slot: Mapping[str, Any]) -> str:
    """The classes of a cell, as slotmap.js sets them: colour, pattern, whether it moves or has a single copy."""
    more = " moving" if slot["moving"] else ""
    more += " single" if slot["owner"] and slot["copies"] < COPIES_AT_REST else ""
    return f"t{int(slot['tone'])} p{int(slot['pattern'])}{more}"
