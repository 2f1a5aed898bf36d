"""Real sidecars inside the test's own process, so that a test can look into their memory, and spoil it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.harness.sidecars import MemberProcesses, SidecarPool
from understudy.proxy.sidecar.sidecar import Sidecar, SidecarSettings, running_sidecar
from understudy.statesync.etcd.settings import EtcdSettings

NEVER = 3600.0


@asynccontextmanager
async def sidecars_here(
    pool: SidecarPool, *names: str, scrub_interval: float = NEVER, session_keys: Path | None = None
) -> AsyncIterator[dict[str, Sidecar]]:
    """Ready sidecars of ``pool``; they compare themselves with etcd only if ``scrub_interval`` is given.

    With ``session_keys`` sessions are encrypted.
    """
    async with AsyncExitStack() as stack:
        sidecars = {}
        for name in names:
            member = pool.members[name] = MemberProcesses(name)
            member.application.start()
            settings = SidecarSettings(
                name,
                pool.keys.pool,
                member.app,
                member.api,
                member.peer,
                scrub_interval=scrub_interval,
                session_keys=session_keys,
                etcd=EtcdSettings((pool.etcd.endpoint,)),
            )
            sidecars[name] = await stack.enter_async_context(running_sidecar(settings))
            await pool.await_ready(name)
        yield sidecars
