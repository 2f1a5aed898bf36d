"""What members report of their slots' copies, for ``site status``. Read only."""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.members import MemberError, peer_apis
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.pool.state import PoolState


class CopyReport(NamedTuple):
    """What a member says of its slots.

    ``unsaved``: how many of their sessions etcd lacked at the most of late, and for how many ms (``unsaved_ms``). A
    member of an earlier release only says how many it lacks now. ``one_site``: how many slots are on one site only, and
    ``one_site_seconds`` since when the first of them is.
    """

    unsaved: int
    one_site_seconds: float = 0.0
    unsaved_ms: int = 0
    one_site: int = 0


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
    return CopyReport(
        int(unsaved), float(one_site.get("seconds", 0.0)), int(unsaved_ms), one_site=int(one_site.get("slots", 0))
    )
