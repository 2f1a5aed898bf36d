"""The three shapes in which a late copy of a request does harm, with every part of a member stopped in turn.

    python -m tests.faults.front_shapes

Envoy sends each request to the active member, which a fault stops, and after 300 ms to the next one, which answers.
Then other clients write. Then the fault ends, and the first copy is carried out. Prints a line per fault, with what the
first copies did; ends with 1 if one did anything.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
from pathlib import Path

import aiohttp

from tests.faults.front_pool import FAULTS, FrontPool, await_whole, enter_private_network, front_pool
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.pool.slots import slot_of

MODULE = "tests.faults.front_shapes"
STOPPED = ("freeze sidecar", "freeze application", "freeze member", "lose requests to application")
WRITES = ("add", "delete", "make")
OTHERS = 9
"""Other writes between; a session remembers the keys of its last eight."""
STAGINGS = 5


class Shapes:
    """The three shapes against one member."""

    def __init__(self, pool: FrontPool, fault: str, number: int) -> None:
        self._pool = pool
        self._fault = fault
        self._number = number
        self._mark = ""
        self.member = ""
        self._copied: set[str] = set()
        self.keys: list[str] = []

    async def choose(self) -> None:
        """Three session keys of one member, which nobody has used."""
        self._mark = f"{self._number}-{self._fault.replace(' ', '-')}-{secrets.token_hex(3)}"
        state, _ = await read_pool(self._pool.etcd, self._pool.local.layout.pool)
        actives = {slot: at.record.active for slot, at in state.owners.items()}
        self.member = min(actives.values())
        numbers = (f"k{number}-{self._mark}" for number in range(10_000))
        self.keys = [key for key in numbers if actives[slot_of(key, len(actives))] == self.member][:3]

    async def ask(self, method: str, path: str, key: str, *, once: str = "", value: str = "") -> tuple[int, list[str]]:
        """A request through Envoy: its status, and the list if that is what was asked for."""
        headers = {"X-Session-Id": key, **({"Idempotency-Key": once} if once else {})}
        body = {"value": value} if value else None
        timeout = aiohttp.ClientTimeout(total=20)
        url = f"{self._pool.url}{path}"
        async with self._pool.http.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
            text = await answer.text()
            if answer.headers.get("X-Envoy-Attempt-Count", "1") != "1":
                self._copied.add(once)
            return answer.status, json.loads(text) if method == "GET" and answer.status == 200 else []

    async def play(self) -> list[str]:
        """Play all three; returns what went wrong."""
        for _ in range(STAGINGS):
            if await self._stage():
                return await self._end()
            await self._pool.heal()
            await await_whole(self._pool, 60)
        raise AssertionError(f"Envoy knew each time that {self.member} was stopped, and sent it nothing")

    async def _stage(self) -> bool:
        """Play all but the fault's end; returns whether the stopped member has been sent the first copies."""
        await self.choose()
        added, removed, made = self.keys
        for key in (added, made):
            status, _ = await self.ask("POST", "/list", key)
            assert status == 201, status
        # Envoy must have idle connections: a copy that waits for a new one is never sent.
        await asyncio.gather(*(self.ask("GET", "/list", key) for key in self.keys * 4))
        await FAULTS[self._fault](self._pool, self.member)
        answers = await asyncio.gather(
            self.ask("POST", "/list/items", added, once=f"add-{self._mark}", value="gold"),
            self.ask("DELETE", "/list", removed, once=f"delete-{self._mark}"),
            self.ask("POST", "/list", made, once=f"make-{self._mark}"),
        )
        told = [status for status, _ in answers]
        assert told == [200, 404, 409], told
        if not self._copied >= {f"{what}-{self._mark}" for what in WRITES}:
            return False
        for number in range(OTHERS):
            status, _ = await self.ask("POST", "/list/items", added, once=f"{number}-{self._mark}", value=str(number))
            assert status == 200, status
        since = [
            await self.ask("POST", "/list", removed, once=f"since-{self._mark}"),
            await self.ask("DELETE", "/list", made, once=f"gone-{self._mark}"),
        ]
        assert [status for status, _ in since] == [201, 204], since
        return True

    async def _end(self) -> list[str]:
        """End the fault; returns what the first copies have done wrong."""
        await self._pool.heal()
        await self._await_first_copies()
        found = await asyncio.gather(*(self.ask("GET", "/list", key) for key in self.keys))
        wrong = []
        if found[0][1].count("gold") != 1 or len(found[0][1]) != 1 + OTHERS:
            wrong.append(f"the list has {found[0][1]}")
        if found[1][0] != 200:
            wrong.append("a DELETE that was answered 404 removed a session that was made since")
        if found[2][0] != 404:
            wrong.append("a creation that was answered 409 made a ghost")
        return wrong

    async def _await_first_copies(self) -> None:
        """Wait until the member has carried them out. What the network lost may never come: Envoy may have hung up."""
        lost = self._fault.startswith("lose")
        try:
            await until(self._first_copies_are_carried_out, 10 if lost else 40, "the first copies are carried out")
        except AssertionError:
            if not lost:
                raise

    async def _first_copies_are_carried_out(self) -> bool:
        place = next(place for place in self._pool.local.layout.members if place.name == self.member)
        async with self._pool.http.get(f"http://{place.app}/finished") as answer:
            finished = set(await answer.json())
        return finished >= {f"{what}-{self._mark}" for what in WRITES}


async def run(directory: Path, rounds: int, *, quick: bool) -> int:
    """Play every fault so many times; returns the exit code. ``quick``: only one where applications hand on the key."""
    broken = 0
    for stamps in (True, False):
        async with front_pool(directory / f"stamps-{stamps}", takeover="fast", stamps=stamps) as pool:
            for number in range(rounds):
                for fault in STOPPED if stamps or not quick else STOPPED[:1]:
                    wrong = await Shapes(pool, fault, number).play()
                    broken += len(wrong)
                    ground = "stamp and key" if stamps else "key alone"
                    sys.stdout.write(f"{fault} ({ground}): {'; '.join(wrong) or 'all three copies did nothing'}\n")
                    sys.stdout.flush()
                    await await_whole(pool, 60)
    return 1 if broken else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one fault alone with the key alone")
    parser.add_argument("--dir", type=Path, default=None, help="for logs; default: a directory that is removed")
    options = parser.parse_args()
    unable = enter_private_network(MODULE)
    if unable:
        sys.stderr.write(f"this loses packets in a network namespace of its own: {unable}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="understudy-shapes-") as scratch:
        return asyncio.run(run(options.dir or Path(scratch), options.rounds, quick=options.quick))


if __name__ == "__main__":
    sys.exit(main())
