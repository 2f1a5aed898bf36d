"""A review as one HTML page that needs nothing else: no script, no font, no network. Pure.

It opens with the verdict. It is made for a phone's width as for a wide screen, for light and dark, and for paper.
Colour never says anything alone: states are words, kinds of change have shapes. A content security policy in the page
itself forbids whatever hostile text could ask for, beyond the escaping.
"""

from html import escape

from understudy.telemetry.slo.model import MOST_PICTURED, Burn, Failover, Figure, Review, State
from understudy.telemetry.slo.plots import burn_down, by_phase, clean, timeline, waterfall
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
_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f6f7f9;--ink:#1b2430;--dim:#566171;--line:#d5dae1;--blue:#1f6fb5;
--good:#1a7340;--bad:#b3261e;--open:#8a5a00;--dear:#a2339a;--pale:#1f6fb526}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e6eaf0;--dim:#a3aebd;--line:#364150;
--blue:#6cb2f0;--good:#62c98b;--bad:#ff8a80;--open:#f0b44c;--dear:#e58ade;--pale:#6cb2f033}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:20px 16px 40px;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:.2em 0}h2{font-size:1.15rem;margin:0 0 .6em}
h3{font-size:1rem;margin:0 0 .2em}
header{border-left:8px solid var(--state);padding:.3em 0 .3em 16px;margin-bottom:24px}
header p{margin:.2em 0;color:var(--dim)}
.met{--state:var(--good)}.missed{--state:var(--bad)}.open{--state:var(--open)}.none{--state:var(--dim)}
.state{color:var(--state);font-weight:600;white-space:nowrap}
section{margin:0 0 28px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;min-width:0}
.wide{grid-column:1/-1}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:500;font-size:.85rem}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
td:first-child{font-weight:600}
.advice td{padding-top:0;font-weight:400;color:var(--dim);font-size:.9rem}
.has td{border-bottom:0}
svg{display:block;width:100%;max-width:620px;height:auto;font-size:14px}
svg text{fill:var(--dim)}svg .strong{fill:var(--ink);font-weight:600}svg .over{fill:var(--bg);font-weight:600}
.grid{stroke:var(--line);fill:none}.limit{stroke:var(--bad);stroke-width:2;stroke-dasharray:6 4;fill:none}
.dot,.crash{fill:var(--blue);fill-opacity:.6}.late{fill:var(--bad);fill-opacity:.9}
.median{stroke:var(--ink);stroke-width:3}.planned{fill:none;stroke:var(--dim);stroke-width:2}
.drill{fill:var(--dear);fill-opacity:.75}.unmeasured{stroke:var(--bad);stroke-width:3;fill:none}
.area{fill:var(--pale)}.line{fill:none;stroke:var(--blue);stroke-width:2.5}
.root{fill:var(--dim)}.phase{fill:var(--blue)}.dear{fill:var(--dear)}
.told,.empty{color:var(--dim);font-size:.9rem;margin:.7em 0 0}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;
color:var(--dim);font-size:.9rem;margin:.3em 0 0;padding:0;list-style:none}
.key svg{display:inline-block;width:16px;height:16px;vertical-align:-3px;margin-right:6px}
code{font:.85em/1.4 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.burns th,.burns td{padding:6px 4px}.burns td:nth-child(2),.burns th:nth-child(2){text-align:right}
.whole{white-space:nowrap}.scroll{overflow-x:auto}.scroll td{white-space:nowrap}
.facts{margin:0 0 .8em;color:var(--dim);font-size:.9rem;overflow-wrap:anywhere}
@media screen and (max-width:720px){h1{font-size:1.4rem}.figures thead{position:absolute;clip-path:inset(50%);
height:1px;width:1px;overflow:hidden}.figures tr{display:grid;grid-template-columns:1fr 1fr;padding:8px 0;
border-bottom:1px solid var(--line)}
.figures tr.has{border-bottom:0}.figures tr.advice{display:block;padding-top:0}.figures td{border:0;padding:2px 0;
text-align:left!important}.figures td[data-l]::before{content:attr(data-l) " ";color:var(--dim);font-weight:400}
.figures td:nth-child(2){text-align:right!important}
body{padding:12px 10px 32px}.card{padding:12px 10px}.burns{font-size:.85rem}
.burns .whole{white-space:normal}svg{font-size:15px}}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--dim:#444;--line:#bbb;
--blue:#1f6fb5;--good:#1a7340;
--bad:#b3261e;--open:#8a5a00;--dear:#a2339a;--pale:#1f6fb526}body{max-width:none;padding:0}
html,body{font-size:9pt}th,td{padding:3px 6px}td{white-space:nowrap}.advice td,.card td{white-space:normal}
.card,tr,header,svg{break-inside:avoid}.has,h2{break-after:avoid}.cards{gap:8px;grid-template-columns:1fr 1fr}
.card{padding:8px}section{margin-bottom:12px}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def page(review: Review, before: Review | None = None) -> str:
    """The whole page; ``before`` is the review of the window before it, to compare with."""
    state = _CLASS[review.state]
    drills = sum(bool(one.drill) for one in review.failovers)
    planned = sum(one.planned for one in review.failovers)
    worst = "".join(_worst(one, number) for number, one in enumerate(review.worst[:MOST_PICTURED], 1))
    worst = worst or '<p class="empty">No takeover was measured.</p>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,"><title>{clean(review.pool)}: {escape(str(review.state))}</title>
<style>{_STYLE}</style></head>
<body><header class="{state}" id="verdict">
<h1><span class="state">{_SIGN[review.state]}</span> {clean(verdict(review), 400)}</h1>
<p>Failover review of pool <strong>{clean(review.pool)}</strong>, {when(review.start_ns)} to {when(review.end_ns)} UTC:
{len(review.failovers)} changes of active, {planned} planned, {drills} drills.
{_left_out(review)}{_traffic(review)}</p></header>
<main><section id="objectives"><h2>Objectives</h2>{_figures(review, before)}</section>
<section class="cards">
<div class="card"><h2>Crash RTO by phase</h2>{by_phase(review)}</div>
<div class="card"><h2>Failovers over time</h2>{timeline(review)}{_key()}</div>
<div class="card"><h2>Error budget of unavailability</h2>{burn_down(review)}</div>
<div class="card"><h2>Burn</h2>{_burns(review)}</div></section>
{_costliest(review)}<section id="worst"><h2>Worst failovers</h2><div class="cards">{worst}</div>
</section></main></body></html>
"""


def _left_out(review: Review) -> str:
    return f" {escape(left_out_told(review))}." if review.left_out else ""


def _traffic(review: Review) -> str:
    """How much traffic there was, by front Envoys' counts."""
    traffic = review.traffic
    if traffic.requests is None:
        return " No front Envoy counted requests."
    envoys = "one front Envoy" if traffic.nodes == 1 else f"{traffic.nodes} front Envoys"
    covered = escape(share_told(traffic.covered, 0))
    return f" {traffic.requests:,} requests through {envoys}, counted for {covered} of the time."


def _figures(review: Review, before: Review | None) -> str:
    columns = [
        "Objective",
        "State",
        "Found",
        *(["Before"] if before else []),
        "Wanted",
        "Of",
        "Attained",
        "Budget left",
    ]
    earlier = {figure.key: figure for figure in before.figures} if before else {}
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = "".join(_row(figure, earlier.get(figure.key), len(columns)) for figure in review.figures)
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(figure: Figure, earlier: Figure | None, columns: int) -> str:
    def cell(label: str, text: str) -> str:
        return f'<td data-l="{label}">{escape(text)}</td>'

    cells = [
        f"<td>{escape(figure.title)}</td>",
        f'<td class="state {_CLASS[figure.state]}">{_SIGN[figure.state]} {escape(str(figure.state))}</td>',
        cell("found", figure.shown),
        *([cell("before", earlier.shown)] if earlier else []),
        cell("wanted", figure.wanted),
        cell("of", str(figure.total or "-")),
        cell("attained", "-" if figure.attainment is None else share_told(figure.attainment)),
        cell("budget left", "-" if figure.budget_left is None else share_told(figure.budget_left, 0)),
    ]
    told = "; ".join(filter(None, (figure.basis, figure.advice)))
    row = f'<tr id="figure-{figure.key}"{" class=has" if told else ""}>{"".join(cells)}</tr>'
    if told:
        row += f'<tr class="advice"><td colspan="{columns}">{clean(told, 400)}</td></tr>'
    return row


def _costliest(review: Review) -> str:
    """The changes in which most requests failed; nothing if none did."""
    rows = "".join(
        f"<tr><td>{when(one.began_ns)} UTC</td><td>{clean(change_told(one))}</td>"
        f"<td>{one.through.failed}</td><td>{one.through.retried}</td>"
        f"<td>{'?' if one.through.total is None else one.through.total}</td>"
        f"<td><code>{clean(one.trace)}</code></td></tr>"
        for one in review.costliest[:MOST_PICTURED]
        if one.through is not None
    )
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{one}</th>' for one in ("When", "What", "Failed", "Repeated", "Of", "Trace"))
    return (
        '<section id="costliest"><h2>Changes in which most requests failed</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _burns(review: Review) -> str:
    burnt = [one for one in review.figures if any(burn.long_rate or burn.short_rate for burn in one.burns)]
    told = (
        "How many times faster than its budget allows an objective is used up, in a long and a short window. "
        "Over the limit in both, it calls: a page, or a ticket."
    )
    if not burnt:
        return f'<p class="empty">No budget was burnt in the last three days.</p><p class="told">{told}</p>'
    windows = "".join(
        f'<th scope="col"><span class="whole">{burn.long} / {burn.short}</span><br>'
        f'<span class="whole">limit {burn.limit:g}</span></th>'
        for burn in burnt[0].burns
    )
    rows = "".join(
        f"<tr><td>{escape(figure.title)}</td>{''.join(_burn(burn) for burn in figure.burns)}</tr>" for figure in burnt
    )
    return (
        f'<table class="burns"><thead><tr><th scope="col">Objective</th>{windows}</tr></thead><tbody>{rows}</tbody>'
        f'</table><p class="told">{told}</p>'
    )


def _burn(burn: Burn) -> str:
    call = f' <span class="state missed">✗ {burn.severity}</span>' if burn.firing else ""
    return f'<td><span class="whole">{burn.long_rate:.1f} / {burn.short_rate:.1f}</span>{call}</td>'


def _worst(one: Failover, number: int) -> str:
    drill = f", drill: {clean(one.drill)}" if one.drill else ""
    told = f" {requests_told(one).capitalize()}." if requests_told(one) else ""
    gap = f" Clients noticed {length(one.gap_ms)}." if one.gap_ms is not None else ""
    dearest = f" Most of it went to <strong>{clean(one.dearest)}</strong>." if one.dearest else ""
    return (
        f'<article class="card waterfall"><h3>{length(one.total_ms or 0.0)} from {clean(one.source or "?")}{drill}</h3>'
        f'<p class="facts">{when(one.began_ns)} UTC, {one.slots} slots, '
        f"{clean(one.cause or 'no cause told')}.{dearest}{gap}{told}"
        f"<br>trace <code>{clean(one.trace)}</code></p>{waterfall(one, number)}</article>"
    )


def _key() -> str:
    shapes = (
        ('<circle class="crash" cx="8" cy="8" r="6"/>', "takeover"),
        ('<path class="drill" d="M8 1l7 7l-7 7l-7 -7z"/>', "drill"),
        ('<rect class="planned" x="3" y="3" width="10" height="10"/>', "planned"),
        ('<path class="unmeasured" d="M3 3l10 10m0 -10l-10 10"/>', "unmeasured"),
    )
    items = "".join(
        f'<li><svg viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>{name}</li>' for shape, name in shapes
    )
    return f'<ul class="key">{items}</ul>'
