"""Keeps the lead of etcd with one of its members: with sites, the witness, or a member on the larger site.

While the link between two sites is cut, etcd's leader decides who reaches etcd at once: those on its side do, and the
others first have to find another member. A leader at the witness keeps both sides. It also means that the loss of a
site takes no leader along, so no election delays the takeover.
"""

import asyncio
import logging
from collections.abc import Sequence

from understudy.statesync.etcd.client import EndpointStatus, EtcdClient, EtcdError
from understudy.statesync.etcd.settings import EtcdSettings

logger = logging.getLogger(__name__)

INTERVAL = 5.0
STEADY = 3
"""Looks in a row at which the preferred member must be fit to lead: one that comes and goes would cause elections."""
BEHIND_MOST = 1000
"""Entries of the log by which the preferred member may be behind: it must catch up before it leads."""


def hand_over(statuses: Sequence[EndpointStatus], preferred: str) -> tuple[EndpointStatus, EndpointStatus] | None:
    """The leader and the preferred member, if the one is to hand over to the other now. Pure."""
    leader = next((status for status in statuses if status.leader and status.member_id), None)
    wanted = next((status for status in statuses if status.endpoint == preferred), None)
    if leader is None or wanted is None or wanted.leader or not fit(wanted, leader):
        return None
    return leader, wanted


def fit(wanted: EndpointStatus, leader: EndpointStatus) -> bool:
    """Whether a member can lead as well as the leader: it answers, has a vote and no alarm, and is not far behind."""
    well = wanted.member_id and not wanted.errors and not wanted.learner
    return bool(well) and leader.raft_index - wanted.raft_index <= BEHIND_MOST


class PreferredLeader:
    """Looks every few seconds who leads etcd, and moves the lead to the preferred member.

    Each control server does so. If two of them do it at once, the second hand-over is refused.
    """

    def __init__(self, client: EtcdClient, settings: EtcdSettings) -> None:
        self._client = client
        self._preferred = settings.leader
        self._fit_looks = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        move = hand_over(await self._client.status(), self._preferred)
        self._fit_looks = self._fit_looks + 1 if move else 0
        if move is None or self._fit_looks < STEADY:
            return
        leader, wanted = move
        self._fit_looks = 0
        try:
            await self._client.move_leader(leader, wanted)
        except EtcdError as error:
            logger.warning("etcd's lead could not be moved from %s to %s: %s", leader.endpoint, wanted.endpoint, error)
        else:
            logger.info("etcd's lead is moved from %s to %s, as --etcd-leader says", leader.endpoint, wanted.endpoint)
