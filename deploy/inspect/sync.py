"""``status --sync``: how current the copies of each member are. Read only.

The command sends the revision of the pool's newest record to every member. A member is in sync when it has applied that
revision (it has one second for this) and has a whole copy of every slot that the table assigns to it. For a member that
does not answer, the error is shown.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import plain_table, utc_time
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.members import MemberError, PeerApiClient, peer_apis
from understudy.deploy.inspect.views import ranges
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState

KEYS_SHOWN = 5


def newest_revision(state: PoolState) -> int:
    """The newest revision of the pool's records."""
    singles = [at.revision for at in (state.table, state.spec) if at]
    many = [at.revision for kind in (state.owners, state.sync_sets, state.members) for at in kind.values()]
    return max([0, *singles, *many])


async def read_sync(state: PoolState, revision: int, tls: TlsOptions | None = None) -> View:
    """Ask every registered member whether it has applied ``revision``."""
    addresses = {name: at.record.peer for name, at in sorted(state.members.items())}
    async with peer_apis(addresses, tls, state.keys.pool) as members:
        answers = await asyncio.gather(*(_ask(members, member, revision) for member in addresses))
    return sync_view(state.keys, state, revision, dict(zip(addresses, answers, strict=True)))


async def _ask(members: PeerApiClient, member: str, revision: int) -> Any:  # noqa: ANN401 - JSON, or an error text
    try:
        return await members.get(member, STATUS_PATH, revision=revision)
    except MemberError as error:
        return error.detail


def sync_view(keys: PoolKeys, state: PoolState, revision: int, answers: Mapping[str, Any]) -> View:
    """Merge the answers of members. An answer is JSON, or an error text."""
    rows = [_row(name, str(state.members[name].record.state), revision, answer) for name, answer in answers.items()]
    table = state.table.record if state.table else None
    named = {member for order in (table.orders if table else ()) for member in order}
    not_registered = "not registered: its sidecar does not run, or cannot reach etcd"
    rows += [_row(name, "LOST", revision, not_registered) for name in sorted(named - answers.keys())]
    return {
        "pool": keys.pool,
        "revision": revision,
        "in_sync": bool(rows) and all(row["in_sync"] for row in rows),
        "members": rows,
    }


def _row(name: str, state: str, revision: int, answer: Any) -> View:  # noqa: ANN401 - JSON
    row: View = {"member": name, "state": state, "in_sync": False, "reason": ""}
    if not isinstance(answer, dict) or not isinstance(answer.get("sync"), dict):
        return {**row, "reason": answer if isinstance(answer, str) else "its sidecar has an older version"}
    sync = answer["sync"]
    behind = max(revision - answer["applied_revision"], 0)
    row |= {
        "state": answer["state"],
        "wanted": sync["wanted"],
        "synced": sync["in_sync"],
        "not_in_sync": sync["missing"],
        "behind_revisions": behind,
        "lag_ms": sync["lag_ms"],
        "queued_writes": answer["queued_writes"],
        "async_lost": answer["async_lost"],
        "overwrites": answer.get("overwrites"),
        "sessions": answer["sessions"],
        "last_full_sync": sync["last_full_sync"] or None,
        "full_syncs": sync["full_syncs"],
        "gaps": sync["gaps"],
        "resyncs": sync["resyncs"],
        "checked_slots": sync["checked_slots"],
    }
    missing = sync["wanted"] - sync["in_sync"]
    reasons = []
    if missing:
        reasons.append(f"slots still to be copied: {missing} ({ranges(sync['missing'])}{_more(missing, sync)})")
    if behind:
        reasons.append(f"{behind} revisions behind")
    if (missing or behind) and answer["trouble"]:
        reasons.append(answer["trouble"])
    return {**row, "in_sync": not reasons, "reason": "; ".join(reasons) or answer["trouble"] or answer["reason"]}


def _more(missing: int, sync: Mapping[str, Any]) -> str:
    return ", ..." if missing > len(sync["missing"]) else ""


def sync_table(view: View) -> RenderableType:
    """The table of ``status --sync``."""
    names = ("member", "state", "in sync", "slots", "behind", "lag ms", "queue", "last full sync", "resyncs", "reason")
    table = plain_table(*names)
    for row in view["members"]:
        in_sync = Text("yes", style="green") if row["in_sync"] else Text("no", style="red")
        if "wanted" not in row:
            table.add_row(row["member"], row["state"], in_sync, *[""] * 6, row["reason"])
            continue
        table.add_row(
            row["member"],
            row["state"],
            in_sync,
            f"{row['synced']}/{row['wanted']}",
            str(row["behind_revisions"]),
            str(row["lag_ms"]),
            str(row["queued_writes"]),
            utc_time(row["last_full_sync"]) if row["last_full_sync"] else "never",
            str(row["resyncs"]),
            row["reason"],
        )
    heading = Text(f"pool {view['pool']}, etcd revision {view['revision']}", style="bold")
    lost = [Text(line, style="yellow") for row in view["members"] if (line := _lost_updates(row))]
    return Group(heading, table, *lost)


def _lost_updates(row: View) -> str:
    """The lost updates that a member has seen, in a line; '' for none."""
    seen = row.get("overwrites")
    if not seen or not seen["written"] + seen["refused"]:
        return ""
    keys = ", ".join(f"{key['key_sha256']} ({key['count']})" for key in seen["keys"][:KEYS_SHOWN])
    return (
        f"{row['member']}: lost updates: {seen['written']} written, {seen['refused']} refused; SHA-256 of keys: {keys}"
    )
