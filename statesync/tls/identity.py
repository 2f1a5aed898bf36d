"""The names in a certificate, and for whom a certificate speaks. Pure.

One rule holds for every mTLS connection of a pool. A certificate speaks for a member, node or control server if one of
its subject alternative names is that name, or the SPIFFE id ``spiffe://<domain>/<pool>/<kind>/<name>``. All parts of
the id must match: trust domain, pool, kind and name. The kind tells an Envoy from a member of the same name. The
operator decides who signs certificates, and for whom (docs/security.md).
"""

import ipaddress
from collections.abc import Container, Iterable, Mapping
from typing import Any

import msgspec

MEMBER = "member"
CONTROL = "control"
OPERATOR = "operator"
DOMAIN = "understudy"
"""The trust domain of SPIFFE ids unless an operator names another one."""
_KINDS = frozenset({MEMBER, CONTROL, OPERATOR})


class Trust(msgspec.Struct, frozen=True):
    """The SPIFFE ids that count: those of one pool, in one trust domain.

    ``spiffe_only``: plain names count for nothing, since they do not say of which pool they are.
    """

    pool: str
    domain: str = DOMAIN
    spiffe_only: bool = False

    @property
    def prefix(self) -> str:
        """The beginning of every SPIFFE id in the pool."""
        return f"spiffe://{self.domain}/{self.pool}/"

    def speaks_for(self, names: Iterable[str], kind: str, name: str) -> bool:
        """Whether a certificate with these subject alternative names is that of ``name``, which is a ``kind``."""
        wanted = f"{self.prefix}{kind}/{name}"
        return any(one == wanted if _is_uri(one) else one == name and not self.spiffe_only for one in names)

    def kinds_of(self, names: Iterable[str], *, members: Container[str], controls: Container[str]) -> frozenset[str]:
        """The kinds for which a certificate speaks: member, control server, operator; empty if it is not of this pool.

        A SPIFFE id names the kind, and the authority vouches for it. A plain name does not name a kind, so it must be
        one of the ``members`` or ``controls`` known here.
        """
        kinds = set()
        for one in names:
            if not _is_uri(one):
                kinds |= {MEMBER} if one in members else {CONTROL} if one in controls else set()
            elif one.startswith(self.prefix):
                kind, _, name = one.removeprefix(self.prefix).partition("/")
                kinds |= {kind} if kind in _KINDS and name and "/" not in name else set()
        return frozenset(kinds)


def _is_uri(name: str) -> bool:
    """Whether a name is a URI. A URI never counts as a plain name."""
    return "://" in name


def names_in(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The DNS and URI names in a certificate as Python's ``ssl`` shows it (``SSLObject.getpeercert``)."""
    entries = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in entries if kind in ("DNS", "URI"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening address. Plain text is allowed there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
