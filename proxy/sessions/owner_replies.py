"""What the owner of a slot answers to reads and writes alike."""

from understudy.proxy.http.problems import RESP_TYPE, Reply, problem
from understudy.proxy.ownership.owned_slots import OwnedSlot
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.write_limits import RETRY_AFTER
from understudy.statesync.sessions.replica import Replica

RESP_HEADERS = {"Content-Type": RESP_TYPE}
ETCD_TIMEOUT = 1.5
"""Seconds for which a read waits for etcd past the read deadline; also what a call to etcd may take."""


def placed(reply: Reply, owned: OwnedSlot, me: str) -> Reply:
    """The reply with the headers that say who answered for which slot, at which epoch."""
    place = {"Understudy-Slot": str(owned.slot), "Understudy-Epoch": str(owned.owner.epoch), "Understudy-Served-By": me}
    return Reply(reply.status, {**reply.headers, **place}, reply.body)


def unreadable(replica: Replica, call: Call, owned: OwnedSlot) -> Reply | None:
    """The answer for a session that exists and cannot be read here: it must not count as absent."""
    why = replica.unreadable(owned.slot, call.key)
    return problem(503, "session-unreadable", why, retry_after=RETRY_AFTER) if why else None
