"""``site status``: who serves where, what is in sync, what the loss of each site would cost now, and what is degraded.

Pure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import plain_table, utc_time
from understudy.deploy.inspect.member_views import View, slots_of
from understudy.deploy.inspect.offline_sites import offline_text
from understudy.deploy.inspect.site_reports import CopyReport, lag_from
from understudy.deploy.inspect.tables import last_known_lines
from understudy.deploy.inspect.views import ranges
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.practice import Outcome
from understudy.statesync.pool.records import NO_ETCD, MemberState
from understudy.statesync.pool.site_copies import copies_by_slot, lagging_slots
from understudy.statesync.pool.site_grade import Grade, SiteMember, grades
from understudy.statesync.pool.state import PoolState

STANDS_BY = "standing by"


def sites_view(
    state: PoolState,
    *,
    revision: int,
    now: float,
    etcd: Sequence[EndpointStatus] = (),
    reports: Mapping[str, CopyReport | None] | None = None,
    shares: Mapping[str, View] | None = None,
    controls: Mapping[str, Any] | None = None,
    last_known: View | None = None,
) -> View:
    """The output of ``site status``.

    ``now`` is wall time in seconds, ``reports`` are those of :func:`read_reports`, ``shares`` that of
    :func:`understudy.deploy.inspect.fronts.read_share_at_home`, and ``controls`` what each control server answers at
    ``/v1/status``. ``last_known`` is the source and the age of the records, when etcd does not answer: control servers
    do not know sync sets, so then nothing is said about copies, but for what members report.
    """
    copies, total = copies_by_slot(state), slots_of(state)
    said = reports or {}
    rows = site_rows(state, copies, now, said)
    if last_known is not None:
        rows = [{**row, "copies": None, "if_lost": None} for row in rows]
    seconds = max((one.one_site_seconds for one in said.values() if one), default=0.0)
    return {
        "pool": state.keys.pool,
        "revision": revision,
        "last_known": last_known,
        "slots": total,
        "on_two_sites": None if last_known else sum(len(there) > 1 for there in copies.values()),
        "sites": rows,
        "switch": _switch_view(state, now),
        "practice": _practice_view(state),
        "front_requests": dict(sorted((shares or {}).items())),
        "degraded": [
            *degraded_sites(state, rows, now),
            *_lacking_members(state, rows),
            *cut_links(controls or {}, now),
            *(_reported_copies(said, now, seconds) if last_known else degraded_copies(state, now, seconds)),
            *(() if last_known else _unspread_copies(state)),
            *degraded_etcd(etcd),
        ],
    }


def degraded_sites(state: PoolState, rows: Sequence[View], now: float) -> Iterable[View]:
    """What the records say is degraded, but for copies and single members; ``rows`` are those of :func:`site_rows`."""
    yield from _sites_without_members(state, rows)
    yield from _resting_sites(state, rows, now)
    yield from _sites_left_with_group(state)
    yield from _degraded_needs(state)
    yield from _overdue(state, now)


def site_rows(
    state: PoolState, copies: Mapping[int, frozenset[str]], now: float, reports: Mapping[str, CopyReport | None]
) -> list[View]:
    """Each site of :func:`sites_view`; ``copies`` are those of :func:`copies_by_slot`."""
    graded = site_grades(state)
    declared = state.spec.record.sites.keys() if state.spec else frozenset[str]()
    names = sorted({at.record.site for at in state.members.values()} | state.offline(now) | declared)
    return [_site_view(state, name, copies, now, reports) | _graded(graded.get(name)) for name in names]


def site_grades(state: PoolState) -> dict[str, Grade]:
    """The grade of each site, as etcd has it; empty if the spec has no sites."""
    spec = state.spec.record if state.spec else None
    if spec is None or not spec.sites:
        return {}
    members = []
    for name, at in state.members.items():
        members.append(SiteMember(name, at.record.site, at.record.weight, _state_of(state, name).may_hold_slots))
    return grades(spec, members, state.lacking())


def _graded(grade: Grade | None) -> View:
    return {"grade": grade.value, "grade_why": grade.why} if grade else {"grade": None, "grade_why": ""}


def _switch_view(state: PoolState, now: float) -> View | None:
    """The last switch of an active/standby pool; None if it is none.

    ``frozen_for``: grades cause no other switch for so many seconds.
    """
    switch = state.table.record.switch if state.table else None
    if switch is None or state.spec is None:
        return None
    rules = state.spec.record.site_switch
    left = min(max(switch.at + rules.freeze - now, 0.0), rules.freeze)
    return {"to": list(switch.to), "at": switch.at, "why": switch.why, "gap": rules.gap, "frozen_for": left}


def _practice_view(state: PoolState) -> View | None:
    """The last practice of a switch; None if there was none."""
    runs = state.practices.record.runs if state.practices else ()
    return msgspec.to_builtins(runs[-1]) if runs else None


def _overdue(state: PoolState, now: float) -> Iterable[View]:
    """Too long ago that a switch was practised; a pool that never practised is not reminded."""
    if state.practices and state.practices.record.overdue(now):
        days = state.practices.record.every / 86400
        what = f"no switch of sites was practised to its end in the last {days:g} days"
        ended = [run.at for run in state.practices.record.runs if run.outcome is not Outcome.INTERRUPTED]
        since = max(ended) + state.practices.record.every if ended else None
        yield _degraded(what, since, "understudy drill site-offline --site SITE --for 10m")


def _degraded_needs(state: PoolState) -> Iterable[View]:
    """What sites need and do not have."""
    sites = state.spec.record.sites if state.spec else {}
    for (site, name), at in sorted(state.dependencies.items()):
        if site in sites and name in sites[site].needs:
            why = f" ({at.record.why})" if at.record.why else ""
            remedy = f"understudy site dependency {site} {name} up, when it is"
            yield _degraded(f"{name} of site {site} is down{why}", at.record.since, remedy)


def _site_view(
    state: PoolState,
    site: str,
    copies: Mapping[int, frozenset[str]],
    now: float,
    reports: Mapping[str, CopyReport | None],
) -> View:
    members = sorted(name for name, at in state.members.items() if at.record.site == site)
    states = {name: _state_of(state, name) for name in members}
    able = [name for name in members if states[name].may_hold_slots]
    there = frozenset(members)
    active = [slot for slot, at in state.owners.items() if at.record.active in there]
    intent = state.sites[site].record if site in state.sites and state.sites[site].record.holds(now) else None
    dead = all(one in (MemberState.LOST, MemberState.DOWN) for one in states.values())
    condition = "offline" if intent else "lost" if dead or not (active or able) else "serving" if active else STANDS_BY
    return {
        "site": site,
        "state": condition,
        "since": intent.since if intent else None,
        "until": (intent.until or None) if intent else None,
        "members": members,
        "able": able,
        "weight": sum(state.members[name].record.weight for name in able),
        "active": len(active),
        "copies": sum(site in having for having in copies.values()),
        "if_lost": _if_lost(state, site, active, copies, [reports.get(name) for name in members]),
        "lag": lag_from(reports.get(name) for name in members),
    }


def _state_of(state: PoolState, member: str) -> MemberState:
    """The state of a member by its record, unless control servers found this process dead."""
    record = state.members[member].record
    lost = state.table.record.lost.get(member) if state.table else None
    return MemberState.LOST if lost is not None and lost.boot == record.boot else record.state


def _if_lost(
    state: PoolState,
    site: str,
    active: Sequence[int],
    copies: Mapping[int, frozenset[str]],
    reports: Sequence[CopyReport | None],
) -> View:
    """What happens to the slots that are served on ``site`` if all its members die at once now.

    ``from_memory``: another site has a copy, so no acknowledged write of any class is lost. ``from_etcd``: no other
    site has one, and etcd has every acknowledged write. ``lossy``: no other site has one, and ``replicas`` writes of
    the last ``bound_ms`` may be in memory only: so many ``writes`` to so many ``sessions`` at the most, None if a
    member did not say.
    ``reports`` are those of its members. They tell of the last 10 s, so if the load grows, more may be lost.
    """
    others = bool({at.record.site for at in state.members.values() if at.record.state.may_hold_slots} - {site})
    alone = [slot for slot in active if not copies.get(slot, frozenset()) - {site}]
    lossy = [slot for slot in alone if agreed_set(state.owners[slot].record, state.sync_sets.get(slot)).memory]
    known = [one for one in reports if one is not None]
    everyone, lacked = len(known) == len(reports), [one.writes for one in known if one.writes is not None]
    bounds = [state.spec.record.replication.checkpoint_ms if state.spec else 0, *(one.unsaved_ms for one in known)]
    return {
        "survivors": others,
        "from_memory": len(active) - len(alone),
        "from_etcd": len(alone) - len(lossy),
        "lossy": len(lossy),
        "sessions": (sum(one.unsaved for one in known) if everyone else None) if lossy else 0,
        "writes": (sum(lacked) if len(lacked) == len(reports) else None) if lossy else 0,
        "bound_ms": max(bounds) if lossy else 0,
    }


def _since(state: PoolState, member: str) -> float | None:
    """Since when a member is in its state, if that is known."""
    at, lost = state.members[member], state.table.record.lost.get(member) if state.table else None
    return (lost.at if lost is not None and lost.boot == at.record.boot else at.record.since) or None


def _sites_without_members(state: PoolState, rows: Sequence[View]) -> Iterable[View]:
    """Sites that are offline or lost, and pools with one site only."""
    for row in rows:
        site = row["site"]
        if row["state"] == "offline":
            what = offline_text(site, row["until"], command=False)
            yield _degraded(what, row["since"], f"understudy site online {site}")
        elif row["state"] == "lost":
            reasons = [state.members[name].record.reason for name in row["members"]]
            cut_off = any(reasons) and all(reason.startswith(NO_ETCD) for reason in reasons)
            remedy = "bring etcd back" if cut_off else "start its members again"
            gone = [since for name in row["members"] if (since := _since(state, name))]
            yield _degraded(f"no member of {_named(site)} can serve", max(gone, default=None), remedy)
    if len({row["site"] for row in rows}) == 1:
        yield _degraded("all members are on one site", None, "start members with another --site")


def _lacking_members(state: PoolState, rows: Sequence[View]) -> Iterable[View]:
    """Members that cannot serve, of sites that can."""
    for row in rows:
        away = [name for name in row["members"] if name not in row["able"]]
        if not away or row["state"] in {"offline", "lost"}:
            continue
        states = ", ".join(f"{name} {_state_of(state, name)}" for name in away)
        drained = [f"understudy undrain {name}" for name in away if name in state.intents]
        since = [since for name in away if (since := _since(state, name))]
        remedy = "; ".join(drained) if len(drained) == len(away) else "understudy status"
        yield _degraded(f"{_named(row['site'])} lacks members: {states}", min(since, default=None), remedy)


def _resting_sites(state: PoolState, rows: Sequence[View], now: float) -> Iterable[View]:
    """Sites whose members are back, and that get no slots yet by the pool's ``recovery``."""
    resting = state.table.record.resting if state.table else {}
    spec = state.spec.record if state.spec else None
    serving = [row["site"] for row in rows if row["active"] and row["site"] not in resting]
    by_grade = bool(state.table and state.table.record.switch and state.table.record.switch.why)
    for row in rows:
        if spec is None or row["site"] not in resting or not row["able"]:
            continue
        back = min((since for name in row["able"] if (since := _since(state, name))), default=None)
        if now < (until := state.rests_until(row["site"])):
            what = f"{_named(row['site'])} is back, and rests since it was lost again within "
            what += f"{spec.site_switch.freeze:g} s after it had its slots back"
            ends = "" if spec.main_site else f"it gets slots from {utc_time(until)} on, or now by: "
            yield _degraded(what, back, f"{ends}understudy site online {row['site']}")
            continue
        if by_grade:
            what = f"{_named(row['site'])} stands by since another site has a better grade"
            remedy = (
                f"it serves again when its grade is better by {spec.site_switch.gap}, or by: understudy site offline"
            )
            yield _degraded(what, _switched_at(state, row["site"]), f"{remedy} {' or '.join(serving)} --for 2m")
            continue
        if spec.recovery == "prefer_site":
            remedy = f"nothing: it gets its slots when its members are in sync and stable for {spec.stable_for:g} s"
        else:
            remedy = f"understudy site offline {' or '.join(serving)} --for 2m, when it is to serve again"
        what = f"{_named(row['site'])} is back, and has no slots after it was lost"
        yield _degraded(what, back, remedy)


