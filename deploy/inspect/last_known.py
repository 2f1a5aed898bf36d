"""The state of a pool without etcd: from control servers and from the members themselves. Read only.

Control servers get heartbeats of all members, also of those that cannot reach etcd. When etcd does not answer, control
servers have the records that they read last, and members report their own state.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import Layout, MemberAddresses
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.member_views import MemberReport, View, heard_by
from understudy.deploy.inspect.members import MemberError, PeerApiClient, peer_apis
from understudy.deploy.inspect.views import ranges
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.parsing.stored import typed
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner
from understudy.statesync.pool.state import At, PoolState

CONTROL_STATUS_PATH = "/v1/status"
MEMBER_TIMEOUT = 3.0
"""Seconds that a member has to answer."""
HEARD_WITHIN = 3.0
"""Seconds since its last heartbeat after which a member that does not answer is taken to be gone."""


@dataclass(frozen=True, slots=True)
class LastKnown:
    """A pool's records at ``revision``, which ``source`` read ``age`` seconds ago; None: the age is unknown."""

    source: str
    state: PoolState
    revision: int
    age: float | None


@dataclass(frozen=True, slots=True)
class WithoutEtcd:
    """A pool while etcd does not answer.

    Attributes:
        known: its records, as last read.
        heard: the reports of control servers and members about members.
        silent: the errors of members that do not answer.
        serving: the slots that each member serves.
        controls: the HTTP addresses of control servers, by name.
        statuses: what control servers answer at ``/v1/status``.
        origin: where the records come from, their age, etcd's error, and the errors of control servers.
    """

    known: LastKnown
    heard: Mapping[tuple[str, str], MemberReport]
    silent: Mapping[str, str]
    serving: Mapping[str, Sequence[int]]
    controls: Mapping[str, str]
    statuses: Sequence[Any]
    origin: View

    def as_reported(self) -> PoolState:
        """The records with the states that members report now. A member of which nobody hears is lost."""
        state = self.known.state
        for name, at in state.members.items():
            report = self.heard.get((name, at.record.boot))
            if report is not None and (name not in self.silent or report.age <= HEARD_WITHIN):
                state.members[name] = At(replace(at.record, state=report.state, reason=report.reason), at.revision)
            elif name in self.silent:
                gone = replace(at.record, state=MemberState.LOST, reason=self.silent[name])
                state.members[name] = At(gone, at.revision)
        return state


async def read_without_etcd(
    pool: str, layout: Layout | None, control_http: Sequence[str], tls: TlsOptions | None, fault: Exception
) -> WithoutEtcd:
    """The pool from control servers and members; ``fault`` is etcd's error.

    ``control_http`` are addresses of control servers. Without any, those of the local pool's ``layout`` are asked.

    Raises:
        DeployError: neither a control server nor a member answers.
    """
    known = tuple(control_http) or tuple(control.http for control in (layout.controls if layout else ()))
    found, faults = await read_last_known(known, pool)
    controls = {name: at.record.http for name, at in found.state.controls.items()} if found else {}
    statuses = await ask_controls({*known, *controls.values()} if found else (), CONTROL_STATUS_PATH, pool)
    places = layout.members if layout else ()
    addresses = {one.name: one.peer for one in places}
    if found:
        addresses |= {name: at.record.peer for name, at in found.state.members.items()}
    heard, silent, serving = await ask_members(addresses, heard_by(statuses), tls, pool)
    if found is None:
        if not serving:
            raise _unknown(fault, known, faults)
        found = of_members_alone(pool, places, heard, serving)
    origin = {"source": found.source, "age_seconds": found.age, "etcd": str(fault), "unasked": faults}
    return WithoutEtcd(found, heard, silent, serving, controls, statuses, origin)


def _unknown(fault: Exception, asked: Sequence[str], faults: Sequence[str]) -> DeployError:
    """The error when neither etcd nor a control server nor a member answers."""
    hint = "is etcd running there? (--etcd sets the address, 'understudy up' starts a local etcd)"
    if not asked:
        more = "--control-http HOST:PORT asks a control server for the last known state"
    else:
        more = f"no control server has the last known state either: {'; '.join(faults)}"
    return DeployError(f"{fault}; {hint}; {more}")


async def read_last_known(addresses: Sequence[str], pool: str) -> tuple[LastKnown | None, list[str]]:
    """The newest records that a control server has, and the errors of the others."""
    faults: list[str] = []
    found: list[LastKnown] = []
    for address, answer in zip(addresses, await ask_controls(addresses, "/v1/records", pool), strict=True):
        try:
            found.append(_last_known_of(answer, pool))
        except ValueError as error:
            faults.append(f"{address}: {error}" if not isinstance(answer, str) else answer)
    return max(found, key=lambda one: (one.revision, -(one.age or 0.0)), default=None), faults


