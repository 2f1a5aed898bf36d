"""The protocol between sidecars: its paths, what a probe can find, and how a call can fail.

A failed call is sorted into what a takeover needs to know. The peer *refused* the connection: nobody listens there, so
the process is gone. The exchange *broke*: it may have been carried out. The peer was *silent*. Over mTLS a peer may
also be *untrusted*: a certificate is wrong on one side. That proves neither its life nor its death, so no ownership
changes because of it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.ownership import CUT_OFF
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At

SESSIONS_PATH = "/peer/v1/sessions/"
COMMANDS_PATH = "/peer/v1/commands"
PREPARE_PATH = "/peer/v1/handover/prepare"
ACTIVATE_PATH = "/peer/v1/handover/activate"
ETCD_PATH = "/peer/v1/etcd"
STATUS_PATH = "/peer/v1/status"
TAKE_PATH = "/peer/v1/take"
REPLICATION_PATH = "/v1/replication"
ETCD_CHECK_TIMEOUT = 0.7
"""Seconds in which etcd must answer a read that a peer asks for; after that it counts as silent."""
HOP_HEADER = "Understudy-Hop"


class NotTaken(Exception):
    """This member did not become active for slots that were offered to it; the message says why."""


class PeerError(Exception):
    """A peer could not do what it was asked; ``member`` names it."""

    def __init__(self, member: str, detail: str) -> None:
        super().__init__(f"{member}: {detail}")
        self.member = member
        self.detail = detail


class PeerRefused(PeerError):
    """Nobody listens at the peer's address: nothing was done, and the process is gone."""


class PeerBroken(PeerError):
    """The connection broke or stayed silent after the request was sent: it may have been carried out."""


class PeerSilent(PeerBroken):
    """The peer answered neither the call nor the probes after it, or its process has stopped."""

    def __init__(self, member: str, result: "ProbeResult") -> None:
        super().__init__(member, str(result))
        self.result = result


class PeerUntrusted(PeerBroken):
    """A certificate is wrong on one side: nothing was done, and nothing is known of the peer."""


class PeerDeclined(PeerError):
    """The peer answered and refused."""


class ProbeResult(StrEnum):
    """What a probe found out about a peer."""

    ALIVE = "alive"
    GONE = "connection refused"
    UNREACHABLE = "its host cannot be reached"
    SILENT = "silent"
    SILENT_EVERYWHERE = "silent, also through etcd"
    LINK_CUT = "only etcd can reach it"
    STOPPED = "its process has stopped"
    REPLACED = "another process answers"
    CUT_OFF = CUT_OFF
    UNTRUSTED = "certificates are wrong"
    VOID = "this process stood still itself"

    @property
    def proves_death(self) -> bool:
        """Whether it proves that the process is dead: its host refuses, or another process has its name."""
        return self in (ProbeResult.GONE, ProbeResult.REPLACED)

    @property
    def condemns(self) -> bool:
        """Whether it is a witness against the peer, so that its slots may be taken over."""
        return self not in (ProbeResult.ALIVE, ProbeResult.LINK_CUT, ProbeResult.UNTRUSTED, ProbeResult.VOID)

    @property
    def is_silence(self) -> bool:
        """Whether the peer did not answer, which a cut link would explain too."""
        return self in (ProbeResult.SILENT, ProbeResult.STOPPED, ProbeResult.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Taken:
    """Of the slots given to a peer those that it has claimed or that others own by now, with their owner records.

    ``marker`` is the giver's commit marker then, if there was one. It is for givers of release 0.1.0: it tells them
    whether their last commit took effect.
    """

    owners: Mapping[int, At[Owner]]
    marker: Kv | None

    def as_json(self) -> dict[str, object]:
        """As it travels between peers."""
        marker = None
        if self.marker is not None:  # it may hold any bytes
            value = self.marker.value.decode("utf-8", "surrogateescape")
            marker = {**msgspec.structs.asdict(self.marker), "value": value}
        owners = {
            str(slot): {"record": dataclasses.asdict(at.record), "revision": at.revision}
            for slot, at in self.owners.items()
        }
        return {"owners": owners, "marker": marker}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Taken":
        """Read it; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
        marker = said["marker"]
        owners = {
            int(slot): At(Owner.of(one["record"]), int(one["revision"])) for slot, one in dict(said["owners"]).items()
        }
        return cls(owners, None if marker is None else _marker_of(marker))


def _marker_of(said: Mapping[str, Any]) -> Kv:
    return Kv(**{**said, "value": str(said["value"]).encode("utf-8", "surrogateescape")})
