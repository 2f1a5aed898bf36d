"""Sends a transaction until its outcome is known.

Only for transactions that replace what they compare, so that they can be applied only once. Such a transaction may be
sent again after an unknown outcome, and its failure branch shows whether an earlier try was applied.
"""

import logging
import time
from collections.abc import Sequence

from understudy.statesync.etcd.client import Compare, EtcdClient, Operation, OutcomeUnknown, TxnResult, Unavailable
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

RETRY_FIRST = 0.02
RETRY_LONGEST = 0.5


async def retry_txn(
    client: EtcdClient,
    compares: Sequence[Compare],
    success: Sequence[Operation],
    failure: Sequence[Operation],
    *,
    patience: float | None = None,
) -> tuple[TxnResult, int]:
    """The known result, and how often the transaction was sent again.

    Args:
        client: the etcd client.
        compares: must include something that ``success`` rewrites.
        success: operations if all compares hold.
        failure: operations otherwise.
        patience: seconds after which an unknown outcome is reported as unknown; None for never.

    Raises:
        Unavailable: no try was applied.
        OutcomeUnknown: the outcome is still unknown after ``patience`` seconds.
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
            logger.info("the outcome of a transaction is unknown, sending it again: %s", error)
        except Unavailable:
            if open_outcome is None:
                raise
        if give_up is not None and time.monotonic() > give_up:
            raise open_outcome
        if resent:  # at once the first time: mostly a connection broke, or etcd's leader was replaced by another
            await client.pause(backoff.next())
        resent += 1
