"""A pool of three real sidecars, each the owner of a third of the slots."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool

NAMES = ("a", "b", "c")
ORDERS = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))


@asynccontextmanager
async def three_owners(etcd: EtcdServer) -> AsyncIterator[SidecarPool]:
    """The pool, once every member has its copies."""
    async with sidecar_pool(etcd, f"pool-{uuid.uuid4().hex[:12]}") as sidecars:
        await sidecars.start(*NAMES)
        await sidecars.settle(*ORDERS)
        await sidecars.await_copies(*NAMES)
        yield sidecars
