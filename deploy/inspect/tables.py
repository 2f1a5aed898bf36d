"""The output of the reading commands as tables for a terminal. Pure: takes views, returns ``rich`` objects."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.deploy.common.console_style import coloured, plain_table, utc_time
from understudy.deploy.inspect.envoys import envoys_table
from understudy.deploy.inspect.fronts import fronts_table
from understudy.deploy.inspect.load import load_table
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.offline_sites import offline_text
from understudy.deploy.inspect.versions import versions_table
from understudy.deploy.inspect.views import summarise_table
from understudy.telemetry.timing.duration import length

TRACE_SHOWN = 12
"""Number of digits of a trace id in tables. They suffice for ``understudy trace``; ``-o json`` has all digits."""


def status_table(view: View) -> RenderableType:
    """The table of ``status``."""
    parts: list[RenderableType] = [
        _headline(view),
        *last_known_lines(view["last_known"]),
        *_replication(view["replication"]),
        members_table(view["members"]),
    ]
    controls = plain_table("control server", "role", "xDS", "admin", "version")
    for control in view["controls"]:
        role = "leader" if control["leader"] else "standby"
        controls.add_row(control["name"], role, control["grpc"], control["http"], control["version"])
    if view["controls"]:
        parts.append(controls)
    etcd = plain_table("etcd", "version", "role", "size")
    for endpoint in view["etcd"]:
        role = "leader" if endpoint["leader"] else ("follower" if endpoint["version"] else "no answer")
        etcd.add_row(endpoint["endpoint"], endpoint["version"], role, _size(endpoint["db_size"]))
    if view["etcd"]:
        parts.append(etcd)
    envoys = envoys_table(view["envoys"]) if view["envoys"] else None
    if envoys is not None:
        parts.append(envoys)
    if view["fronts"]:
        parts.append(fronts_table(view["fronts"]))
    if view["load"]:
        parts.append(load_table(view["load"]))
    if view["versions"]:
        parts.append(versions_table(view["versions"]))
    if view["processes"]:
        parts.append(processes_table(view["processes"]))
    parts += [Text(f"! {warning}", style="yellow") for warning in view["warnings"]]
    return Group(*parts)


def members_table(members: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Members with their state and roles. Below the table, a line with the reason of each that is not UP."""
    table = plain_table("member", "state", "active", "standby", "backup", "site", "boot", "application")
    for member in members:
        table.add_row(
            member["member"],
            coloured(member["state"]),
            *(str(member[role]) for role in ("active", "standby", "backup")),
            "/".join(part for part in (member["site"], member["zone"]) if part),
            member["boot"][:8],
            member["app"],
        )
    reasons = [
        Text(f"{member['member']}: {member['reason']}", style="yellow") for member in members if member["reason"]
    ]
    busy = [
        Text(f"{member['member']}: its event loop was late by {late:g} s recently, so it gets more time", style="dim")
        for member in members
        if (late := member["late_seconds"])
    ]
    return Group(table, *reasons, *busy)


def processes_table(processes: Iterable[Mapping[str, Any]]) -> Table:
    """The processes of a local pool."""
    table = plain_table("process", "state", "pid", "restarts", "last end")
    for process in processes:
        table.add_row(
            process["name"],
            coloured(process["state"]),
            str(process["pid"] or ""),
            str(process["restarts"] or ""),
            process["reason"],
        )
    return table