def _last_known_of(answer: Any, pool: str) -> LastKnown:  # noqa: ANN401 - JSON
    """Read an answer. Raises ``ValueError`` if it is not one for this pool."""
    if not isinstance(answer, dict):
        raise ValueError("no answer")  # noqa: TRY004 - one error for all
    if answer.get("pool") != pool:
        raise ValueError(f"it is a control server of pool {answer.get('pool')!r}, not of {pool!r}")
    revision, state = typed("revision", int, answer.get("revision")), PoolState(PoolKeys(pool))
    events, records = [], answer.get("records")
    if not isinstance(records, list):
        raise ValueError("its answer has no records")  # noqa: TRY004 - one error for all
    for row in records:
        match row:
            case [str(key), int(at), str(value)]:
                events.append(Event("put", Kv(key, value.encode(), at, at, 0)))
    state.apply(InformerBatch(revision, tuple(events), reset=True))
    faults = answer.get("faults")
    state.faults |= {str(key): str(why) for key, why in faults.items()} if isinstance(faults, dict) else {}
    return LastKnown(
        str(answer.get("control", "")), state, revision, typed("silent_seconds", float, answer.get("silent_seconds"))
    )


async def ask_members(
    addresses: Mapping[str, str], heard: Mapping[tuple[str, str], MemberReport], tls: TlsOptions | None, pool: str
) -> tuple[dict[tuple[str, str], MemberReport], dict[str, str], dict[str, list[int]]]:
    """Ask members for their state. Returns all reports, the errors by member, and the slots that each serves."""
    silent: dict[str, str] = {}
    serving: dict[str, list[int]] = {}
    known = dict(heard)
    async with peer_apis(addresses, tls, pool) as members:
        answers = await asyncio.gather(*(_ask(members, name) for name in addresses))
    for name, answer in zip(addresses, answers, strict=True):
        match answer:
            case {"boot": str(boot), "state": str(state), "reason": str(reason), "active": list(slots)}:
                with contextlib.suppress(ValueError):
                    known[name, boot] = MemberReport(name, boot, MemberState(state), reason, name, 0.0)
                    serving[name] = [slot for slot in slots if isinstance(slot, int)]
            case _:
                silent[name] = answer if isinstance(answer, str) else "its answer cannot be read"
    return known, silent, serving


async def _ask(members: PeerApiClient, name: str) -> Any:  # noqa: ANN401 - JSON, or an error text
    try:
        async with asyncio.timeout(MEMBER_TIMEOUT):
            return await members.get(name, STATUS_PATH)
    except MemberError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {MEMBER_TIMEOUT:g} s"


def of_members_alone(
    pool: str,
    places: Sequence[MemberAddresses],
    heard: Mapping[tuple[str, str], MemberReport],
    serving: Mapping[str, list[int]],
) -> LastKnown:
    """The pool from its members alone, when no control server answers: its members, and the slots that each serves."""
    state = PoolState(PoolKeys(pool))
    boots = dict(heard.keys())
    for place in places:
        boot = boots.get(place.name, "")
        report = heard.get((place.name, boot))
        record = Member(place.name, boot, place.app, place.peer, MemberState.LOST, site=place.site, health=place.health)
        state.members[place.name] = At(replace(record, state=report.state) if report else record, 0)
        for slot in serving.get(place.name, ()):
            state.owners[slot] = At(Owner(place.name, boot, 0), 0)
    return LastKnown("the members", state, 0, None)


def stopped_without_etcd(
    state: PoolState,
    heard: Mapping[tuple[str, str], MemberReport],
    silent: Collection[str],
    serving: Mapping[str, Collection[int]],
) -> list[str]:
    """Which slots nobody serves until etcd is back, a sentence for each member that is recorded as their active.

    A takeover needs etcd. So the slots of a member stop that is ``silent`` and that no control server has ``heard`` for
    :data:`HEARD_WITHIN` seconds, and those that a member answers not to be ``serving``.
    """
    by_member: dict[str, list[int]] = {}
    for slot, at in state.owners.items():
        member, report = at.record.active, heard.get((at.record.active, at.record.boot))
        gone = member in silent and (report is None or report.age > HEARD_WITHIN)
        if gone or (member in serving and slot not in serving[member]):
            by_member.setdefault(member, []).append(slot)
    return [
        f"{len(slots)} slots ({ranges(slots)}) are not served until etcd is back: their active {member} "
        + ("does not answer" if member in silent else "has stopped serving them")
        for member, slots in sorted(by_member.items())
    ]
