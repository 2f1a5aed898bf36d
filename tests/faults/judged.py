"""For stories with one fault at a time: clients that work beside it and are judged at the end, and single calls."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp

from tests.faults.checker import check
from tests.faults.clients import Clients
from tests.faults.history import FaultWindow, History
from tests.faults.pool import FaultPool
from tests.harness.waiting import until


@contextlib.asynccontextmanager
async def judged_clients(
    pool: FaultPool, durabilities: Sequence[str] = ("",), seed: str = "one fault"
) -> AsyncIterator[History]:
    """Clients at work during the block; at its end every session is read and written, and the checker finds nothing.

    Each write asks for one of ``durabilities`` by chance. What the clients do, and their sessions, follow from
    ``seed``: a pool that has several such blocks needs another one for each.
    """
    history = History()
    crowd = Clients(pool, history, seed, registers=20, fields=6, durabilities=durabilities)
    await crowd.prepare()
    begin = time.monotonic()
    working = asyncio.create_task(crowd.run(6, 0.05))
    try:
        yield history
    finally:
        crowd.stopping = True
        await working
    for name in pool.names:
        await until(lambda name=name: _begun(pool, name), 60, f"{name} has begun")
    refused = await crowd.write_all()
    assert not refused, "\n".join(refused)
    for name in pool.names:
        unread = await crowd.read_all(name)
        assert not unread, "\n".join(unread)
    history.faults.append(FaultWindow("what the story does", tuple(pool.names), begin, time.monotonic()))
    history.owners, history.syncs = list(pool.owner_changes), list(pool.sync_changes)
    history.processes = list(pool.processes)
    violations = await asyncio.to_thread(check, history, takeover=pool.spec.takeover)
    if violations:
        history.dump(pool.home / "history.jsonl")
    assert "\n".join(map(str, violations)) == ""


async def _begun(pool: FaultPool, name: str) -> bool:
    """Whether a member that was started again takes calls."""
    try:
        return (await pool.status(name))["state"] != "INIT"
    except (aiohttp.ClientError, TimeoutError):
        return False


class Caller:
    """Single calls beside the clients, for the answers that a test asks about."""

    def __init__(self, pool: FaultPool) -> None:
        self._pool = pool

    async def put(self, member: str, key: str, value: str, **headers: str) -> tuple[int, str, str]:
        """Status, the problem's name ('' for none) and ``Retry-After``."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self._pool.http.put(self._url(member, key), data=value, headers=sent) as answer:
            problem = "" if answer.status < 400 else (await answer.json(content_type=None))["type"].rpartition("/")[2]
            return answer.status, problem, answer.headers.get("Retry-After", "")

    async def store(self, member: str, key: str, value: str, **headers: str) -> int:
        """The status of a write that is repeated while its answer is 503, as one write with one key."""
        once = {"Idempotency_Key": f"{key}-{secrets.token_hex(4)}", **headers}

        async def definite() -> int:
            status, _, _ = await self.put(member, key, value, **once)
            return status if status != 503 else 0

        return await until(definite, 40, f"{member} takes the write")

    async def delete(self, member: str, key: str, **headers: str) -> int:
        """Status."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self._pool.http.delete(self._url(member, key), headers=sent) as answer:
            return answer.status

    async def get(self, member: str, key: str, **headers: str) -> tuple[int, str]:
        """Status and body."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self._pool.http.get(self._url(member, key), headers=sent) as answer:
            return answer.status, await answer.text()

    async def accepted(self, value: str) -> bool:
        """Whether every member takes a write."""
        answers = [await self.put(name, f"probe-{name}", value) for name in self._pool.names]
        return all(status in (200, 201) for status, _, _ in answers)

    def _url(self, member: str, key: str) -> str:
        return f"http://{self._pool.members[member].api}/v1/sessions/{key}"