def _sites_left_with_group(state: PoolState) -> Iterable[View]:
    """Sites that get no slots because another pool of the group has none there."""
    table, group = state.table, state.spec.record.group if state.spec else None
    for site, pool in sorted(table.record.with_group.items()) if table else ():
        what = f"{_named(site)} has no slots since pool {pool} of group {group} has none there"
        yield _degraded(what, _switched_at(state, site), f"understudy site status --pool {pool}")


def _switched_at(state: PoolState, away: str) -> float | None:
    """When an active/standby pool was switched away from a site; None if another switch came later, or none."""
    switch = state.table.record.switch if state.table else None
    return switch.at if switch is not None and away not in switch.to else None


def cut_links(controls: Mapping[str, Any], now: float) -> Iterable[View]:
    """Sites whose members a control server reaches through etcd only."""
    for name, status in sorted(controls.items()):
        silent: dict[str, dict[str, float]] = {}
        for member in status.get("members", ()) if isinstance(status, dict) else ():
            if member.get("through_etcd_for") is not None:
                silent.setdefault(member["site"], {})[member["member"]] = member["through_etcd_for"]
        for site, members in sorted(silent.items()):
            named = ", ".join(sorted(members))
            what = f"the link to {_named(site)} is cut: control server {name} reaches {named} through etcd only"
            remedy = "mend the network between the sites; nothing moves as long as etcd reaches both"
            yield _degraded(what, now - max(members.values()), remedy)


