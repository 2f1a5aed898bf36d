"""What is known of a pool beside etcd: by control servers and by the members themselves. Read only.

Control servers hear members' heartbeats, also those of a member that cannot reach etcd. While etcd itself is silent,
they tell the pool's records as they last read them, and members say themselves how they are.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy.deploy.common.layout import MemberPlace
from understudy.deploy.common.options import TlsOptions
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.member_views import Heard
from understudy.deploy.inspect.members import MemberError, Members, asking
from understudy.proxy.peers.sync_api import STATUS_PATH
from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import MirrorBatch
from understudy.statesync.parsing.stored import typed
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner
from understudy.statesync.pool.state import At, PoolState

MEMBER_PATIENCE = 3.0
"""Seconds in which a member answers, or is called silent."""


@dataclass(frozen=True, slots=True)
class LastKnown:
    """A pool's records as ``source`` last read them, ``age`` seconds ago, at this revision; None: of unknown age."""

    source: str
    state: PoolState
    revision: int
    age: float | None


async def read_last_known(addresses: Sequence[str], pool: str) -> tuple[LastKnown | None, list[str]]:
    """The newest view of the pool that a control server has, and why others told none."""
    faults: list[str] = []
    found: list[LastKnown] = []
    for address, answer in zip(addresses, await ask_controls(addresses, "/v1/records"), strict=True):
        try:
            found.append(_last_known_of(answer, pool))
        except ValueError as error:
            faults.append(f"{address}: {error}" if not isinstance(answer, str) else answer)
    return max(found, key=lambda one: (one.revision, -(one.age or 0.0)), default=None), faults


def _last_known_of(answer: Any, pool: str) -> LastKnown:  # noqa: ANN401 - JSON
    """Raises ``ValueError`` on what is no answer for this pool."""
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
    state.apply(MirrorBatch(revision, tuple(events), reset=True))
    faults = answer.get("faults")
    state.faults |= {str(key): str(why) for key, why in faults.items()} if isinstance(faults, dict) else {}
    return LastKnown(
        str(answer.get("control", "")), state, revision, typed("silent_seconds", float, answer.get("silent_seconds"))
    )


async def ask_members(
    addresses: Mapping[str, str], heard: Mapping[tuple[str, str], Heard], tls: TlsOptions | None, pool: str
) -> tuple[dict[tuple[str, str], Heard], dict[str, str], dict[str, list[int]]]:
    """Ask members how they are: what is heard of them then, why some do not answer, and the slots that they serve."""
    silent: dict[str, str] = {}
    serving: dict[str, list[int]] = {}
    known = dict(heard)
    async with asking(addresses, tls, pool) as members:
        answers = await asyncio.gather(*(_how(members, name) for name in addresses))
    for name, answer in zip(addresses, answers, strict=True):
        match answer:
            case {"boot": str(boot), "state": str(state), "reason": str(reason), "active": list(slots)}:
                with contextlib.suppress(ValueError):
                    known[name, boot] = Heard(name, boot, MemberState(state), reason, name, 0.0)
                    serving[name] = [slot for slot in slots if isinstance(slot, int)]
            case _:
                silent[name] = answer if isinstance(answer, str) else "its answer cannot be read"
    return known, silent, serving


async def _how(members: Members, name: str) -> Any:  # noqa: ANN401 - JSON, or in words why there is none
    try:
        async with asyncio.timeout(MEMBER_PATIENCE):
            return await members.ask(name, STATUS_PATH)
    except MemberError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {MEMBER_PATIENCE:g} s"


def of_members_alone(
    pool: str, places: Sequence[MemberPlace], heard: Mapping[tuple[str, str], Heard], serving: Mapping[str, list[int]]
) -> LastKnown:
    """The pool as its members tell it when no control server answers: who there is, and who serves which slots."""
    state = PoolState(PoolKeys(pool))
    boots = dict(heard.keys())
    for place in places:
        boot = boots.get(place.name, "")
        told = heard.get((place.name, boot))
        record = Member(place.name, boot, place.app, place.peer, MemberState.LOST, site=place.site, health=place.health)
        state.members[place.name] = At(replace(record, state=told.state) if told else record, 0)
        for slot in serving.get(place.name, ()):
            state.owners[slot] = At(Owner(place.name, boot, 0), 0)
    return LastKnown("the members", state, 0, None)
