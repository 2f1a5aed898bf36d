"""Plans of a rebalance: reads and checks them, and writes the one that an operator approves to etcd.

A plan file is JSON: the answer of a control server, or a placement, which names the slots of each member.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.inspect.views import ranges
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import Compare, CreateRevision, EtcdClient, ModRevision, Put
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState, SlotMove
from understudy.statesync.pool.records import Phase
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At, PoolState

PLAN_KIND = "understudy rebalance plan"
PLACEMENT_KIND = "understudy placement"
FILE_MOST = 8_000_000
"""Bytes of a file that is read."""


def read_file(path: Path, kind: str) -> dict[str, Any]:
    """A plan or a placement. Raises :class:`DeployError` on anything else."""
    try:
        raw = path.read_bytes()
        found = read_object(raw) if len(raw) <= FILE_MOST else {}
    except (OSError, ValueError) as error:
        raise DeployError(f"{path}: {error}") from None
    if found.get("kind") != kind:
        wanted = "'rebalance plan --save'" if kind == PLAN_KIND else "'rebalance export'"
        raise DeployError(f"{path}: this is no file of {wanted}: its kind is {found.get('kind')!r}")
    return found


def plan_file(proposal: Mapping[str, Any]) -> str:
    """A control server's plan as the text of a plan file."""
    return json.dumps({"kind": PLAN_KIND, **proposal}, indent=2) + "\n"


def placement_file(state: PoolState) -> str:
    """Which member is active for which slot now, as the text of a placement file."""
    table = state.table.record if state.table else None
    by_member: dict[str, list[int]] = {}
    for slot, member in sorted(actives_of(state).items()):
        by_member.setdefault(member, []).append(slot)
    return (
        json.dumps(
            {
                "kind": PLACEMENT_KIND,
                "pool": state.keys.pool,
                "generation": table.generation if table else None,
                "actives": {member: ranges(slots) for member, slots in sorted(by_member.items())},
            },
            indent=2,
        )
        + "\n"
    )


def actives_of(state: PoolState) -> dict[int, str]:
    """The active of each slot by the owner records."""
    return {slot: at.record.active for slot, at in state.owners.items()}


def moves_in_plan(state: PoolState, found: Mapping[str, Any]) -> list[SlotMove]:
    """The moves of a plan file. Raises :class:`NegativeAnswer` if it was made for another table or pool."""
    _require_pool(state, found)
    generation = state.table.record.generation if state.table else 0
    if found.get("generation") != generation:
        raise NegativeAnswer(
            f"the plan is for table {found.get('generation')}, and the pool has table {generation} now: "
            "make a new plan with 'understudy rebalance plan'"
        )
    moves = []
    for one in found.get("moves", ()):
        match one:
            case {"slot": int(slot), "source": str(source), "target": str(target)}:
                moves.append(SlotMove(slot, source, target))
            case _:
                raise DeployError("the plan has a move without slot, source and target")
    return moves


def moves_in_placement(state: PoolState, found: Mapping[str, Any]) -> list[SlotMove]:
    """The moves that lead to a placement file."""
    _require_pool(state, found)
    now = actives_of(state)
    wanted: dict[int, str] = {}
    listed = found.get("actives")
    for member, text in listed.items() if isinstance(listed, dict) else ():
        for slot in _slots_in(str(text)):
            if slot not in now:
                raise DeployError(f"actives: pool {state.keys.pool} has no slot {slot} with an owner")
            if wanted.setdefault(slot, member) != member:
                raise DeployError(f"actives: slot {slot} is given to {wanted[slot]} and to {member}")
    return [SlotMove(slot, now[slot], member) for slot, member in sorted(wanted.items()) if now[slot] != member]


def moves_back(state: PoolState) -> list[SlotMove]:
    """The moves that undo the last plan, as far as it was carried out. Raises :class:`NegativeAnswer` if none was."""
    plan, progress = state.move_plan, state.move_progress
    if plan is None or progress is None:
        raise NegativeAnswer(f"pool {state.keys.pool} has had no rebalance")
    if progress.record.running:
        raise NegativeAnswer("the plan is still carried out: 'understudy rebalance abort' ends it")
    now = actives_of(state)
    made = plan.record.steps()[: progress.record.released]
    back = [SlotMove(move.slot, move.target, move.source) for move in made if now.get(move.slot) == move.target]
    if not back:
        raise NegativeAnswer(f"nothing of plan {plan.record.plan} is left to undo")
    return back[::-1]