def degraded_copies(state: PoolState, now: float, seconds: float) -> Iterable[View]:
    """Slots without a copy elsewhere; ``seconds``: for how long the first of them has been so."""
    lagging = lagging_slots(state, state.offline(now))
    if lagging:
        what = f"{len(lagging)} slots have current copies on one site only ({ranges(lagging)})"
        yield _degraded(what, now - seconds if seconds else None, "wait for the copies: understudy status --sync")


def _unspread_copies(state: PoolState) -> Iterable[View]:
    """A spec by which copies need not be on two sites."""
    spec = state.spec.record if state.spec else None
    unspread = spec is not None and spec.copies < 3 and spec.replication.spread is None
    if unspread and len({at.record.site for at in state.members.values()}) > 1:
        yield _degraded(
            "copies: 2 does not put copies on two sites",
            None,
            "apply a spec with copies: 3, or with replication: {spread: site}",
        )


def _reported_copies(reports: Mapping[str, CopyReport | None], now: float, seconds: float) -> Iterable[View]:
    """The same by the reports of members alone, when etcd does not say who has which copy."""
    slots = sum(one.one_site for one in reports.values() if one)
    if slots:
        what = f"{slots} slots have current copies on one site only, as their members say"
        yield _degraded(what, now - seconds if seconds else None, "wait for the copies: understudy status --sync")


