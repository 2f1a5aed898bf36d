"""A process that looks like a member to a control server: it beats over a real stream and answers probes.

Started by tests as ``python -m tests.xds.control.simulated_member`` with a JSON object of its settings as the only
argument, so that it can be killed like a real one. It prints ``ready`` when its peer port listens. Each line on
standard input is what its beats tell from then on: a member state and perhaps the reason for it, a claim as JSON, or
the traceparent of a request that it answered. It prints ``told`` when it has a claim, and when a beat with such a
request has gone out.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
from aiohttp import web

from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL, METHOD, Beat, ClaimReport
from understudy.statesync.pool.records import MemberState
from understudy.telemetry.tracing.clock import Clock


class SimulatedMember:
    def __init__(self, *, pool: str, member: str, boot: str, peer: int, controls: list[str], state: str) -> None:
        self.pool, self.member, self.boot = pool, member, boot
        self.peer, self.controls = peer, controls
        self.state = MemberState(state)
        self.reason = ""
        self.clock, self.claims, self.request = Clock(), {}, ""
        self.told = ""

    async def run(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/peer/v1/probe", self._probe)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.peer).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            for control in self.controls:
                tasks.create_task(self._beat_at(control))

    async def _probe(self, _request: web.Request) -> web.Response:
        return web.json_response({"member": self.member, "boot": self.boot})

    async def _beat_at(self, control: str) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with grpc.aio.insecure_channel(control) as channel:
                    call = channel.stream_stream(METHOD)(self._beats())
                    async for _ in call:
                        pass
            await asyncio.sleep(BEAT_INTERVAL)

    async def _beats(self) -> AsyncIterator[bytes]:
        while True:
            request = self.request
            beat = Beat(self.pool, self.member, self.boot, self.state, 1, self.reason, sent=self.clock.now_ns())
            yield replace(beat, claims=tuple(self.claims.values()), request=request).encode()
            if request != self.told:  # gRPC asks for the next beat once this one is written
                self.told = request
                sys.stdout.write("told\n")
                sys.stdout.flush()
            await asyncio.sleep(BEAT_INTERVAL)

    async def _listen(self) -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.startswith("{"):
                now = self.clock.now_ns()
                told = json.loads(line)
                # Far enough in the past that an answer after it is not in the future.
                opened = now - int(1e9 * (late := told.pop("answered_after", 0)))
                made = {"began": opened, "claimed": opened, "opened": opened, "answered": now if late else 0}
                before = self.claims.get(key := (told["trace"], told["slots"]))
                if before is not None:  # what is told of a claim later has the times at which it was made
                    made |= {"began": before.began, "claimed": before.claimed, "opened": before.opened}
                self.claims[key] = ClaimReport(**made | told)
                sys.stdout.write("told\n")
                sys.stdout.flush()
            elif line.startswith("00-"):
                self.request = line.strip()
            else:
                state, _, self.reason = line.strip().partition(" ")
                self.state = MemberState(state)


if __name__ == "__main__":
    asyncio.run(SimulatedMember(**json.loads(sys.argv[1])).run())
