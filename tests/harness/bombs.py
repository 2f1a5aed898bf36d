"""Bodies that are small when they are sent and huge when they are decompressed, and what they cost a process.

Elapsed time says little on a machine that others load. So CPU time is compared: what the process that is sent the bombs
uses, and what it takes this process to decompress them.
"""

import asyncio
import os
import ssl
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INFLATED = 48 * 1024 * 1024
"""As gzip it has 49 KB, so a server gets all of it at once, before it can answer."""
CONNECTIONS, EACH = 4, 16
DEADLINE = 60.0
"""Seconds for any one answer."""


@cache
def bomb() -> bytes:
    """Zeros as gzip."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(INFLATED >> 20)) + packer.flush()


@cache
def cpu_to_inflate() -> float:
    """Seconds of CPU that it takes to decompress one bomb."""
    began = time.process_time()
    assert len(zlib.decompress(bomb(), wbits=31)) == INFLATED
    return time.process_time() - began


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """A port of a process: where it is, a path that answers a legitimate GET with 200, and paths for bombs."""

    pid: int
    port: int
    good: str
    paths: Sequence[str]
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"

    async def status(self, method: str, path: str, body: bytes = b"") -> int:
        """The status of the answer to one request on a connection of its own, with a body of gzip if with one."""
        told = {"server_hostname": self.host} if self.tls else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, **told)
        try:
            coding = "Content-Encoding: gzip\r\n" if body else ""
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{coding}"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(DEADLINE):
                return int((await reader.readline()).split()[1])
        finally:
            writer.close()


async def require_unharmed(target: Target) -> None:
    """Send bombs over several connections while a legitimate client asks; fail if the process has decompressed them."""
    price = CONNECTIONS * EACH * cpu_to_inflate()
    before = cpu_of(target.pid)

    async def attack(number: int) -> list[int]:
        paths = [target.paths[(number + turn) % len(target.paths)] for turn in range(EACH)]
        return [await target.status("POST", path, bomb()) for path in paths]

    attacks = asyncio.gather(*(attack(number) for number in range(CONNECTIONS)))
    answers = [await target.status("GET", target.good)]
    while not attacks.done():
        answers.append(await target.status("GET", target.good))
    used = cpu_of(target.pid) - before

    assert set(answers) == {200}
    assert {status for statuses in await attacks for status in statuses} == {415}
    assert used < price / 16, f"{used:.2f} s of CPU were used, and to decompress all bombs takes {price:.2f} s"
