"""What a sweep does to a dead session, without waiting for the session's end."""

import asyncio
from functools import partial

from understudy.proxy.ownership.owned_slots import NotMine
from understudy.proxy.sidecar.parts import Sidecar


async def remove(sidecar: Sidecar, slot: int, key: str) -> None:
    """Remove a session at the active of its slot, from memory and etcd, as if it had expired."""
    try:
        owned = await sidecar.owned.enter(slot)
    except NotMine:
        return
    writes = sidecar.writes
    await writes._locks.acquire(slot, key)
    submission = writes._submit(key, None, owned, partial(writes._release, owned, key), "replicas")
    await asyncio.wait((submission.done,))
