"""Checks, before a control server starts, that no other one has its name: they would share one record in etcd."""

import aiohttp

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer

STATUS_TIMEOUT = aiohttp.ClientTimeout(total=1.5)


async def holder_of_name(client: EtcdClient, keys: PoolKeys, record: ControlServer) -> str:
    """The addresses of another server that runs as ``record.name`` and answers, as text; '' if there is none.

    Raises ``EtcdError``. A server with the addresses of ``record`` cannot be another living one: this process listens
    there.
    """
    found = await client.get(keys.control(record.name))
    try:
        holder = ControlServer.decode(found.value) if found else None
    except ValueError:
        return ""
    if holder is None or holder.http == record.http:
        return ""
    try:
        async with aiohttp.ClientSession(timeout=STATUS_TIMEOUT) as http:
            said = await _said(http, holder.http, "/healthz")
            if "control" not in said:  # an earlier release
                said = await _said(http, holder.http, f"/v1/status?pool={keys.pool}")
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return ""
    alive = said.get("control") == record.name and said.get("pool", keys.pool) == keys.pool
    return f"gRPC at {holder.grpc}, HTTP at {holder.http}" if alive else ""


async def _said(http: aiohttp.ClientSession, address: str, path: str) -> dict[str, object]:
    """What a control server answers; nothing if it refuses. Its certificate does not matter: it gets no secret."""
    url = f"{'' if address.startswith('https://') else 'http://'}{address}{path}"
    async with http.get(url, ssl=False) as answer:
        return read_object(await answer.read()) if answer.ok else {}