def slot_table(view: View, *, every: bool) -> RenderableType:
    """The table of ``table``: a line for each slot, or for each order."""
    away = f", offline: {', '.join(view['offline'])}" if view["offline"] else ""
    heading = Text(f"pool {view['pool']}, table generation {view['generation']}{away}")
    if every:
        table = plain_table("slot", "owner", "copies at", "epoch", "phase", "order", "apart", "wanted active", "cause")
        for row in view["slots"]:
            wanted = row["wanted"] or ""
            table.add_row(
                str(row["slot"]),
                row["owner"] or "",
                ", ".join(row["copies"]),
                str(row["epoch"] or ""),
                row["phase"] + (f" to {row['to']}" if row["to"] else ""),
                " > ".join(row["order"]),
                row["apart"]["level"],
                "" if wanted == row["owner"] else wanted,
                row["cause"],
            )
        return Group(heading, *_offline(view), table, *_why_not_further(view))
    table = plain_table("active > standby > backup", "slots", "phase", "apart", "epochs", "which")
    for group in summarise_table(view):
        table.add_row(
            " > ".join(group["order"]) or "none",
            str(group["count"]),
            group["phase"],
            group["apart"]["level"],
            _span(group["epochs"]),
            _shortened(group["slots"]),
        )
    hint = Text("for a line per slot: understudy table --all", style="dim")
    return Group(heading, *_offline(view), table, *_why_not_further(view), hint)


def _offline(view: View) -> list[Text]:
    """A line for each site that an operator took out of service, with what ends that."""
    ends = view["offline_until"].items()
    return [Text(f"! {offline_text(site, until)}: its members get no slots", style="yellow") for site, until in ends]


def _why_not_further(view: View) -> list[Text]:
    """A line for each reason why copies are not apart at a higher level, and one if the spec prefers members."""
    reasons = {(row["apart"]["level"], row["apart"]["why"]) for row in view["slots"] if row["apart"]["why"]}
    lines = [f"copies are apart by {level}: {why}" if level != "none" else why for level, why in sorted(reasons)]
    return [Text(line, style="dim") for line in (*lines, view["prefers"]) if line]


