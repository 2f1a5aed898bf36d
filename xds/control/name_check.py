"""Before a control server starts: whether another one of its name runs, since both would share one record in etcd."""

import aiohttp

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer

PATIENCE = aiohttp.ClientTimeout(total=1.5)


async def holder_of_name(client: EtcdClient, keys: PoolKeys, record: ControlServer) -> str:
    """Who else runs as ``record.name`` and answers, in words; '' if nobody does. Raises ``EtcdError``.

    A server with the addresses of ``record`` cannot be another living one: they are this process's own by now.
    """
    found = await client.get(keys.control(record.name))
    try:
        holder = ControlServer.decode(found.value) if found else None
    except ValueError:
        return ""
    if holder is None or holder.http == record.http:
        return ""
    try:
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as http,
            http.get(f"http://{holder.http}/v1/status") as answer,
        ):
            said = read_object(await answer.read())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return ""
    alive = (said.get("control"), said.get("pool")) == (record.name, keys.pool)
    return f"gRPC at {holder.grpc}, HTTP at {holder.http}" if alive else ""
