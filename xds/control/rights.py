"""Who may see and change the pools of which tenant at the control server's HTTP port. Pure.

A rights file lists people and programs. Each shows a bearer token, of which the file has the SHA-256, or a client
certificate, of which the file has a name. Each has a right for the pools of some tenants, or of all (``*``):

    - name: anna
      token: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      tenants: {acme: operator}
    - name: platform
      certificate: spiffe://understudy/platform/operator/otto
      tenants: {"*": admin}

A right includes those below it. A pool without a tenant is for those who have a right for all.
"""

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

import msgspec

EVERY = "*"
"""Stands for all tenants, and for pools without a tenant."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TENANT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NAME_MOST = 200


class Right(IntEnum):
    """What somebody may do with a pool. A reader sees it, an operator changes how it runs, an admin everything."""

    READER = 1
    OPERATOR = 2
    ADMIN = 3


class Rights(msgspec.Struct, frozen=True):
    """Who asks, and the right for each tenant.

    ``who`` is the name in the rights file, for the audit log. ``proved``: it was shown by a token or a certificate.
    """

    who: str = ""
    tenants: Mapping[str, Right] = {}
    proved: bool = False

    def right_for(self, tenant: str) -> Right | None:
        """The right for the pools of ``tenant`` ('': for pools without one); None if there is none."""
        held = [right for name in {EVERY, tenant or EVERY} if (right := self.tenants.get(name))]
        return max(held, default=None)


NOBODY = Rights()
ANYBODY = Rights("", {EVERY: Right.READER})
"""The rights of every caller where no rights file is given: as before there were rights, all may read."""


def may(rights: Rights, tenant: str, needed: Right) -> bool:
    """Whether somebody with these rights may do with a pool of ``tenant`` ('': none) what needs the right ``needed``.

    For what is about all pools of a process, ``tenant`` is :data:`EVERY`.
    """
    held = rights.right_for(tenant)
    return held is not None and held >= needed


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the rights file."""

    name: str
    tenants: dict[str, str]
    token: str = ""
    certificate: str = ""

    def fault(self) -> str:
        """What is wrong with it; '' if nothing is."""
        if not 0 < len(self.name) <= _NAME_MOST or not self.name.isprintable():
            return f"name: 1 to {_NAME_MOST} printable characters"
        if bool(self.token) == bool(self.certificate):
            return "give either token or certificate"
        if self.token and not _DIGEST.fullmatch(self.token):
            return "token: sha256: and 64 hex digits, as 'understudy access token' prints it; never the token itself"
        if not self.tenants:
            return "tenants: name at least one, or '*' for all"
        for tenant, right in self.tenants.items():
            if tenant != EVERY and not _TENANT.fullmatch(tenant):
                return f"tenants: {tenant!r} is not the name of a tenant, and not '*'"
            if right not in _BY_NAME:
                return f"tenants: {tenant}: {right!r} is not one of {', '.join(_BY_NAME)}"
        return ""

    def rights(self) -> Rights:
        """What it grants."""
        return Rights(self.name, {tenant: _BY_NAME[right] for tenant, right in self.tenants.items()}, proved=True)


_BY_NAME = {right.name.lower(): right for right in Right}


class RightsTable:
    """The grants of a rights file, found by what a caller shows."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        self._tokens = [(bytes.fromhex(one.token.removeprefix("sha256:")), one.rights()) for one in grants if one.token]
        self._certificates = {one.certificate: one.rights() for one in grants if one.certificate}

    def by_token(self, digest: bytes) -> Rights | None:
        """The rights of the token with this SHA-256. Every entry is compared, each in constant time."""
        found = [rights for held, rights in self._tokens if hmac.compare_digest(held, digest)]
        return found[0] if found else None

    def by_certificate(self, names: Iterable[str]) -> Rights | None:
        """The rights of a certificate with these names: those of the first name that has an entry."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)


def rights_table(document: object) -> RightsTable:
    """The table of a parsed rights file. Raises ``ValueError``, which names the entry and the fault."""
    if not isinstance(document, list) or not document:
        raise ValueError("holds a list of entries with name, tenants, and token or certificate")
    grants: list[Grant] = []
    shown: dict[str, int] = {}
    for number, raw in enumerate(document, 1):
        try:
            grant = msgspec.convert(raw, Grant)
        except msgspec.ValidationError as error:
            raise ValueError(f"entry {number}: {error}") from None
        if fault := grant.fault():
            raise ValueError(f"entry {number}: {fault}")
        proof = grant.token or grant.certificate
        if proof in shown:
            raise ValueError(f"entry {number}: the same token or certificate as entry {shown[proof]}")
        shown[proof] = number
        grants.append(grant)
    return RightsTable(grants)
