"""What etcd keeps of a pool at front Envoys of several pools: the newest spec that they accepted, and holds.

A control server that starts makes the pool's older routes of that spec, if Envoys reject the spec in force
(:mod:`understudy.xds.publishing.front_holds`). One write for each accepted change of the spec: every replica may make
it, and the first one does. A slot table costs no write.

Holds stand in the operators' chain of the audit log: any replica may find one, and only the leader appends to the chain
of decisions. The first replica that finds it makes the record.
"""

import asyncio
import logging

from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import CreateRevision, Delete, EtcdClient, EtcdError, ModRevision, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.process.services import set_within
from understudy.xds.membership.state_builder import StateBuilder

logger = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0


class FrontRecords:
    """Writes both for one pool.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        actor: this control server, in the audit log.
        state_builder: the pool as this server sees it.
    """

    def __init__(self, client: EtcdClient, keys: PoolKeys, actor: Actor, state_builder: StateBuilder) -> None:
        self._client = client
        self._keys = keys
        self._log = OperatorLog(client, keys, actor)
        self._state_builder = state_builder
        self._accepted: PoolSpec | None = None
        self._hold = self._told = ""
        self._wake = asyncio.Event()

    def accepted(self, spec: PoolSpec) -> None:
        """Front Envoys have accepted what this spec makes."""
        self._accepted = spec
        self._wake.set()

    def held(self, why: str) -> None:
        """Front Envoys reject what the spec in force makes, for this reason; '' if they do not any more."""
        self._hold = why
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        pause: float | None = None
        while True:
            await set_within(self._wake, pause)
            self._wake.clear()
            try:
                done = [await self._write_spec(), await self._write_hold()]
            except EtcdError as error:
                logger.warning("pool %s: not written what front Envoys accepted: %s", self._keys.pool, error)
                done = [False]
            pause = None if all(done) else RETRY_INTERVAL

    async def _write_spec(self) -> bool:
        """Write the accepted spec, unless the spec in force is known to be accepted, or there is none.

        The accepted one may be older than that in force, which Envoys may reject. Returns whether that is done.
        """
        state, spec = self._state_builder.state, self._accepted
        key, now, before = self._keys.front_spec, state.spec, state.front_spec
        if spec is None or now is None or (before is not None and before.record in (spec, now.record)):
            self._accepted = None
            return True
        at = state.unreadable.get(key, before.revision if before else 0)
        guard = ModRevision(key, at) if at else CreateRevision(key, 0)
        written = await self._client.txn([ModRevision(self._keys.spec, now.revision), guard], [Put(key, spec.encode())])
        if written.succeeded:
            self._accepted = None
        return written.succeeded

    async def _write_hold(self) -> bool:
        """Tell the audit log of a hold that it does not know, or of its end; whether nothing is left to do.

        While a hold stands, a key has the revision of the rejected spec. So several replicas make one record.
        """
        why, spec = self._hold, self._state_builder.state.spec
        if why == self._told or spec is None:
            return True
        key, wanted = self._keys.front_hold, str(spec.revision).encode() if why else b""
        found = await self._client.get(key)
        if (found.value if found else b"") != wanted:
            compares = [
                ModRevision(self._keys.spec, spec.revision),
                ModRevision(key, found.mod_revision if found else 0),
            ]
            change = Put(key, wanted) if why else Delete(key)
            written = await self._log.txn(act_of(why), compares, [change], 0)
            if not written.succeeded:
                return False
        self._told = why
        return True


def act_of(why: str) -> Act:
    """The act that a hold is, for this reason, or its end ('')."""
    if not why:
        return Act("front release", "front Envoys get the newest configuration of the pool", "its spec was accepted")
    advice = "an Envoy rejects what the spec makes: correct the spec and apply it, or apply the former one"
    return Act("front hold", why, advice, "understudy apply -f CORRECTED.yaml")
