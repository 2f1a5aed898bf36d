"""Whose certificate it is: the names in it, and for whom they speak. Pure.

One rule for every mTLS connection of a pool. A certificate speaks for a member, node or control server if one of its
subject alternative names is that name, or a SPIFFE id that ends in ``/<kind>/<name>``. The SPIFFE form tells the kinds
apart. Who signs certificates, and for whom, is the operator's (docs/security.md).
"""

import ipaddress
from collections.abc import Container, Iterable, Mapping
from typing import Any

MEMBER = "member"
CONTROL = "control"
OPERATOR = "operator"
_KINDS = frozenset({MEMBER, CONTROL, OPERATOR})


def speaks_for(names: Iterable[str], kind: str, name: str) -> bool:
    """Whether a certificate with these subject alternative names is that of ``name``, which is a ``kind``."""
    ending = f"/{kind}/{name}"
    return any(one == name or (one.startswith("spiffe://") and one.endswith(ending)) for one in names)


def kinds_of(names: Iterable[str], *, members: Container[str], controls: Container[str]) -> frozenset[str]:
    """Whose certificate it is: a member's, a control server's, an operator's, or (empty) of nobody in the pool.

    A SPIFFE id says so by itself (``.../member/<any>``), since the authority vouches for the kind. A plain name does
    not, so it must be that of one of the ``members`` or ``controls`` known here.
    """
    kinds = set()
    for one in names:
        if one.startswith("spiffe://"):
            parts = one.split("/")
            if len(parts) >= 5 and parts[-2] in _KINDS and parts[-1]:
                kinds.add(parts[-2])
        else:
            kinds |= {MEMBER} if one in members else {CONTROL} if one in controls else set()
    return frozenset(kinds)


def names_in(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The DNS and URI names in a certificate as Python's ``ssl`` shows it (``SSLObject.getpeercert``)."""
    entries = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in entries if kind in ("DNS", "URI"))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listening address: where plain text needs no excuse."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
