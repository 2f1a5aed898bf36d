"""What ``status`` says about the versions of the application in a pool that has several. Pure.

A session belongs to the version that wrote it last, as its record says. The active of its slot counts it, whichever
version runs beside that.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from understudy.deploy.common.console_style import plain_table
from understudy.deploy.inspect.member_views import View
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec_versions import Versions
from understudy.statesync.pool.state import PoolState


def versions_view(state: PoolState, load: Sequence[View]) -> list[View]:
    """Each version: its members, and how many sessions it still has. Empty for a pool whose members name none.

    ``load`` is what members report (:mod:`understudy.deploy.inspect.load`). ``sessions`` is None if no member that is
    active has told; ``silent`` are those that have not, whose sessions are missing in it. The version '' has the
    sessions of which it is not known who wrote them.
    """
    spec = state.spec.record if state.spec else None
    wanted = spec.versions if spec else None
    running = Counter(at.record.app_version for at in state.members.values())
    if wanted is None and running.keys() <= {""}:
        return []
    told = {row["member"]: row["versions"] for row in load if row.get("versions") is not None}
    actives = {at.record.active for at in state.owners.values()}
    sessions: Counter[str] = Counter()
    for member in actives & told.keys():
        sessions.update(told[member])
    named = {*running, *sessions, *((wanted.new_sessions, wanted.unmarked or "") if wanted else ())}
    silent = sorted(actives - told.keys())
    return [
        {
            "version": version,
            "members": running[version],
            "serving": _serving(state, version),
            "sessions": sessions[version] if actives & told.keys() else None,
            "silent": silent,
            "takes": _takes(version, wanted),
        }
        for version in sorted(named)
        if version or running[""] or sessions[""]
    ]


def _serving(state: PoolState, version: str) -> int:
    """How many members of a version can answer."""
    lost = state.table.record.lost if state.table else {}
    return sum(
        at.record.app_version == version
        and at.record.state in (MemberState.READY, MemberState.UP)
        and not (name in lost and lost[name].boot == at.record.boot)
        for name, at in state.members.items()
    )


def _takes(version: str, wanted: Versions | None) -> str:
    """What a version is for, by the spec."""
    if wanted is None or not version:
        return ""
    roles = [("new sessions", wanted.new_sessions), ("sessions without a mark", wanted.unmarked)]
    return " and ".join(text for text, of in roles if of == version) or "its own sessions"


def sessions_text(row: Mapping[str, Any]) -> str:
    """The count of a row, with what it lacks."""
    if row["sessions"] is None:
        return "not known"
    silent = row["silent"]
    return f"{row['sessions']} or more: {len(silent)} members have not told theirs" if silent else str(row["sessions"])


def versions_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The table of ``status``."""
    table = plain_table("version", "members", "can serve", "sessions", "takes")
    for row in rows:
        counts = (str(row["members"]), str(row["serving"]), sessions_text(row))
        table.add_row(row["version"] or "(not known)", *counts, row["takes"])
    return table


def version_warnings(state: PoolState) -> Iterator[str]:
    """A version that the spec names and that no member can serve, with what becomes of its sessions."""
    spec = state.spec.record if state.spec else None
    if spec is None or spec.versions is None:
        return
    running = {at.record.app_version for at in state.members.values()} - {"", spec.versions.new_sessions}
    serving = Counter({one: _serving(state, one) for one in {at.record.app_version for at in state.members.values()}})
    new, unmarked, moves = spec.versions.new_sessions, spec.versions.unmarked, spec.versions.when_gone == "move"
    if not serving[new]:
        others = ", ".join(sorted(version for version in +serving if version)) or "none"
        yield (
            f"new sessions are to begin on version {new}, and no member that is UP runs it. They begin on another one "
            f"(versions that run: {others}). Start a member with --app-version {new}, or change versions.new_sessions"
        )
    what = f"move to version {new}" if moves else "are refused with 503 (versions.when_gone: move moves them)"
    for version in sorted(running - {unmarked}):
        if not serving[version]:
            yield f"version {version} has members, and none of them is UP: its sessions {what}"
    if unmarked and unmarked != new and not serving[unmarked]:
        yield (
            f"no member that is UP runs version {unmarked}, and sessions without a mark belong to it: they {what}. If "
            "there are none any more, remove versions.unmarked"
        )