def _require_pool(state: PoolState, found: Mapping[str, Any]) -> None:
    if found.get("pool") != state.keys.pool:
        raise DeployError(f"the file is of pool {found.get('pool')!r}, not of {state.keys.pool!r}")


def _slots_in(text: str) -> Iterable[int]:
    """The slots of a text such as ``0-3, 7``. Raises :class:`DeployError`."""
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or len(part) > 11:
            raise DeployError(f"actives: {part!r} is no slot; examples: 3, 8-15")
        yield from range(int(first), int(last or first) + 1)


def refusal(state: PoolState, spec: PoolSpec, moves: Sequence[SlotMove]) -> str:
    """Why these moves cannot be made now; '' if they can."""
    if not spec.balances_by_load:
        return (
            "the pool balances numbers of slots, so its slots would move back: set 'balance: {by: requests}' in its "
            "spec first (or sessions, bytes, cpu)"
        )
    if state.move_progress is not None and state.move_progress.record.running:
        return "another plan is carried out: wait for it ('understudy rebalance status'), or abort it"
    if not moves:
        return "the plan has no moves"
    fit = {name for name, at in state.members.items() if at.record.state.may_hold_slots}
    gone = sorted({member for move in moves for member in (move.source, move.target)} - fit)
    if gone:
        return f"{', '.join(gone)} cannot hold slots now ('understudy status'): make a new plan"
    missing = [slot for slot in range(spec.slots) if slot not in state.owners]
    if missing:
        return f"{len(missing)} slots have no owner: wait until they have ('understudy status')"
    for move in moves:
        if move.slot not in state.owners:
            return f"the pool has no slot {move.slot}: make a new plan"
        owner = state.owners[move.slot].record
        if owner.active != move.source or owner.phase is not Phase.STABLE:
            return f"slot {move.slot} is with {owner.active} now and not with {move.source}: make a new plan"
    return ""


async def approve(state: PoolState, log: OperatorLog, plan: MovePlan, act: str) -> None:
    """Write a plan, which the leader then carries out, unless the pool has changed since ``state`` was read.

    Raises :class:`NegativeAnswer` if it has.
    """
    keys = state.keys
    compares: list[Compare] = [ModRevision(keys.table, state.table.revision if state.table else 0)]
    before = state.move_progress
    compares.append(
        ModRevision(keys.move_progress, before.revision) if before else CreateRevision(keys.move_progress, 0)
    )
    progress = MoveProgress(plan.plan, PlanState.RUNNING, spent=before.record.spent if before else ())
    detail = f"plan {plan.plan} by {plan.by}: {len(plan.moves)} slots, {plan.rate:g} a second"
    made = Act(act, detail, undo=f"understudy rebalance undo --pool {keys.pool}")
    result = await log.txn(
        made,
        compares,
        [Put(keys.move_plan, plan.encode()), Put(keys.move_progress, progress.encode())],
        before.revision if before else 0,
    )
    if not result.succeeded:
        raise NegativeAnswer("the slot table changed in the meantime: make a new plan")


def new_plan(state: PoolState, moves: Sequence[SlotMove], rate: float, by: str, who: str) -> MovePlan:
    """The record of a plan that is approved now."""
    now = actives_of(state)
    table = state.table.record if state.table else None
    try:
        return MovePlan.of_moves(
            uuid4().hex[:8],
            table.generation if table else 0,
            [now[slot] for slot in range(len(now))],
            moves,
            rate=rate,
            by=by,
            who=who,
            at=round(time.time(), 3),
        )
    except (ValueError, KeyError) as error:
        raise DeployError(f"the plan cannot be used: {error}") from None


async def end_plan(client: EtcdClient, state: PoolState, log: OperatorLog, who: str) -> At[MoveProgress]:
    """Abort the plan that is carried out: no further slot moves. Raises :class:`NegativeAnswer` if there is none."""
    keys = state.keys
    while True:
        kv = await client.get(keys.move_progress)
        progress = MoveProgress.decode(kv.value) if kv else None
        if kv is None or progress is None or not progress.running:
            raise NegativeAnswer(f"no rebalance of pool {keys.pool} is carried out")
        ended = replace(progress, state=PlanState.ABORTED, why=f"aborted by {who}")
        act = Act(
            "rebalance abort",
            f"plan {progress.plan}, {progress.released} moves made",
            undo=f"understudy rebalance undo --pool {keys.pool}",
        )
        result = await log.txn(
            act,
            [ModRevision(keys.move_progress, kv.mod_revision)],
            [Put(keys.move_progress, ended.encode())],
            kv.mod_revision,
        )
        if result.succeeded:
            return At(ended, result.revision)
