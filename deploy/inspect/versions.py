"""What ``status`` says about the versions of the application in a pool with ``versions`` in its spec. Pure."""

from collections import Counter
from collections.abc import Iterator

from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.state import PoolState


def version_warnings(state: PoolState) -> Iterator[str]:
    """A version that the spec names and that no member can serve, with what becomes of its sessions."""
    spec = state.spec.record if state.spec else None
    if spec is None or spec.versions is None:
        return
    lost = state.table.record.lost if state.table else {}
    serving: Counter[str] = Counter()
    running = {at.record.app_version for at in state.members.values()} - {"", spec.versions.new_sessions}
    for name, at in state.members.items():
        gone = name in lost and lost[name].boot == at.record.boot
        if not gone and at.record.state in (MemberState.READY, MemberState.UP):
            serving[at.record.app_version] += 1
    new, unmarked, moves = spec.versions.new_sessions, spec.versions.unmarked, spec.versions.when_gone == "move"
    if not serving[new]:
        others = ", ".join(sorted(version for version in serving if version)) or "none"
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
