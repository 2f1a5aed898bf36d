"""A client of the peer APIs of a pool's sidecars, for the operator's commands.

With ``--tls-cert`` and so on it uses mTLS with an operator's certificate (docs/security.md). Each member must show its
own certificate.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import TlsOptions
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls

CALL_TIMEOUT = 10.0


class MemberError(Exception):
    """A call to ``member`` failed, or it answered with an error; ``detail`` says why.

    ``refused``: its host refuses connections, so the process has ended.
    """

    def __init__(self, member: str, detail: str, *, refused: bool = False) -> None:
        super().__init__(f"{member}: {detail}")
        self.member = member
        self.detail = detail
        self.refused = refused


class PeerApiClient:
    """Calls to peer APIs; ``addresses`` maps members to ``host:port``."""

    def __init__(self, http: aiohttp.ClientSession, addresses: Mapping[str, str], tls: PeerTls | None) -> None:
        self._http = http
        self._tls = tls
        self.addresses = dict(addresses)

    async def get(self, member: str, path: str, **query: int) -> Any:  # noqa: ANN401 - JSON
        """GET ``path``. Raises :class:`MemberError`."""
        return await self._call(member, "GET", path, params=query)

    async def post(self, member: str, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
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
            refused = isinstance(error.os_error, ConnectionRefusedError)
            detail = f"cannot be reached at {address}: {error.os_error or error}"
            raise MemberError(member, detail, refused=refused) from None
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            raise MemberError(member, str(error) or f"no answer within {CALL_TIMEOUT:g} s") from None


@contextlib.asynccontextmanager
async def peer_apis(addresses: Mapping[str, str], tls: TlsOptions | None, pool: str) -> AsyncIterator[PeerApiClient]:
    """A client of these members' peer APIs. Raises :class:`DeployError` if the TLS files cannot be used."""
    try:
        own = PeerTls(Identity(tls.cert, tls.key, tls.ca, Trust(pool, tls.domain))) if tls else None
    except BadTlsFiles as error:
        raise DeployError(str(error)) from None
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT)) as http:
        yield PeerApiClient(http, addresses, own)
