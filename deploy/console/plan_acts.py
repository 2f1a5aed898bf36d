"""What operators do with plans at the console: apply the one that a page shows, abort it, and undo the last one.

The checks and the records are those of ``understudy rebalance`` (``understudy.deploy.data.rebalance``). A plan is
applied as it was shown: if the slot table has changed since then, it is refused.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.wishes import Wish
from understudy.deploy.data.rebalance import approve, end_plan, moves_back, moves_in_plan, new_plan, refusal
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.rebalance import SlotMove
from understudy.statesync.pool.state import PoolState

PAIRS_SHOWN = 8


def plan_preview(state: PoolState, wish: Wish) -> dict[str, Any]:
    """The command and what it would do. Raises :class:`NegativeAnswer` if it would be refused."""
    ends = wish.act == "rebalance abort"
    effect = _of_abort(state) if ends else _of_moves(_moves_of(state, wish), wish.moves_a_second or 1.0)
    return {
        "command": wish.command(state.keys.pool),
        "undo": f"understudy rebalance undo --pool {state.keys.pool}",
        "until": 0.0,
        "effect": effect,
    }


async def plan_perform(client: EtcdClient, state: PoolState, log: OperatorLog, wish: Wish, who: str) -> str:
    """Do it; says what was done. Raises :class:`NegativeAnswer` if it is refused."""
    if wish.act == "rebalance abort":
        ended = await end_plan(client, state, log, who)
        return f"plan {ended.record.plan} is aborted"
    moves = _moves_of(state, wish)
    record = new_plan(state, moves, wish.moves_a_second or 1.0, _by(state, wish), who)
    await approve(state, log, record, wish.act)
    return f"plan {record.plan} is approved: {len(moves)} slots move"


def _by(state: PoolState, wish: Wish) -> str:
    """What the plan balances, as the command notes it."""
    if wish.plan is not None:
        return wish.plan.by
    return f"undo of {state.move_plan.record.by}" if state.move_plan else "undo"


def _moves_of(state: PoolState, wish: Wish) -> list[SlotMove]:
    """The moves that are wanted. Raises :class:`NegativeAnswer` if they cannot be made now."""
    moves = moves_in_plan(state, wish.plan.file(state.keys.pool)) if wish.plan is not None else moves_back(state)
    if state.spec is None:
        raise NegativeAnswer(f"pool {state.keys.pool} has no spec")
    if why_not := refusal(state, state.spec.record, moves):
        raise NegativeAnswer(why_not)
    return moves


def _of_moves(moves: Sequence[SlotMove], rate: float) -> list[str]:
    """What moves do, in sentences."""
    pairs = Counter((move.source, move.target) for move in moves).most_common()
    shown = [f"{count} from {source} to {target}" for (source, target), count in pairs[:PAIRS_SHOWN]]
    rest = [f"and {len(pairs) - PAIRS_SHOWN} more pairs of members"] if len(pairs) > PAIRS_SHOWN else []
    return [
        f"{_slots(len(moves))} would get another active: {', '.join([*shown, *rest])}. No request fails.",
        f"The leading control server makes up to {rate:g} a second: that takes {len(moves) / rate:.0f} s or more.",
    ]


def _of_abort(state: PoolState) -> list[str]:
    """What the end of a plan means, in sentences. Raises :class:`NegativeAnswer` if none is carried out."""
    plan, progress = state.move_plan, state.move_progress
    if plan is None or progress is None or not progress.record.running:
        raise NegativeAnswer(f"no rebalance of pool {state.keys.pool} is carried out")
    begun, whole = progress.record.released, len(plan.record.moves)
    return [
        f"{begun} of {whole} moves of plan {plan.record.plan} are begun; the others would not be made.",
        "What has moved stays. An undo moves it back.",
    ]


def _slots(count: int) -> str:
    return "1 slot" if count == 1 else f"{count} slots"
