"""One picture of a pool at one etcd revision, as JSON data. Pure.

A frame is made from the records of one moment, so no slot has two actives in it. It consists of objects, each with a
kind and a key: ``overview``, the members, the sites, the slots, the failovers and the Envoys. The views are those of
the reading commands (``understudy.deploy.inspect``), with what a page needs beside them.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from understudy.deploy.console.home import NO_HOME
from understudy.deploy.console.marks import UNKNOWN, Mark, marks_of, natural
from understudy.deploy.console.measured import NOT_MEASURED, Measured
from understudy.deploy.console.plans import last_plan
from understudy.deploy.console.problems import Problem, problems_of
from understudy.deploy.inspect.envoys import View
from understudy.deploy.inspect.member_views import MemberReport, slots_of
from understudy.deploy.inspect.site_reports import reports_in
from understudy.deploy.inspect.sites import (
    degraded_copies,
    degraded_etcd,
    degraded_sites,
    lag_text,
    loss_text,
    site_rows,
)
from understudy.deploy.inspect.versions import sessions_text
from understudy.deploy.inspect.views import failovers_view, status_view, table_view
from understudy.deploy.inspect.warnings import recorded_warnings
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.heartbeat.adaptive_timeout import adaptive_timeout
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.records import MemberState, Phase
from understudy.statesync.pool.site_copies import copies_by_slot
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.timing.duration import length

FAILOVERS_KEPT = 200
"""The number of newest failovers in a frame."""
PROBLEMS_SHOWN = 50
NO_GRADE = "none"
NO_LAG = "no write of late"
WELL_STATES = frozenset({"UP", "READY"})
BEATING_STATES = frozenset(MemberState) - {MemberState.LOST}

Objects = dict[str, View]


class Surroundings(msgspec.Struct, frozen=True):
    """What a frame has beside the records of etcd.

    Attributes:
        heard: the reports of members, as this control server got them.
        envoys: the xDS state of Envoys (``understudy.deploy.inspect.envoys``); None if it was not asked for yet.
        fronts: what front Envoys report (``understudy.deploy.inspect.fronts``).
        measured: what traces tell of failovers, by trace.
        warnings: more warnings, such as those of front Envoys.
        per_second: requests a second of late (``traffic.recent_rate``); None: not known.
        waits_for: why the rebalance that this control server carries out does not go on; '' while it does.
        home: the home of a pool on two distant sites (``home.py``).
        drill: the newest drill that was started at this control server (``drill_runs.py``).
        load: what members report of their load (``understudy.deploy.inspect.load``).
        links: links between sites that are cut, as the leading control server sees them.
        etcd: the state of each endpoint of etcd; empty if it was not asked for yet.
        headroom: whether the pool can carry its load without one member, in a sentence; '' if it was not asked for yet.
    """

    heard: Mapping[tuple[str, str], MemberReport] = msgspec.field(default_factory=dict)
    envoys: View | None = None
    fronts: Sequence[View] = ()
    measured: Mapping[str, Measured] = msgspec.field(default_factory=dict)
    warnings: Sequence[str] = ()
    load: Sequence[View] = ()
    links: Sequence[View] = ()
    etcd: Sequence[EndpointStatus] = ()
    headroom: str = ""
    per_second: float | None = None
    waits_for: str = ""
    home: View = msgspec.field(default_factory=lambda: NO_HOME)
    drill: View = msgspec.field(default_factory=dict)


class Frame(msgspec.Struct, frozen=True):
    """A pool at one revision.

    Attributes:
        pool: its name.
        revision: the etcd revision of the records.
        overview: the state in words and numbers, and the problems.
        objects: by kind, the objects of that kind by their keys.
    """

    pool: str
    revision: int
    overview: View
    objects: Mapping[str, Objects]

    def json(self) -> dict[str, Any]:
        """The frame for browsers."""
        return {"pool": self.pool, "revision": self.revision, "overview": self.overview, **self.objects}


def frame_of(state: PoolState, revision: int, now: float, around: Surroundings | None = None) -> Frame:
    """The pool at ``now`` (wall time in seconds), by records that were read at ``revision``."""
    around = around or Surroundings()
    status = status_view(
        state,
        revision=revision,
        envoys=around.envoys,
        fronts=around.fronts,
        heard=around.heard,
        load=around.load,
        warnings=[*recorded_warnings(state), *around.warnings],
    )
    slots = table_view(state)["slots"]
    marks = marks_of(_named(state, status, slots))
    members = _members(state, status["members"], marks, now)
    failovers = _failovers(state, around.measured)
    sites = site_rows(state, copies_by_slot(state), now, reports_in(around.load))
    problems = problems_of(state, status, now, _degraded(state, sites, now, around))
    return Frame(
        state.keys.pool,
        revision,
        {
            **_overview(status, problems, failovers, members),
            "headroom": around.headroom,
            "home": around.home,
            "per_second": around.per_second,
            "versions": [{**row, "told": sessions_text(row)} for row in status["versions"]],
            "plan": last_plan(state, around.waits_for),
            "drill": _drill(state, around.drill, now),
        },
        {
            "members": members,
            "sites": _sites(state, members, now, sites),
            "slots": {str(row["slot"]): _slot(state, row, marks) for row in slots},
            "failovers": failovers,
            "envoys": _envoys(around.envoys),
        },
    )


def _drill(state: PoolState, here: View, now: float) -> View:
    """The newest drill of this control server; if none runs here, one elsewhere that drains a member or a site."""
    if here.get("state") == "running":
        return here
    drained = [(f"drain of {name}", at.record) for name, at in sorted(state.intents.items())]
    offline = [(f"site {name} offline", at.record) for name, at in sorted(state.sites.items())]
    for what, intent in (*drained, *offline):
        if intent.drill and intent.holds(now):
            headline = f"A drill is running elsewhere: {what}, started by {intent.drill}."
            where = "The page of the control server that runs it, or the terminal, shows what it does."
            return {"state": "running", "headline": headline, "now": where}
    return here


def _named(state: PoolState, status: View, slots: Iterable[View]) -> set[str]:
    known = {row["member"] for row in status["members"]}
    return known | {row["owner"] for row in slots if row["owner"]} | state.members.keys()


def _members(state: PoolState, rows: Iterable[View], marks: Mapping[str, Mark], now: float) -> Objects:
    """The members, those with trouble first, with their marks and the intents of operators."""
    offline = state.offline(now)
    made = [
        {
            **row,
            **_mark_view(marks.get(row["member"], UNKNOWN)),
            "well": row["state"] in WELL_STATES and not row["reason"],
            "out": out,
            "until": until,
            **_patience(state, row),
        }
        for row in rows
        for out, until in (_out_of_service(state, row, offline, now),)
    ]
    made.sort(key=lambda row: (row["well"], marks.get(row["member"], UNKNOWN).place))
    return {row["member"]: row for row in made}


def _patience(state: PoolState, row: View) -> View:
    """How late the member's event loop was of late, and how long it may be silent until it is suspected; as text.

    Control servers that are late themselves wait longer.
    """
    if state.spec is None or row["state"] not in BEATING_STATES:
        return {"lag": "", "patience": ""}
    rules = state.spec.record.liveness
    return _patience_text(row["late_seconds"], rules.missed_beats * BEAT_INTERVAL, rules.load_cap_ms / 1000)


@functools.lru_cache(maxsize=256)
def _patience_text(late: float, usual: float, cap: float) -> View:
    """Kept, since members' records have few different values of it."""
    patience = adaptive_timeout(usual, late, cap)
    return {"lag": f"up to {length(late * 1000)}" if late else "none", "patience": length(patience * 1000)}


