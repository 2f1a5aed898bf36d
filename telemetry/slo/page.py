"""A review as one HTML page without scripts, fonts or network access. Pure.

The verdict comes first. The page fits phones, wide screens and paper, in light and dark. Nothing is shown by colour
alone: states are words, and kinds of change have shapes. The templates escape everything that they insert, and a
content security policy in the page forbids scripts and downloads.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from understudy.telemetry.slo import plots
from understudy.telemetry.slo.model import MOST_PICTURED, Figure, Review, State
from understudy.telemetry.slo.statement import caveat, present, statement
from understudy.telemetry.slo.view import change_told, left_out_told, requests_told, share_told, verdict, when
from understudy.telemetry.timing.duration import length

_CLASS = {
    State.MET: "met",
    State.MISSED: "missed",
    State.NOT_SHOWN: "open",
    State.NO_DATA: "open",
    State.NOT_JUDGED: "none",
}
_SIGN = {State.MET: "✓", State.MISSED: "✗", State.NOT_SHOWN: "…", State.NO_DATA: "?", State.NOT_JUDGED: "-"}

_FOLDER = Path(__file__).parent / "templates"
_STYLE = (_FOLDER / "review.css").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "img-src data:"
)
"""The page's Content-Security-Policy: it has one style sheet inside, known by its hash, and no script."""


def page(review: Review, before: Review | None = None, degraded: Sequence[str] | None = None) -> str:
    """The whole page; ``before`` is the review of the window before it, to compare with.

    ``degraded``: what is degraded in the pool now, each in words; None if it is not known.
    """
    return (
        _templates()
        .get_template("review.html")
        .render(
            review=review,
            policy=POLICY,
            style=_STYLE,
            before=before,
            earlier={figure.key: figure for figure in before.figures} if before else {},
            verdict=verdict(review),
            by_phase=plots.by_phase(review),
            timeline=plots.timeline(review),
            burn_down=plots.burn_down(review),
            burnt=[one for one in review.figures if any(burn.long_rate or burn.short_rate for burn in one.burns)],
            costliest=[one for one in review.costliest[:MOST_PICTURED] if one.through is not None],
            worst=review.worst[:MOST_PICTURED],
            waterfall=plots.waterfall,
            statement=statement(review.failovers),
            caveat=caveat(),
            present=present(degraded),
            degraded=degraded or (),
        )
    )


@functools.cache
def _templates() -> Environment:
    """The templates beside this file, compiled once, and the filters that they use."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        advice=_advice,
        change=change_told,
        clean=plots.clean,
        css=_CLASS.__getitem__,
        duration=length,
        left_out=left_out_told,
        requests=requests_told,
        share=share_told,
        sign=_SIGN.__getitem__,
        when=when,
    )
    return templates


def _advice(figure: Figure) -> str:
    """From what a figure was made, and what to do about it."""
    return "; ".join(filter(None, (figure.basis, figure.advice)))
