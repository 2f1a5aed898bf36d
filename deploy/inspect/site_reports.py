"""What members report of their slots' copies, for ``site status``. Read only."""

import asyncio
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.load import LOAD_PATH, load_by_member
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.members import MemberError, peer_apis
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.pool.state import PoolState


class CopyReport(NamedTuple):
    """What a member says of its slots.

    ``unsaved``: how many of their sessions etcd lacked at the most of late, for how many ms (``unsaved_ms``), and how
    many writes (None: not told). A member of an earlier release only says how many sessions it lacks now.
    ``one_site``: how many slots are on one site only, and ``one_site_seconds`` for how long the first of them is.
    ``copy_lag``: for each other site, how many ms and writes its copies were behind at the most of late.
    """

    unsaved: int
    one_site_seconds: float = 0.0
    unsaved_ms: int = 0
    one_site: int = 0
    writes: int | None = None
    copy_lag: Mapping[str, tuple[int, int]] = MappingProxyType({})


async def read_reports(state: PoolState, tls: TlsOptions | None) -> dict[str, CopyReport | None]:
    """What each member reports; None for a member that does not answer."""
    addresses = {name: at.record.peer for name, at in sorted(state.members.items())}
    async with peer_apis(addresses, tls, state.keys.pool) as members:

        async def ask(member: str) -> CopyReport | None:
            try:
                return report_of((await members.get(member, STATUS_PATH))["replication"])
            except (MemberError, KeyError, TypeError, ValueError, AttributeError):
                return None

        return dict(zip(addresses, await asyncio.gather(*map(ask, addresses)), strict=True))


def report_of(replication: Mapping[str, Any]) -> CopyReport:
    """What a member's status says under ``replication``. Raises ``KeyError``, ``TypeError`` or ``ValueError``."""
    one_site = replication.get("one_site", {})  # 0.1.0 says neither this nor the most
    unsaved = replication.get("unsaved_sessions_most", replication["unsaved_sessions"])
    unsaved_ms = replication.get("unsaved_ms_most", 0)
    writes = replication.get("unsaved_writes_most")
    return CopyReport(
        int(unsaved),
        float(one_site.get("seconds", 0.0)),
        int(unsaved_ms),
        int(one_site.get("slots", 0)),
        None if writes is None else int(writes),
        {site: (int(lag["ms"]), int(lag["writes"])) for site, lag in replication.get("copy_lag", {}).items()},
    )


def reports_in(load: Iterable[View]) -> dict[str, CopyReport]:
    """The same as far as members say it with their heartbeats: from rows of ``/v1/load``."""
    return {row["member"]: _in_heartbeat(row) for row in load if row.get("unsaved")}


def _in_heartbeat(row: View) -> CopyReport:
    sessions, ms, *more = row["unsaved"]
    return CopyReport(
        sessions,
        row.get("one_site_seconds", 0.0),
        ms,
        writes=more[0] if more else None,
        copy_lag={site: (lag[0], lag[1]) for site, lag in (row.get("copy_lag") or {}).items()},
    )


async def read_lag_from(state: PoolState, site: str) -> dict[str, View]:
    """The same as :func:`lag_from` of the members of a site, by what control servers know; empty if none answers."""
    controls = [at.record.http for at in state.controls.values()]
    reports = reports_in(load_by_member(await ask_controls(controls, LOAD_PATH, state.keys.pool)))
    return lag_from(reports.get(name) for name, at in state.members.items() if at.record.site == site)


def lag_from(reports: Iterable[CopyReport | None]) -> dict[str, View]:
    """How far the copies on each other site were behind at the most of late, by what the members of one site say."""
    found: dict[str, View] = {}
    for site, (ms, writes) in (one for report in reports if report for one in report.copy_lag.items()):
        known = found.setdefault(site, {"ms": ms, "writes": writes})
        found[site] = {"ms": max(known["ms"], ms), "writes": max(known["writes"], writes)}
    return dict(sorted(found.items()))
