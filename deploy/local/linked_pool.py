"""A local pool whose sites each have a network of their own: ``understudy up --sites ... --links``.

Everything that is on no site, such as the third of three members of etcd, is in a network of its own too: the witness.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Protocol, TypeVar

from understudy.deploy.common.layout import ControlAddresses, FrontAddresses, Layout, MemberAddresses, SiteNetwork
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.ports import LOOPBACK
from understudy.deploy.local.processes import Processes, Program
from understudy.deploy.local.several_pools import layouts_of

Place = TypeVar("Place", ControlAddresses, FrontAddresses, MemberAddresses)
WITNESS = "witness"
"""The party of what is on no site."""
_PLAIN = ("control", "sidecar")
"""Commands that listen outside loopback only if they are told that nothing is protected."""


class PartyNetwork(Protocol):
    """A network with a party for each site, and for the witness."""

    addresses: dict[str, str]

    def namespace(self, party: str) -> str:
        """The name of a party's namespace."""

    def inside(self, party: str) -> list[str]:
        """What to put before a command so that it runs in a party's namespace."""


def moved(layout: Layout, net: PartyNetwork) -> Layout:
    """The layout with each process at the address of its site."""

    def at(place: Place) -> Place:
        host = net.addresses[place.site or WITNESS]
        named = {field.name: getattr(place, field.name) for field in fields(place)}
        return replace(place, **{name: value.replace(LOOPBACK, host) for name, value in named.items()})

    def urls(found: tuple[str, ...]) -> tuple[str, ...]:
        hosts = [net.addresses[site or WITNESS] for site in layout.etcd_sites]
        return tuple(url.replace(LOOPBACK, host) for url, host in zip(found, hosts, strict=True))

    return replace(
        layout,
        etcd=urls(layout.etcd),
        etcd_peers=urls(layout.etcd_peers),
        controls=tuple(map(at, layout.controls)),
        members=tuple(map(at, layout.members)),
        front=at(layout.front),
        site_fronts=tuple(map(at, layout.site_fronts)),
        networks=tuple(SiteNetwork(party, net.namespace(party), host) for party, host in net.addresses.items()),
    )


class LinkedPool(LocalPool):
    """A local pool with a network for each site. Whoever uses it is in a network that reaches all of them."""

    def __init__(self, settings: LocalSettings, net: PartyNetwork, say: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(settings, say=say)
        self.layout = moved(self.layout, net)
        self.processes = Processes(self._write_processes, self.on_site, self._is_held)
        self._net = net

    def on_site(self, program: Program) -> Program:
        """A program as it is started in the network of its site."""
        inside = self._net.inside(self.site_of(program.name))
        if program.command[: len(inside)] == tuple(inside):
            return program
        plain = ("--insecure",) if any(word in program.command for word in _PLAIN) else ()
        return replace(program, command=(*inside, *program.command, *plain))

    def site_of(self, process: str) -> str:
        """The site of a process by its name, or the witness."""
        layout = self.layout
        sites = {control.name: control.site for control in layout.controls}
        sites |= {front.name: front.site for front in (layout.front, *layout.site_fronts)}
        sites |= dict(zip(layout.etcd_names, layout.etcd_sites, strict=True))
        sites |= {member.name: member.site for one in layouts_of(layout) for member in one.members}
        return sites[process.partition("/")[0]] or WITNESS
