"""The part of the spec for front Envoys that serve several pools: port, hosts, paths and certificate of a pool.

Also decides whether two pools can be on one front (:func:`front_conflict`). Pure. Part of
:mod:`understudy.statesync.pool.spec`.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

ANY_HOST = "*"
ALL_PATHS = "/"
_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"

Host = Annotated[str, Field(pattern=rf"^(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)$", max_length=253)]
"""The host of a request without its port, in lower case; ``*.example.com``: any host below; ``*``: any other host."""
Path = Annotated[str, Field(pattern=r"^(/|(/[A-Za-z0-9._~@:+-]+)+)$", max_length=200)]
"""The first parts of a path: ``/cart`` is ``/cart`` and everything below ``/cart/``, and not ``/cartoon``."""
File = Annotated[str, Field(pattern=r"^/\S*[^\s/]$", max_length=1000)]


class FrontTls(BaseModel):
    """Certificate and private key (PEM) of the pool's hosts: absolute paths on the machine of the front Envoy."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    cert: File
    key: File


class Front(BaseModel):
    """Where front Envoys that serve several pools accept this pool's clients (docs/many-pools.md).

    ``port`` is the one on which they listen. Of the hosts of all pools on a port the most specific one counts, and of
    the paths of that host the longest. ``tls``: clients speak TLS, and the certificate is chosen by the host (SNI).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    port: Annotated[int, Field(ge=1, le=65535)]
    hosts: Annotated[tuple[Host, ...], Field(min_length=1, max_length=20)] = (ANY_HOST,)
    paths: Annotated[tuple[Path, ...], Field(min_length=1, max_length=20)] = (ALL_PATHS,)
    tls: FrontTls | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Front":
        for what, values in (("hosts", self.hosts), ("paths", self.paths)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: one of them is there twice")
        if any(part in (".", "..") for path in self.paths for part in path.split("/")):
            raise ValueError("paths: Envoy resolves '.' and '..' before it looks at the path; leave them out")
        return self

    def refuse_for_tcp(self) -> None:
        """Raise ``ValueError`` if this cannot be the front of a TCP pool."""
        if self.hosts != (ANY_HOST,):
            raise ValueError("front.hosts: a tcp pool has its port alone and sees no host; leave hosts out")
        if self.paths != (ALL_PATHS,):
            raise ValueError("front.paths: a tcp pool has its port alone and sees no path; leave paths out")
        if self.tls is not None:
            raise ValueError("front.tls: front Envoys pass a tcp pool's connections on as they are; leave tls out")


class FrontUse(msgspec.Struct, frozen=True):
    """The front of one pool, as far as other pools must know it."""

    pool: str
    front: Front
    tcp: bool


def front_conflict(one: FrontUse, other: FrontUse) -> str:
    """Why two pools cannot be on one front Envoy: what ``one`` asks for and ``other`` has; '' if they can."""
    mine, theirs = one.front, other.front
    if mine.port != theirs.port:
        return ""
    has = f"front.port: pool {other.pool!r} has port {theirs.port}"
    if other.tcp:
        return f"{has}, and a tcp pool has its port alone"
    if one.tcp:
        return f"{has}, and a tcp pool needs a port of its own"
    if (mine.tls is None) != (theirs.tls is None):
        return f"{has} {'without' if theirs.tls is None else 'with'} TLS, and a port has TLS for all its pools or none"
    hosts = sorted(set(mine.hosts) & set(theirs.hosts))
    if hosts and mine.tls != theirs.tls:
        return (
            f"front.tls: pool {other.pool!r} has host {hosts[0]} on port {theirs.port} with another certificate; "
            "a host has one certificate"
        )
    paths = sorted(set(mine.paths) & set(theirs.paths))
    if hosts and paths:
        return f"front: pool {other.pool!r} has host {hosts[0]} with path {paths[0]} on port {theirs.port}"
    return ""


def first_conflict(one: FrontUse, others: Iterable[FrontUse]) -> str:
    """The first reason why ``one`` cannot be beside the ``others``; '' if it can."""
    return next(filter(None, (front_conflict(one, other) for other in others if other.pool != one.pool)), "")


def settled_fronts(uses: Iterable[tuple[int, FrontUse]]) -> tuple[dict[str, FrontUse], dict[str, str]]:
    """The fronts that can be served together by their pools, and for each other pool why it cannot.

    ``uses`` have the revision at which each spec was written: of two that conflict the earlier one counts. So every
    control server decides alike.
    """
    served: dict[str, FrontUse] = {}
    refused: dict[str, str] = {}
    for _, use in sorted(uses, key=lambda one: (one[0], one[1].pool)):
        if why := first_conflict(use, served.values()):
            refused[use.pool] = why
        else:
            served[use.pool] = use
    return served, refused
