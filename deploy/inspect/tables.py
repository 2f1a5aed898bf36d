"""Draws the answers of the reading commands for a terminal. Pure: views in, things that ``rich`` can print out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.deploy.common.console_style import coloured, plain_table, when
from understudy.deploy.inspect.envoys import envoys_table
from understudy.deploy.inspect.fronts import fronts_table
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.views import summarise_table
from understudy.telemetry.timing.duration import length

TRACE_SHOWN = 12
"""The digits of a trace id that tables show: enough for ``understudy trace``; ``-o json`` has them all."""


def status_table(view: View) -> RenderableType:
    """The answer of ``status``."""
    parts: list[RenderableType] = [_headline(view), *_last_known(view), members_table(view["members"])]
    controls = plain_table("control server", "role", "xDS", "admin", "version")
    for control in view["controls"]:
        role = "leader" if control["leader"] else "standby"
        controls.add_row(control["name"], role, control["grpc"], control["http"], control["version"])
    if view["controls"]:
        parts.append(controls)
    etcd = plain_table("etcd", "version", "role", "size")
    for endpoint in view["etcd"]:
        role = "leader" if endpoint["leader"] else ("follower" if endpoint["version"] else "silent")
        etcd.add_row(endpoint["endpoint"], endpoint["version"], role, _size(endpoint["db_size"]))
    if view["etcd"]:
        parts.append(etcd)
    envoys = envoys_table(view["envoys"]) if view["envoys"] else None
    if envoys is not None:
        parts.append(envoys)
    if view["fronts"]:
        parts.append(fronts_table(view["fronts"]))
    if view["processes"]:
        parts.append(processes_table(view["processes"]))
    parts += [Text(f"! {warning}", style="yellow") for warning in view["warnings"]]
    return Group(*parts)


def members_table(members: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Members with their state and roles, and below them why some are not UP: a reason is a sentence."""
    table = plain_table("member", "state", "active", "standby", "backup", "site", "boot", "application")
    for member in members:
        table.add_row(
            member["member"],
            coloured(member["state"]),
            *(str(member[role]) for role in ("active", "standby", "backup")),
            member["site"],
            member["boot"][:8],
            member["app"],
        )
    reasons = [
        Text(f"{member['member']}: {member['reason']}", style="yellow") for member in members if member["reason"]
    ]
    busy = [
        Text(f"{member['member']}: its event loop was {late:g} s late of late, so it is given more time", style="dim")
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
    """The answer of ``table``: every slot, or slots of one order together."""
    away = f", offline: {', '.join(view['offline'])}" if view["offline"] else ""
    heading = Text(f"pool {view['pool']}, table generation {view['generation']}{away}")
    if every:
        table = plain_table("slot", "owner", "epoch", "phase", "order", "wanted active", "cause")
        for row in view["slots"]:
            wanted = row["wanted"] or ""
            table.add_row(
                str(row["slot"]),
                row["owner"] or "",
                str(row["epoch"] or ""),
                row["phase"] + (f" to {row['to']}" if row["to"] else ""),
                " > ".join(row["order"]),
                "" if wanted == row["owner"] else wanted,
                row["cause"],
            )
        return Group(heading, table)
    table = plain_table("active > standby > backup", "slots", "phase", "epochs", "which")
    for group in summarise_table(view):
        table.add_row(
            " > ".join(group["order"]) or "nobody",
            str(group["count"]),
            group["phase"],
            _span(group["epochs"]),
            _shortened(group["slots"]),
        )
    return Group(heading, table, Text("every slot: understudy table --all", style="dim"))


def explain_table(view: View) -> RenderableType:
    """The answer of ``explain``."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    order = view["order"]
    table.add_row("session key", view["key"])
    table.add_row("slot", str(view["slot"]))
    table.add_row("owner", _owner_line(view))
    table.add_row("standby", order[1] if len(order) > 1 else "none")
    table.add_row("backups", ", ".join(order[2:]) or "none")
    session = view["session"]
    if session is None or not session["alive"]:
        why = "there is none" if session is None else ("deleted" if session["deleted"] else "expired")
        table.add_row("session", why)
        return table
    table.add_row("session", f"{session['size']} bytes of {session['content_type']}")
    table.add_row("etag", f"{session['etag']} (etcd revision {session['revision']})")
    table.add_row("expires", f"{when(session['expires'])}, in {session['expires_in']:.0f} s")
    if "body" in session:
        table.add_row("content", Text(str(session["body"])))
    return table


def sessions_table(view: View) -> RenderableType:
    """The answer of ``sessions``."""
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
    """The answer of ``failovers``."""
    if not view["failovers"]:
        return Text(f"pool {view['pool']} has had no failover")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("when", "took", "trace"):
        table.add_column(column, no_wrap=True, justify="right" if column == "took" else "left")
    table.add_column("what: from > to (slots), why", overflow="fold")
    for row in view["failovers"]:
        table.add_row(
            when(row["started"]),
            "-" if row["took_ms"] is None else length(row["took_ms"]),
            row["trace"][:TRACE_SHOWN],
            change_told(row),
        )
    return table


def change_told(row: Mapping[str, Any]) -> str:
    """A change of active in words: kind, from whom to whom with how many slots, and why."""
    kind = row["kind"] + (f" (drill: {row['drill']})" if row["drill"] else "")
    heirs = ", ".join(f"{member} ({count})" if count else member for member, count in row["to"].items())
    return f"{kind} {', '.join(row['from']) or 'nobody'} > {heirs}: {row['cause']}"


def _headline(view: View) -> Text:
    slots = view["slots"]
    text = Text(f"pool {view['pool']}: ", style="bold")
    if view["last_known"]:
        text.append("etcd is silent", style="bold red").append(
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


def _last_known(view: View) -> list[RenderableType]:
    """What is shown while etcd is silent: whose word it is, and how old."""
    known = view["last_known"]
    if not known:
        return []
    told = f"{known['source']} read the pool's records from etcd"
    age = "" if known["age_seconds"] is None else f" {known['age_seconds']:.0f} s ago"
    if not age:
        told = "no control server answers: this is what the members say"
    return [
        Text(f"! {known['etcd']}", style="red"),
        Text(f"! shown is the last known state: {told}{age}; members' states are as of now", style="yellow"),
        *(Text(f"! {fault}", style="yellow") for fault in known["unasked"]),
    ]


def _owner_line(view: View) -> str:
    if view["owner"] is None:
        return "nobody yet"
    line = f"{view['owner']}, epoch {view['epoch']}, since {when(view['since'])}"
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