def degraded_etcd(etcd: Sequence[EndpointStatus]) -> Iterable[View]:
    """Members of etcd that do not answer. Raft needs more than half of all for every write."""
    silent = [status.endpoint for status in etcd if not status.version]
    answering = len(etcd) - len(silent)
    if not silent:
        return
    needed = len(etcd) // 2 + 1
    remedy = "start these members of etcd again"
    if answering < needed:
        remedy += "; if their site never returns: understudy site take-over SITE --data-dir DIR --dry-run"
    more = "writes have stopped" if answering < needed else "the next loss stops writes"
    if answering > needed:
        more = "writes go on"
    yield _degraded(f"etcd does not answer at {', '.join(silent)}: {more}", None, remedy)


def _degraded(what: str, since: float | None, remedy: str) -> View:
    return {"what": what, "since": since, "remedy": remedy}


def _named(site: str) -> str:
    return f"site {site}" if site else "those without a site"


def sites_table(view: View, now: float) -> RenderableType:
    """The table of ``site status``."""
    copies = f"{view['on_two_sites']} of {view['slots']} slots have current copies on two sites or more"
    copies = "it is not known which slots have copies on two sites" if view["last_known"] else copies
    heading = Text(f"pool {view['pool']}: {copies}; etcd revision {view['revision']}", style="bold")
    table = plain_table("site", "state", "members able", "weight", "active", "copies", "if it died now")
    for row in view["sites"]:
        until = f" until {utc_time(row['until'])}" if row["until"] else ""
        table.add_row(
            row["site"] or "(none)",
            Text(row["state"] + until, style="green" if row["state"] in {"serving", STANDS_BY} else "red"),
            f"{len(row['able'])} of {len(row['members'])}",
            str(row["weight"]),
            str(row["active"]),
            "?" if row["copies"] is None else str(row["copies"]),
            loss_text(row["if_lost"]) if row["if_lost"] else "not known while etcd does not answer",
        )
    graded = [Text(f"grade of {_named(row['site'])}: {row['grade_why']}") for row in view["sites"] if row["grade_why"]]
    if view["switch"]:
        graded.append(Text(_switched(view["switch"], now)))
    if view["practice"]:
        graded.append(Text(_practised(view["practice"])))
    lags = [
        Text(f"behind site {row['site']} in the last 10 s: {', '.join(starmap(lag_text, lag.items()))}")
        for row in view["sites"]
        if (lag := row["lag"])
    ]
    shares = [Text(_share(site, said)) for site, said in view["front_requests"].items()]
    problems = [Text(f"! {problem_text(one, now)}", style="yellow") for one in view["degraded"]]
    return Group(heading, *last_known_lines(view["last_known"]), table, *lags, *graded, *shares, *problems)


