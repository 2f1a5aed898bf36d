"""What is degraded in a pool now, in words, for what is said of failures that have not happened yet."""

import time

from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.sites import problem_text, sites_view
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.state import PoolState


async def read_degraded(client: EtcdClient, state: PoolState, revision: int) -> list[str]:
    """Each problem with its age and the command that ends it, as ``understudy site status`` has them.

    ``state`` is the pool at ``revision``. Members are not asked; what they alone know is not among the problems.
    """
    controls = {name: at.record.http for name, at in state.controls.items()}
    endpoints = await client.status()
    statuses = await ask_controls(controls.values(), "/v1/status", state.keys.pool)
    now = time.time()
    view = sites_view(
        state, revision=revision, now=now, etcd=endpoints, controls=dict(zip(controls, statuses, strict=True))
    )
    return [problem_text(one, now) for one in view["degraded"]]