def explain_table(view: View) -> RenderableType:
    """The table of ``explain``."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    order = view["order"]
    table.add_row("session key", Text(view["key"]))
    table.add_row("read as", Text(view["read_as"]))
    if view["slot"] is None:
        return table
    table.add_row("hashed", Text(view["hashed"]))
    table.add_row("slot", str(view["slot"]))
    table.add_row("owner", _owner_line(view))
    table.add_row("standby", order[1] if len(order) > 1 else "none")
    table.add_row("backups", ", ".join(order[2:]) or "none")
    saved = "etcd may lack the newest writes" if view["memory"] else "etcd has every acknowledged write"
    table.add_row("copies at", f"{', '.join(view['copies']) or 'none'}; {saved}")
    apart = view["apart"]
    table.add_row("copies apart by", Text(apart["level"] + (f": {apart['why']}" if apart["why"] else "")))
    if view["prefers"]:
        table.add_row("preference", Text(view["prefers"]))
    if restored := view["restored"]:
        table.add_row("restored", Text(f"{utc_time(restored['at'])}, and not written since: {_missing(restored)}"))
    session = view["session"]
    if session is None or not session["alive"]:
        why = "not found" if session is None else ("deleted" if session["deleted"] else "expired")
        table.add_row("session", why)
        return table
    table.add_row("session", f"{session['size']} bytes of {session['content_type']}")
    table.add_row("etag", session["etag"])
    table.add_row("expires", f"{utc_time(session['expires'])}, in {session['expires_in']:.0f} s")
    if "body" in session:
        table.add_row("content", Text(str(session["body"])))
    return table


def sessions_table(view: View) -> RenderableType:
    """The table of ``sessions``."""
    table = plain_table("slot", "key", "bytes", "content type", "etag", "expires in s")
    for row in view["sessions"]:
        table.add_row(
            str(row["slot"]),
            row["key"],
            str(row["size"]),
            row["content_type"],
            row["etag"],
            f"{row['expires_in']:.0f}",
        )
    note = f"sessions shown: {len(view['sessions'])}; records in etcd: {view['records']}"
    return Group(table, Text(note, style="dim"))


def failovers_table(view: View) -> RenderableType:
    """The table of ``failovers``."""
    if not view["failovers"]:
        return Text(f"pool {view['pool']} has had no failover")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("when", "took", "trace"):
        table.add_column(column, no_wrap=True, justify="right" if column == "took" else "left")
    table.add_column("what: from > to (slots), why", overflow="fold")
    for row in view["failovers"]:
        table.add_row(
            utc_time(row["started"]),
            "-" if row["took_ms"] is None else length(row["took_ms"]),
            row["trace"][:TRACE_SHOWN],
            change_text(row),
        )
    return table


def change_text(row: Mapping[str, Any]) -> str:
    """A takeover or handover as text: its kind, from and to which members, the number of slots, and the cause."""
    kind = row["kind"] + (f" (drill: {row['drill']})" if row["drill"] else "")
    successors = ", ".join(f"{member} ({count})" if count else member for member, count in row["to"].items())
    lost = (
        f"; {row['restored']} slots restored with a loss of up to {row['loss_seconds']} s"
        if row.get("restored")
        else ""
    )
    if row.get("lost_site"):
        kind = f"site {row['lost_site']} lost (trace {row['site_trace']}): {kind}"
    return f"{kind} {', '.join(row['from']) or 'none'} > {successors}: {row['cause']}{lost}"


def _headline(view: View) -> Text:
    slots = view["slots"]
    text = Text(f"pool {view['pool']}: ", style="bold")
    if view["last_known"]:
        text.append("etcd does not answer", style="bold red").append(
            f"; {slots['served']} of {slots['total']} slots had an owner"
        )
    else:
        served = f"{slots['served']} of {slots['total']} slots served"
        text.append(served, style="bold green" if slots["served"] == slots["total"] else "bold red")
    if slots["in_handover"]:
        text.append(f", {slots['in_handover']} in handover")
    if slots["to_move"]:
        text.append(f", {slots['to_move']} to move")
    text.append(f"; table generation {view['table']['generation']}, etcd revision {view['revision']}")
    return text


def last_known_lines(known: View | None) -> list[RenderableType]:
    """The lines about the last known state, when etcd does not answer: its source and its age."""
    if not known:
        return []
    if known["age_seconds"] is None:
        origin = "no control server answers, so it comes from the members"
    else:
        origin = f"{known['source']} read the pool's records from etcd {known['age_seconds']:.0f} s ago"
    return [
        Text(f"! {known['etcd']}", style="red"),
        Text(f"! this is the last known state: {origin}; the states of members are current", style="yellow"),
        *(Text(f"! {fault}", style="yellow") for fault in known["unasked"]),
    ]


def _replication(view: View | None) -> Iterable[Text]:
    """The line about the copies of slots; none in a last known state, which does not tell."""
    if not view or not view["slots"]:
        return
    single, memory, losses = view["one_copy"], view["memory"], view["losses"]
    text = Text("replication: ")
    if single:
        text.append(
            f"{single} of {view['slots']} slots have fewer than two copies"
            + (", so their writes go through etcd" if view["wanted"] else ", so a takeover reads them from etcd"),
            style="yellow",
        )
    else:
        text.append(f"all {view['slots']} slots have two copies or more")
    if memory and not view["wanted"]:
        text.append(f"; the newest writes of {memory} slots may be in memory alone", style="yellow")
    if losses:
        text.append(f"; slots that were restored from etcd after all their copies were lost: {losses}", style="yellow")
        if last := view["last_loss"]:
            text.append(f", last {utc_time(last['at'])}: {_missing(last)}", style="yellow")
    yield text


def _missing(loss: View) -> str:
    return f"'replicas' writes of up to {loss['seconds']} s before it may be missing"


def _owner_line(view: View) -> str:
    if view["owner"] is None:
        return "none yet"
    line = f"{view['owner']}, epoch {view['epoch']}, since {utc_time(view['since'])}"
    if view["phase"] != "stable":
        line += f", {view['phase']} to {view['to']}"
    return line + (f" ({view['cause']})" if view["cause"] else "")


def _shortened(slots: str, most: int = 8) -> str:
    parts = slots.split(", ")
    return slots if len(parts) <= most else ", ".join([*parts[: most - 2], "...", parts[-1]])


def _size(count: int) -> str:
    return f"{count / 1_000_000:.1f} MB"


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
