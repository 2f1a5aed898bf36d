"""Asks sidecars over their peer API, at the addresses in the member records. Used by the operator's commands.

With ``--tls-cert`` and so on the calls go over mTLS, as an operator of the pool (docs/security.md); each member must
show the certificate of just that member.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import TlsOptions
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls

PATIENCE = 10.0


class MemberError(Exception):
    """A member could not be asked, or said no; ``member`` and ``detail`` tell who and why."""

    def __init__(self, member: str, detail: str) -> None:
        super().__init__(f"{member}: {detail}")
        self.member = member
        self.detail = detail


class Members:
    """Calls to peer APIs; ``addresses`` maps members to ``host:port``."""

    def __init__(self, http: aiohttp.ClientSession, addresses: Mapping[str, str], tls: PeerTls | None) -> None:
        self._http = http
        self._tls = tls
        self.addresses = dict(addresses)

    async def ask(self, member: str, path: str, **query: int) -> Any:  # noqa: ANN401 - JSON
        """GET ``path``. Raises :class:`MemberError`."""
        return await self._call(member, "GET", path, params=query)

    async def tell(self, member: str, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        """POST ``body`` to ``path``. Raises :class:`MemberError`."""
        return await self._call(member, "POST", path, json=body)

    async def _call(self, member: str, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - aiohttp's
        url = f"{'https' if self._tls else 'http'}://{self.addresses[member]}{path}"
        context = self._tls.client(member) if self._tls else True
        try:
            async with self._http.request(method, url, ssl=context, **options) as answer:
                content = await answer.json(content_type=None)
                if answer.status != 200:
                    raise MemberError(member, str(content.get("detail", answer.status)))
                return content
        except aiohttp.ClientConnectorError as error:
            address = self.addresses[member]
            raise MemberError(member, f"cannot be reached at {address}: {error.os_error or error}") from None
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            raise MemberError(member, str(error) or f"no answer within {PATIENCE:g} s") from None


@contextlib.asynccontextmanager
async def asking(addresses: Mapping[str, str], tls: TlsOptions | None, pool: str) -> AsyncIterator[Members]:
    """A client of these members' peer APIs. Raises :class:`DeployError` if the TLS files cannot be used."""
    try:
        own = PeerTls(Identity(tls.cert, tls.key, tls.ca, Trust(pool, tls.domain))) if tls else None
    except BadTlsFiles as error:
        raise DeployError(str(error)) from None
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as http:
        yield Members(http, addresses, own)