def _out_of_service(state: PoolState, row: View, offline: frozenset[str], now: float) -> tuple[str, float]:
    """Whether an operator took the member out of service (``drained``, ``site offline`` or ''), and until when."""
    intent = state.intents.get(row["member"])
    if intent is not None and intent.record.holds(now):
        return "drained", intent.record.until
    if row["site"] in offline:
        return "site offline", state.sites[row["site"]].record.until
    return "", 0.0


def _degraded(state: PoolState, sites: Sequence[View], now: float, around: Surroundings) -> Iterable[View]:
    """What is degraded of a pool with several sites, as ``site status`` says it; single members are problems anyway."""
    if len(sites) < 2:
        return
    seconds = max((row.get("one_site_seconds") or 0.0 for row in around.load), default=0.0)
    yield from degraded_sites(state, sites, now)
    yield from around.links
    yield from degraded_copies(state, now, seconds)
    yield from degraded_etcd(around.etcd)


def _sites(state: PoolState, members: Objects, now: float, sites: Sequence[View]) -> Objects:
    """The sites of members and of the spec, and those that an operator took offline: the rows of ``site status``."""
    offline, total = state.offline(now), slots_of(state)
    well = Counter(row["site"] for row in members.values() if row["well"])
    rows = {row["site"]: row for row in sites if row["site"]}
    return {
        site: {
            "site": site,
            "members": len(rows[site]["members"]),
            "well": well[site],
            "active": rows[site]["active"],
            "copies": rows[site]["copies"],
            "slots": total,
            "offline": site in offline,
            "state": "OFFLINE" if site in offline else "LOST" if rows[site]["state"] == "lost" else "IN SERVICE",
            "until": rows[site]["until"] or 0.0,
            "grade": rows[site]["grade"],
            "grade_why": rows[site]["grade_why"] or NO_GRADE,
            "if_lost": loss_text(rows[site]["if_lost"]),
            "lag": "; ".join(lag_text(other, lag) for other, lag in rows[site]["lag"].items()) or NO_LAG,
        }
        for site in sorted(rows, key=natural)
    }


