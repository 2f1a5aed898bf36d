"""A member of etcd of a local pool that has lost its data joins again with none.

etcd knows such a member as one that has data, so it must be told: the member is removed and added. Whoever does that
writes a file in the state directory. While the member has no data, its supervisor starts it with what is in the file.
Later etcd goes by its data, whatever its arguments say.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from understudy.deploy.common.layout import Layout, is_held, write_atomically
from understudy.deploy.local.processes import Program

JOIN_FILE = "etcd-join.json"
CHANGE_TIMEOUT = 5.0
LOOK_INTERVAL = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalEtcd:
    """A member of etcd of a local pool: its process, its client and peer URL, and its site."""

    name: str
    client: str
    peer: str
    site: str = ""


def etcds_of(layout: Layout) -> list[LocalEtcd]:
    """The members of etcd of a local pool."""
    sites = layout.etcd_sites or ("",) * len(layout.etcd)
    return [LocalEtcd(*place) for place in zip(layout.etcd_names, layout.etcd, layout.etcd_peers, sites, strict=True)]


class Rejoin:
    """Lets members of etcd join again that have lost their data while most of etcd's members have theirs.

    ``is_down`` says whether a process does not run. What a drill keeps down is left to the drill. ``formed``: there has
    been an etcd, so that a member without data has lost it.
    """

    def __init__(self, directory: Path, etcds: list[LocalEtcd], is_down: Callable[[str], bool]) -> None:
        self._directory = directory
        self._etcds = etcds
        self._is_down = is_down
        self.formed = any(_has_data(directory, one.name) for one in etcds)

    def must_wait(self, name: str) -> bool:
        """Whether a process is a member of etcd that etcd has not been told of yet."""
        return name in {one.name for one in self._lost()} and _expected(self._directory)[0] != name

    async def run(self) -> None:
        """Look for such members, and let one after the other join; until cancelled."""
        while True:
            expected, _ = _expected(self._directory)
            if expected and _has_data(self._directory, expected):
                joined(self._directory)
            for lost in self._lost():
                if self.must_wait(lost.name) and self._is_down(lost.name) and not is_held(self._directory, lost.name):
                    await self._join(lost)
                    break
            await asyncio.sleep(LOOK_INTERVAL)

    async def _join(self, lost: LocalEtcd) -> None:
        for other in self._etcds:
            if _has_data(self._directory, other.name):
                refusal = await add(self._directory, lost, other.client)
                if not refusal:
                    logger.warning("%s has lost its data, and joins etcd again with none", lost.name)
                    return
                logger.info("%s: %s", other.client, refusal)

    def _lost(self) -> list[LocalEtcd]:
        """The members that have no data, if most have some."""
        lost = [one for one in self._etcds if not _has_data(self._directory, one.name)]
        return lost if self.formed and len(self._etcds) > 2 * len(lost) else []


async def add(directory: Path, lost: LocalEtcd, url: str) -> str:
    """Add a member with no data to etcd, and expect it. Returns why etcd refuses it for now, '' if it does not.

    ``url`` is the client URL of a member that runs. One with the same peer URL that has had data is removed first.
    """
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CHANGE_TIMEOUT)) as http:
            members = await _ask(http, f"{url}/v3/cluster/member/list", {})
            known = [one for one in members if lost.peer in one["peerURLs"]]
            former = [one for one in known if one.get("name")]  # etcd learns the name when the member first runs
            for one in former:
                await _ask(http, f"{url}/v3/cluster/member/remove", {"ID": one["ID"]})
            if former or not known:
                members = await _ask(http, f"{url}/v3/cluster/member/add", {"peerURLs": [lost.peer]})
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"etcd did not add {lost.name}: {error or 'timeout'}"
    cluster = [(one.get("name") or lost.name, one["peerURLs"][0]) for one in members]
    expect(directory, lost.name, ",".join(f"{name}={peer}" for name, peer in cluster))
    return ""


def expect(directory: Path, name: str, cluster: str) -> None:
    """The member ``name`` has been added. ``cluster`` names all members as ``--initial-cluster`` does."""
    write_atomically(directory / JOIN_FILE, json.dumps({"name": name, "cluster": cluster}))


def joined(directory: Path) -> None:
    """The member has joined, and has data."""
    (directory / JOIN_FILE).unlink(missing_ok=True)


def joining(program: Program, directory: Path) -> Program:
    """A program as it is started: with further arguments if it is the member of etcd that is expected."""
    name, cluster = _expected(directory)
    if program.name != name or _has_data(directory, name):
        return program
    more = ("--initial-cluster-state", "existing", "--initial-cluster", cluster)  # etcd takes the last of each
    return replace(program, command=(*program.command, *more))


def _expected(directory: Path) -> tuple[str, str]:
    """The name of the member that etcd expects, and all members; '' if it expects none."""
    try:
        found = json.loads((directory / JOIN_FILE).read_text(encoding="utf-8"))
        return str(found["name"]), str(found["cluster"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _has_data(directory: Path, name: str) -> bool:
    return (directory / name / "member").exists()


async def _ask(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of etcd, from an answer of its JSON gateway. Raises ``aiohttp.ClientError`` if it refuses."""
    async with http.post(url, json=body) as answer:
        said = await answer.json(content_type=None)
        if answer.status != 200:
            raise aiohttp.ClientError(str(said.get("message") or said.get("error")))
        members: list[dict[str, Any]] = said["members"]
        return members
