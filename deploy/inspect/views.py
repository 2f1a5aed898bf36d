"""The output of the reading commands as JSON data, from a pool's records. Pure.

``-o json`` prints this data, and ``tables`` shows it as tables. Owner records say which member is active. The slot
table says which member should be.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from understudy.deploy.inspect.member_views import MemberReport, View, member_views, order_of, slots_of
from understudy.deploy.inspect.offline_sites import offline_text, offline_until
from understudy.deploy.inspect.placement import Distances, preference
from understudy.deploy.inspect.query import unreadable_spec
from understudy.deploy.inspect.versions import versions_view
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.parsing.stored import read_json
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.records import FailoverRecord, Phase
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.history import as_text
from understudy.statesync.sessions.restored import is_restored

if TYPE_CHECKING:
    from understudy.deploy.inspect.hashed_text import HashedText
    from understudy.deploy.inspect.sessions import FoundSession


def status_view(
    state: PoolState,
    *,
    revision: int,
    etcd: Sequence[EndpointStatus] = (),
    envoys: View | None = None,
    fronts: Sequence[View] = (),
    load: Sequence[View] = (),
    processes: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
    heard: Mapping[tuple[str, str], MemberReport] | None = None,
    silent: Mapping[str, str] | None = None,
    last_known: View | None = None,
) -> View:
    """The output of ``status``.

    Args:
        state: the records of the pool.
        revision: the etcd revision of the records.
        etcd: the state of each endpoint of etcd.
        envoys: the xDS state of Envoys (``understudy.deploy.inspect.envoys``).
        fronts: what front Envoys report about requests (``understudy.deploy.inspect.fronts``).
        load: the load of each member (``understudy.deploy.inspect.load``).
        processes: the processes of a local pool.
        warnings: more warnings, such as those about drains (``understudy.deploy.inspect.draining``).
        heard: reports about members (``understudy.deploy.inspect.last_known``).
        silent: the errors of members that do not answer.
        last_known: the source and the age of the records, when etcd does not answer.
    """
    table = state.table.record if state.table else None
    total = slots_of(state)
    unowned = [slot for slot in range(total) if slot not in state.owners]
    handover = [slot for slot, at in state.owners.items() if at.record.phase is Phase.HANDOVER]
    dead = _dead_owned(state)
    return {
        "pool": state.keys.pool,
        "revision": revision,
        "last_known": last_known,
        "mode": state.spec.record.mode if state.spec else None,
        "slots": {
            "total": total,
            "served": total - len(unowned) - len(dead),
            "unowned": len(unowned),
            "owner_gone": len(dead),
            "in_handover": len(handover),
            "to_move": sum(
                table is not None and table.active_of(slot) != at.record.active for slot, at in state.owners.items()
            ),
        },
        "table": {
            "generation": table.generation if table else None,
            "copies": state.spec.record.copies if state.spec else None,
            "offline": list(table.offline) if table else [],
            "offline_until": offline_until(state),
        },
        "replication": None if last_known else _replication_view(state),
        "members": member_views(state, heard or {}, silent or {}),
        "controls": [
            {
                "name": name,
                "leader": state.leader is not None and state.leader.record == name,
                "grpc": at.record.grpc,
                "http": at.record.http,
                "version": at.record.version,
            }
            for name, at in sorted(state.controls.items())
        ],
        "etcd": [
            {
                "endpoint": status.endpoint,
                "version": status.version,
                "leader": status.leader,
                "db_size": status.db_size,
                "errors": list(status.errors),
            }
            for status in etcd
        ],
        "envoys": envoys,
        "fronts": list(fronts),
        "load": list(load),
        "versions": versions_view(state, load),
        "processes": list(processes),
        "warnings": [*_warnings(state, etcd, unowned, dead), *warnings],
    }


def table_view(state: PoolState, slots: Iterable[int] | None = None) -> View:
    """The output of ``table``: for each slot its order, owner, epoch and phase."""
    table = state.table.record if state.table else None
    wanted = range(slots_of(state)) if slots is None else slots
    distances = Distances(state)
    return {
        "pool": state.keys.pool,
        "generation": table.generation if table else None,
        "offline": list(table.offline) if table else [],
        "offline_until": offline_until(state),
        "prefers": preference(state),
        "slots": [_slot_view(state, slot, distances) for slot in wanted],
    }


def summarise_table(view: View) -> list[View]:
    """The slots of a table view grouped by order and phase, with their number and epochs."""
    groups: dict[tuple[tuple[str, ...], str, str], list[View]] = defaultdict(list)
    for row in view["slots"]:
        groups[tuple(row["order"]), row["phase"], row["wanted"] or ""].append(row)
    return [
        {
            "order": list(order),
            "phase": phase,
            "wanted": wanted,
            "apart": rows[0]["apart"],
            "count": len(rows),
            "slots": ranges(row["slot"] for row in rows),
            "epochs": sorted({row["epoch"] for row in rows if row["epoch"] is not None}),
        }
        for (order, phase, wanted), rows in sorted(groups.items())
    ]


def explain_view(
    state: PoolState,
    found: "FoundSession | None",
    key: str,
    hashed: "HashedText",
    slot: int | None,
    now_ms: int,
    *,
    body: bool = False,
) -> View:
    """The output of ``explain``: what of ``key`` was hashed, its slot, owner and session.

    ``slot`` is None if there is no session key in the text. ``body`` adds the content of the session. ``restored`` is
    about a session that was restored after a loss and not written since: when, and how old what is missing may be.
    """
    return {
        "key": found.key if found else key,
        "read_as": hashed.read_as,
        "hashed": hashed.text,
        **(_NO_SLOT if slot is None else _slot_view(state, slot, Distances(state))),
        "prefers": "" if slot is None else preference(state),
        "session": _session_view(found, now_ms, body=body) if found else None,
        "restored": None if slot is None else _restored_view(state, found, found.slot if found else slot, now_ms),
    }


def _restored_view(state: PoolState, found: "FoundSession | None", slot: int, now_ms: int) -> View | None:
    at, ttl = state.sync_sets.get(slot), state.spec.record.session_ttl if state.spec else 0
    loss = at.record.last_loss if at else None
    if loss is None or not is_restored(loss, found.session if found else None, now_ms / 1000, ttl):
        return None
    return {"at": loss.at, "seconds": loss.seconds}


def sessions_view(pool: str, found: "Sequence[FoundSession]", records: int, now_ms: int) -> View:
    """The output of ``sessions``; ``records`` also counts deleted and expired ones that are still in etcd."""
    return {
        "pool": pool,
        "records": records,
        "sessions": [
            {"slot": item.slot, "key": item.key, **_session_view(item, now_ms)}
            for item in found
            if item.session.alive(now_ms)
        ],
    }


def failovers_view(state: PoolState) -> View:
    """The output of ``failovers``, latest first. Records of the same trace become one row."""
    return {"pool": state.keys.pool, "failovers": [_failover_view(trace, parts) for trace, parts in state.changes()]}


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: ``0-3, 7``."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _dead_owned(state: PoolState) -> list[int]:
    """Slots whose owner does not run any more, by the records in etcd."""
    lost = state.table.record.lost if state.table else {}
    return [
        slot
        for slot, at in state.owners.items()
        if at.record.active not in state.members
        or (at.record.active in lost and lost[at.record.active].boot == at.record.boot)
    ]


def _replication_view(state: PoolState) -> View:
    """What the sync records say.

    ``wanted``: the spec says ``durability: replicas``. ``one_copy``: slots with fewer than two processes in their sync
    set. ``memory``: slots whose newest writes may be in memory alone. ``last_loss``: when a slot was last claimed with
    a loss, and how old the missing writes may be.
    """
    sets = [agreed_set(at.record, state.sync_sets.get(slot)) for slot, at in state.owners.items()]
    memory = sum(one.memory for one in sets)
    losses = [loss for at in state.sync_sets.values() if (loss := at.record.last_loss) is not None]
    last = max(losses, key=lambda loss: loss.at, default=None)
    return {
        "wanted": state.spec is not None and state.spec.record.from_memory,
        "slots": len(sets),
        "one_copy": sum(len(one.members) < 2 for one in sets),
        "memory": memory,
        "losses": sum(at.record.losses for at in state.sync_sets.values()),
        "last_loss": {"at": last.at, "seconds": last.seconds} if last else None,
    }


def _warnings(
    state: PoolState, etcd: Sequence[EndpointStatus], unowned: Sequence[int], dead: Sequence[int]
) -> Iterable[str]:
    if unowned:
        yield f"{len(unowned)} slots have no owner yet"
    if dead:
        yield f"{len(dead)} slots are owned by a member that is lost"
    if not state.controls:
        yield "no control server is registered: slots do not move, and new Envoys get no configuration"
    elif state.leader is None:
        yield "there is no leading control server at the moment"
    for status in etcd:
        if status.at_risk:
            yield status.at_risk
        yield from (f"etcd at {status.endpoint}: {fault}" for fault in status.errors)
    yield from (f"{name}: {at.record.clock}" for name, at in sorted(state.members.items()) if at.record.clock)
    ends = offline_until(state)
    for site in state.table.record.offline if state.table else ():
        what = offline_text(site, ends[site]) if site in ends else f"site {site} is offline by the slot table alone"
        yield f"{what}: its members get no slots"
    yield from Distances(state).warnings()
    unreadable = unreadable_spec(state)
    if unreadable:
        yield unreadable
    yield from (
        f"the record at {key} in etcd cannot be read completely: {fault}"
        for key, fault in sorted(state.faults.items())
        if not (unreadable and key == state.keys.spec)
    )


_NO_SLOT: View = {"slot": None, "order": [], "owner": None}


def _slot_view(state: PoolState, slot: int, distances: Distances) -> View:
    table = state.table.record if state.table else None
    at = state.owners.get(slot)
    owner = at.record if at else None
    agreed = agreed_set(owner, state.sync_sets.get(slot)) if owner else None
    return {
        "slot": slot,
        "order": list(order_of(state, slot)),
        "copies": sorted({one.member for one in agreed.members}) if agreed else [],
        "memory": agreed.memory if agreed else False,
        "owner": owner.active if owner else None,
        "boot": owner.boot if owner else None,
        "epoch": owner.epoch if owner else None,
        "phase": str(owner.phase) if owner else "unowned",
        "to": owner.to if owner else "",
        "cause": owner.cause if owner else "",
        "since": owner.since if owner else None,
        "wanted": table.active_of(slot) if table else None,
        "apart": distances.of(slot),
    }


def _session_view(found: "FoundSession", now_ms: int, *, body: bool = False) -> View:
    session = found.session
    view: View = {
        "alive": session.alive(now_ms),
        "deleted": session.deleted,
        "etag": session.etag,
        "version": as_text(session.version),
        "epoch": session.epoch,
        "size": len(session.body),
        "content_type": session.content_type,
        "expires": session.expires / 1000,
        "expires_in": round((session.expires - now_ms) / 1000, 1),
    }
    if body:
        text = session.body.decode(errors="replace")
        try:
            view["body"] = read_json(text)
        except ValueError:
            view["body"] = text
    return view


def _failover_view(trace: str, parts: Sequence[FailoverRecord]) -> View:
    first = min(parts, key=lambda part: part.started)
    taken: Counter[str] = Counter()
    for part in parts:
        taken[part.to] += len(part.slots)
    return {
        "trace": trace,
        "kind": "handover" if first.planned else "takeover",
        "started": first.started,
        "from": sorted({part.source for part in parts if part.source}),
        "to": dict(sorted(taken.items())),
        "slots": sum(len(part.slots) for part in parts),
        "cause": first.cause,
        "drill": next((part.drill for part in parts if part.drill), ""),
        "restored": sum(len(part.restored) for part in parts),
        "loss_seconds": max((part.loss_seconds for part in parts if part.restored), default=0),
    }