def _slot(state: PoolState, row: View, marks: Mapping[str, Mark]) -> View:
    owner = row["owner"]
    at = state.owners.get(row["slot"])
    copies = len(agreed_set(at.record, state.sync_sets.get(row["slot"])).members) if at else 0
    moving = row["phase"] == Phase.HANDOVER or bool(owner and row["wanted"] and row["wanted"] != owner)
    return {
        **{name: row[name] for name in ("slot", "owner", "epoch", "phase", "to", "order", "wanted", "cause", "since")},
        **_mark_view(marks[owner] if owner else UNKNOWN),
        "copies": copies,
        "moving": moving,
    }


def _mark_view(mark: Mark) -> View:
    return {"mark": mark.text, "tone": mark.tone, "pattern": mark.pattern}


def _failovers(state: PoolState, measured: Mapping[str, Measured]) -> Objects:
    rows = failovers_view(state)["failovers"][:FAILOVERS_KEPT]
    return {
        row["trace"]: {
            **row,
            **measured.get(row["trace"], NOT_MEASURED).view(),
            "who": f"{', '.join(row['from']) or 'nobody'} → {', '.join(row['to'])}",
        }
        for row in rows
    }


def _envoys(envoys: View | None) -> Objects:
    """One object for each Envoy and control server that it is connected to."""
    return {f"{node['node']} {node['control']}": node for node in (envoys or {}).get("nodes", ())}


def _overview(status: View, problems: Sequence[Problem], failovers: Objects, members: Objects) -> View:
    last = next(iter(failovers.values()), None)
    serving = serving_of(members.values())
    traffic = _traffic(status["fronts"]) if status["envoys"] is not None else None
    return {
        "level": max((problem.level for problem in problems), default=0),
        "sentence": sentence(status, serving, len(members)),
        "exposure": _exposure(status["replication"]),
        "mode": status["mode"],
        "slots": status["slots"],
        "generation": status["table"]["generation"],
        "serving": serving,
        "members": len(members),
        "leader": next((one["name"] for one in status["controls"] if one["leader"]), ""),
        "controls": status["controls"],
        "last": None if last is None else {name: last[name] for name in ("trace", "kind", "started", "took", "who")},
        "traffic": traffic,
        "problems": [problem.view() for problem in problems[:PROBLEMS_SHOWN]],
        "more_problems": max(len(problems) - PROBLEMS_SHOWN, 0),
    }


def serving_of(members: Iterable[View]) -> int:
    """The number of members that serve: they are active for slots, and well."""
    return sum(row["active"] > 0 and row["state"] in WELL_STATES for row in members)


def sentence(status: View, serving: int, members: int) -> str:
    """The state of a pool in one sentence; ``status`` is its ``status`` view, which may be without ``replication``."""
    slots, copies = status["slots"], status["replication"]
    if not slots["total"]:
        return "The pool has no slot table yet."
    who = f"{serving} of {members} members serve"
    if slots["served"] < slots["total"]:
        left = slots["total"] - slots["served"]
        return f"{left} of {slots['total']} slots have no living owner; {who}."
    moving = slots["in_handover"] or slots["to_move"]
    rest = f", {max(slots['in_handover'], slots['to_move'])} of them are moving" if moving else ""
    single = copies["one_copy"] if copies else 0
    safe = f"; {single} have a single copy" if single else "; each has two copies or more" if copies else ""
    return f"All {slots['total']} slots are served{rest}{safe}; {who}."


def _exposure(copies: View | None) -> str:
    """What the death of one more member would cost."""
    if not copies or not copies["slots"]:
        return "Not known: there is no owner record yet."
    if copies["one_copy"]:
        how = "from etcd" if not copies["memory"] or not copies["wanted"] else "from etcd, which may lack newest writes"
        return f"{copies['one_copy']} slots have a single copy: a takeover reads them {how}."
    return "Every slot has two copies or more: the death of any one member loses no acknowledged write."


def _traffic(fronts: Sequence[View]) -> View | None:
    """Requests through front Envoys of late; None if none reported."""
    minutes = max((front["minutes"] for front in fronts), default=0)
    if not minutes:
        return None
    told = [said for front in fronts for said in front["members"].values()]
    return {
        "minutes": minutes,
        "elsewhere": sum(said["elsewhere"] for said in told),
        "unanswered": sum(said["timeouts"] + said["connect_failures"] for said in told),
    }