def problem_text(one: Mapping[str, Any], now: float) -> str:
    """One of what is ``degraded``: what it is, for how long so far, and what ends it."""
    return f"{one['what']}{_so_far(one['since'], now)}: {one['remedy']}"


def _switched(switch: Mapping[str, Any], now: float) -> str:
    why = f" ({switch['why']})" if switch["why"] else ""
    frozen = f" no sooner than in {math.ceil(switch['frozen_for'])} s," if switch["frozen_for"] else ""
    return (
        f"{', '.join(switch['to']) or '(none)'} serves{_age(switch['at'], now)}{why}; grades switch{frozen} "
        f"from a difference of {switch['gap']} on"
    )


def _practised(run: Mapping[str, Any]) -> str:
    why = f" ({run['why']})" if run["why"] else ""
    back = "" if run["back_seconds"] is None else f", back after {run['back_seconds']:g} s"
    return (
        f"last practice: {utc_time(run['at'])}, site {run['site']} offline for {run['seconds']:g} s{back}: "
        f"{run['outcome']}{why}"
    )


def _share(site: str, said: Mapping[str, Any]) -> str:
    total = said["at_home"] + said["away"]
    minutes = round(said["window_seconds"] / 60)
    percent = math.floor(1000 * said["at_home"] / total) / 10
    return (
        f"front Envoys of site {site}: {percent:g} % of {total} requests with a session key went to its own members "
        f"in the last {minutes} min"
    )


def _age(since: float | None, now: float) -> str:
    if not since:
        return ""
    seconds = int(max(now - since, 0))
    minutes = seconds // 60
    if minutes < 1:
        return f" for {seconds} s"
    return f" for {minutes // 60} h {minutes % 60} min" if minutes >= 60 else f" for {minutes} min"


def _so_far(since: float | None, now: float) -> str:
    return f",{_age(since, now)} so far" if since else ""


def lag_text(site: str, lag: Mapping[str, Any]) -> str:
    """How far the copies on a site were behind the site that is described."""
    return f"{site} at most {lag['ms']} ms, {lag['writes']} writes"


def _most(count: int | None) -> str:
    return "an unknown number of" if count is None else f"at most {count}"


def loss_text(loss: Mapping[str, Any]) -> str:
    """What the loss of a site would mean, by its ``if_lost``."""
    if not loss["survivors"]:
        return "nobody serves: no other site has members"
    parts = []
    if loss["from_memory"]:
        parts.append(f"{loss['from_memory']} slots go on from memory elsewhere")
    if loss["from_etcd"]:
        parts.append(f"{loss['from_etcd']} slots are read from etcd")
    if loss["lossy"]:
        sessions, writes = _most(loss["sessions"]), _most(loss["writes"])
        bound = f"{writes} replicas writes of the last {loss['bound_ms']} ms, to {sessions} sessions, by the last 10 s"
        parts.append(f"{loss['lossy']} slots may lose {bound}; no sync write is lost")
    elif parts:
        parts.append("no acknowledged write is lost")
    return "; ".join(parts) or "no slot moves"
