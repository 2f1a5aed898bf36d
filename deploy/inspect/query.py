"""Reads a pool: its records from etcd at one revision, its traces from the control servers. Changes nothing.

The reading commands, ``up`` and the demo use it. ``views`` turns the records into output.
"""

from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.statesync.etcd.client import EtcdClient, Event
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState
from understudy.statesync.tls.secret_files import fault_of

HTTP_TIMEOUT = 3.0


def connect(etcd: EtcdSettings) -> EtcdClient:
    """A client of etcd. Raises :class:`DeployError` if endpoints or TLS files cannot be used."""
    try:
        return etcd.client()
    except OSError as error:
        raise DeployError(fault_of(error)) from None
    except ValueError as error:
        raise DeployError(f"--etcd {','.join(etcd.endpoints)}: {error}") from None


async def read_pool(client: EtcdClient, pool: str) -> tuple[PoolState, int]:
    """All records of a pool except its sessions, and the etcd revision at which they were read."""
    state = PoolState(PoolKeys(pool))
    revision = 0
    events: list[Event] = []
    for part in state.keys.records:
        async for page in client.pages(part, revision=revision):
            revision = page.revision
            events += [Event("put", kv) for kv in page.kvs]
    state.apply(InformerBatch(revision, tuple(events), reset=True))
    return state, revision


def require_pool(state: PoolState, etcd: EtcdSettings) -> PoolSpec:
    """The pool's spec. Raises :class:`NoPoolError` unless one was applied, :class:`DeployError` if it is unreadable."""
    if state.spec is None and (fault := unreadable_spec(state)):
        raise DeployError(fault)
    if state.spec is None:
        raise NoPoolError(state.keys.pool, etcd, (*sorted(state.members), *sorted(state.controls)))
    return state.spec.record


def unreadable_spec(state: PoolState) -> str:
    """The error in the spec in etcd, and what to do; '' if it can be read, or if there is none."""
    fault = state.faults.get(state.keys.spec)
    if fault is None or state.spec is not None:
        return ""
    return (
        f"the spec of pool {state.keys.pool!r}, at {state.keys.spec} in etcd, cannot be read: {fault}; running "
        "processes keep the last spec that they could read, and new processes wait for one: correct it with "
        "'understudy apply -f pool.yaml'"
    )
