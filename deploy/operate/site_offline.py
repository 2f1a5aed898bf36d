"""All that is checked before a site goes out of service, by the command, the console and practice runs alike."""

from understudy.deploy.inspect.capacity import without_headroom
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.operate import service
from understudy.deploy.operate.service import Change
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.groups import read_group
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.state import PoolState


async def checked_site_offline(client: EtcdClient, state: PoolState, intent: Intent, *, force: bool = False) -> Change:
    """What takes a site out of service. Asks control servers for the load, and reads the other pools of the group.

    ``force`` overrules the refusals, but for the last site. Raises :class:`NegativeAnswer` (see
    :func:`understudy.deploy.operate.service.site_offline`).
    """
    if force:
        return service.site_offline(state, intent, force=True)
    change = service.site_offline(state, intent, no_room=await without_headroom(state, intent.site))
    for pool in sorted(await read_group(client, state.spec.record)) if state.spec else ():
        other, _ = await read_pool(client, pool)
        service.require_safe_in_group(other, intent, await without_headroom(other, intent.site))
    return change
