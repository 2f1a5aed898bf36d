"""Sends a transaction until its outcome is definite.

For transactions that can only be applied once, because they replace what they compare: sending one again after an
unknown outcome is then safe, and its failure branch tells whether an earlier try was applied.
"""

import logging
import time
from collections.abc import Sequence

from understudy.statesync.etcd.client import Compare, EtcdClient, Operation, OutcomeUnknown, TxnResult, Unavailable
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

RETRY_FIRST = 0.02
RETRY_LONGEST = 0.5


async def definite_txn(
    client: EtcdClient,
    compares: Sequence[Compare],
    success: Sequence[Operation],
    failure: Sequence[Operation],
    *,
    patience: float | None = None,
) -> tuple[TxnResult, int]:
    """The definite result, and how often the transaction was sent again.

    Args:
        client: the etcd client.
        compares: must include something that ``success`` rewrites.
        success: operations if all compares hold.
        failure: operations otherwise.
        patience: seconds after which an open outcome is given up as open; None for never.

    Raises:
        Unavailable: nothing was applied, neither now nor by any try before.
        OutcomeUnknown: patience is over and the outcome is still open.
    """
    give_up = None if patience is None else time.monotonic() + patience
    open_outcome: OutcomeUnknown | None = None
    backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
    resent = 0
    while True:
        try:
            return await client.txn(compares, success, failure), resent
        except OutcomeUnknown as error:
            open_outcome = error
            logger.info("the outcome of a transaction is open, sending it again: %s", error)
        except Unavailable:
            if open_outcome is None:
                raise
        if give_up is not None and time.monotonic() > give_up:
            raise open_outcome
        resent += 1
        await client.pause(backoff.next())
