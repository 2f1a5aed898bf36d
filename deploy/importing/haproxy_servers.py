"""What the servers of an HAProxy section mean for a pool: weights, backups, protocol and TLS. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.importing.findings import Finding, Remark, Target
from understudy.deploy.importing.haproxy_config import Line, Section
from understudy.statesync.parsing.strict_json import whole_number

_A_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_WEIGHT_MOST = 256
_WEIGHT_DEFAULT = 1


@dataclass(frozen=True, slots=True)
class _Server:
    """One ``server`` line."""

    line: Line

    @property
    def name(self) -> str:
        return self.line.words[1]

    @property
    def weight(self) -> int | None:
        """Its weight, 1 unless it says otherwise; None if that is no number from 0 to 256."""
        text = self.after("weight")
        return _WEIGHT_DEFAULT if text is None else whole_number(text, _WEIGHT_MOST)

    @property
    def is_backup(self) -> bool:
        return "backup" in self.line.words[3:]

    def after(self, word: str) -> str | None:
        """The word after an option; None without the option."""
        words = self.line.words[3:]
        if word not in words[:-1]:
            return None
        return words[words.index(word) + 1]


def servers_of(section: Section, file: str, *, tcp: bool) -> Iterator[Finding]:
    """Findings about the servers of a section that becomes a pool. None of them has a session key."""
    servers = [_Server(line) for line in section.all("server") if len(line.words) > 2]
    if not servers:
        return
    place, target = section.place(file, servers[0].line), Target(section.name)
    if any(server.is_backup for server in servers):
        members, remarks = _priorities(servers)
        spec: dict[str, Any] = {"mode": "active_standby"} if members else {}
    else:
        (members, remarks), spec = _weights(servers), {}
    if members:
        spec["members"] = members
        names = f"The file names the members {', '.join(members)}."
        remarks = (*remarks, Remark("check", "server", names, _NAMES_REMEDY))
    if not tcp and all(server.after("proto") == "h2" for server in servers):
        spec["protocol"] = "http2"
    if not tcp and any("ssl" in server.line.words for server in servers):
        remarks = (*remarks, _TLS)
    if remarks or spec:
        yield Finding(place, target, None, remarks, spec)


_Members = tuple[dict[str, Mapping[str, int]], tuple[Remark, ...]]
"""Members with what the spec says of them, and remarks."""


def _weights(servers: Sequence[_Server]) -> _Members:
    """The members' weights, if they differ."""
    unused = tuple(
        Remark("lost", f"server {server.name} ... weight {server.after('weight')}", _WEIGHT_0, _WEIGHT_0_REMEDY)
        for server in servers
        if not server.weight
    )
    weighted = {server.name: server.weight for server in servers if server.weight}
    if len(set(weighted.values())) <= 1:
        return {}, unused
    if not _all_named(servers):
        return {}, (*unused, Remark("lost", "server ... weight", _NO_NAMES, _NO_NAMES_REMEDY))
    return {name: {"weight": weight} for name, weight in weighted.items()}, unused


def _priorities(servers: Sequence[_Server]) -> _Members:
    """The members' priorities, if there is one server with backups."""
    backups = [server for server in servers if server.is_backup]
    setting, named = f"server {backups[0].name} ... backup", _all_named(servers)
    if len(servers) - len(backups) != 1 or not named:
        return {}, (Remark("lost", setting, _MANY if named else _NO_NAMES, _MANY_REMEDY),)
    ranks = enumerate(sorted(servers, key=lambda one: one.is_backup), 1)
    return {server.name: {"priority": rank} for rank, server in ranks}, (
        Remark("changed", setting, _STAYS, "To move back: 'understudy drain MEMBER', then 'undrain'."),
    )


def _all_named(servers: Sequence[_Server]) -> bool:
    """Whether all servers have names that members can have."""
    return all(_A_NAME.fullmatch(server.name) for server in servers)


_NAMES_REMEDY = "Start their sidecars with these names (--member). Else remove 'members' from the file."
_WEIGHT_0_REMEDY = "Drain the member: 'understudy drain MEMBER'."
_WEIGHT_0 = "A member has a weight of 1 at least; HAProxy sends this server only clients that it had before."
_NO_NAMES = "A member's name has only a-z, 0-9, '.' and '-', and a server's name here has others."
_NO_NAMES_REMEDY = "Write 'members' with the names and weights that the sidecars will have."
_MANY = "In load_sharing every member gets slots; a member only for emergencies is possible beside one other member."
_MANY_REMEDY = "Let the backup be a member like the others, or write mode: active_standby with priorities."
_STAYS = "The first member is active, and after a failure the one that took over stays active (recovery: keep_current)."
_TLS = Remark(
    "lost",
    "server ... ssl",
    "Front Envoys speak to applications without TLS.",
    "Let the application listen without TLS at an address that only its machine and front Envoys reach.",
)
