"""Looks into a pool from outside: its records from etcd at one revision, its traces from the control servers.

Used by the reading commands, ``up`` and the demo. Nothing here changes anything. What the records mean for a reader
is put together by ``views``.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.statesync.etcd.client import EtcdClient, Event
from understudy.statesync.etcd.informer import MirrorBatch
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.parsing.stored import made_of, read_json
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import outline
from understudy.statesync.tls.secret_files import fault_of
from understudy.telemetry.otlp.spans import StoredSpan

HTTP_PATIENCE = 3.0


def connect(etcd: EtcdSettings) -> EtcdClient:
    """A client of etcd; raises :class:`DeployError` when endpoints or TLS files cannot be used."""
    try:
        return etcd.client()
    except OSError as error:
        raise DeployError(fault_of(error)) from None
    except ValueError as error:
        raise DeployError(f"--etcd {','.join(etcd.endpoints)}: {error}") from None


@dataclass(frozen=True, slots=True)
class FoundSession:
    """A session as it stands in etcd."""

    key: str
    slot: int
    session: Session


async def read_pool(client: EtcdClient, pool: str) -> tuple[PoolState, int]:
    """All records of a pool but its sessions, and the one etcd revision at which they stood."""
    state = PoolState(PoolKeys(pool))
    revision = 0
    events: list[Event] = []
    for part in state.keys.without_sessions:
        async for page in client.pages(part, revision=revision):
            revision = page.revision
            events += [Event("put", kv) for kv in page.kvs]
    state.apply(MirrorBatch(revision, tuple(events), reset=True))
    return state, revision


def require_pool(state: PoolState, etcd: EtcdSettings) -> PoolSpec:
    """The pool's spec. Raises :class:`NoPoolError` unless one was applied, :class:`DeployError` if it is unreadable."""
    if state.spec is None and (fault := unreadable_spec(state)):
        raise DeployError(fault)
    if state.spec is None:
        raise NoPoolError(state.keys.pool, etcd, (*sorted(state.members), *sorted(state.controls)))
    return state.spec.record


def unreadable_spec(state: PoolState) -> str:
    """What is wrong with the spec in etcd, and what to do; '' if it can be read, or there is none."""
    fault = state.faults.get(state.keys.spec)
    if fault is None or state.spec is not None:
        return ""
    return (
        f"the spec of pool {state.keys.pool!r}, at {state.keys.spec} in etcd, cannot be read: {fault}; processes that "
        "run go by the last one that they could read, and processes that start wait for one: put it right with "
        "'understudy apply -f pool.yaml'"
    )


async def read_session(client: EtcdClient, state: PoolState, key: str, slots: int) -> FoundSession | None:
    """One session, tombstones included; None when nothing stands there.

    Raises :class:`DeployError` when something stands there that is no session.
    """
    slot = slot_of(key, slots)
    kv = await client.get(state.keys.session(slot, key))
    try:
        return FoundSession(key, slot, outline(kv.value, kv.mod_revision)) if kv else None
    except ValueError as error:
        raise DeployError(f"the session of key {key!r} cannot be read: {error}") from None


async def read_sessions(
    client: EtcdClient, keys: PoolKeys, *, limit: int, slot: int | None = None
) -> tuple[list[FoundSession], int]:
    """The first ``limit`` sessions in order of slot and key, and how many records there are."""
    within = prefix_range(keys.sessions if slot is None else keys.slot_sessions(slot))
    page = await client.range(within, limit=limit)
    found = []
    for kv in page.kvs:
        with contextlib.suppress(ValueError):
            number = slot_in(kv.key, keys.sessions)
            key = kv.key.removeprefix(keys.slot_sessions(number))
            found.append(FoundSession(key, number, outline(kv.value, kv.mod_revision)))
    return found, page.count


class AdminError(Exception):
    """A control server's admin interface gave no useful answer; ``address`` and ``detail`` say which and why."""

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"{address}: {detail}")
        self.address = address
        self.detail = detail


async def ask_control(address: str, path: str) -> Any:  # noqa: ANN401 - JSON
    """GET ``path`` from a control server's admin interface; raises :class:`AdminError`."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HTTP_PATIENCE)) as http,
            http.get(f"http://{address}{path}") as response,
        ):
            if response.status != 200:
                raise AdminError(address, f"{path} answered {response.status}")
            return read_json(await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise AdminError(address, str(error) or "no answer in time") from None


async def ask_controls(addresses: Iterable[str], path: str) -> list[Any]:
    """GET ``path`` from several control servers at once: each one's JSON, or as a text why there is none."""

    async def ask(address: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return await ask_control(address, path)
        except AdminError as fault:
            return str(fault)

    return await asyncio.gather(*(ask(address) for address in addresses))


async def read_trace(addresses: Sequence[str], trace_id: str) -> list[StoredSpan]:
    """The spans of a trace, put together from what all control servers have stored.

    Raises:
        DeployError: no control server could be asked.
    """
    spans: dict[str, StoredSpan] = {}
    faults = []
    for address in addresses:
        try:
            answer = await ask_control(address, f"/v1/traces/{trace_id}")
        except AdminError as fault:
            if "404" not in fault.detail:
                faults.append(str(fault))
            continue
        for span in spans_of(answer):
            spans.setdefault(span.span_id, span)
    if not spans and (faults or not addresses):
        reason = "; ".join(faults) or "none is registered in etcd"
        raise DeployError(f"no control server could be asked for the trace: {reason}")
    return sorted(spans.values(), key=lambda span: span.start_ns)


async def read_lengths(addresses: Sequence[str], most: int) -> dict[str, float]:
    """How long the latest changes of active took, in ms by trace id, as far as control servers can be asked and know.

    ``most`` is how many of the latest traces each of them is asked for.
    """

    async def ask(address: str) -> Any:  # noqa: ANN401 - JSON
        with contextlib.suppress(AdminError):
            return await ask_control(address, f"/v1/traces?limit={most}")
        return None

    lengths: dict[str, float] = {}
    for answer in await asyncio.gather(*(ask(address) for address in addresses)):
        for row in answer.get("traces", ()) if isinstance(answer, dict) else ():
            match row:
                case {"trace_id": str(trace), "total_ms": int(took) | float(took)}:
                    lengths[trace] = took
    return lengths


def spans_of(answer: Any) -> Iterable[StoredSpan]:  # noqa: ANN401 - JSON
    """Read the admin interface's list of spans; what is not one is left out."""
    listed = answer.get("spans", ()) if isinstance(answer, dict) else answer
    for raw in listed if isinstance(listed, list) else ():
        with contextlib.suppress(ValueError):
            yield _span_of(raw)


def _span_of(raw: object) -> StoredSpan:
    """Raises ``ValueError`` on what is no span."""
    span = made_of(StoredSpan, raw)
    if not isinstance(span.attributes, dict) or not isinstance(span.resource, dict):
        raise ValueError("attributes and resource are objects")  # noqa: TRY004 - one error for all
    return span
