"""The two calls that the injector makes to Kubernetes: read an object, and replace it if nobody else has changed it.

Plain HTTPS with the pod's service account. The token and the CA are read for each call, since the kubelet renews them.
Two calls do not need a client library.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.lenient_json import Body

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 10.0
USER_AGENT = "understudy-injector"


class ClusterError(Exception):
    """A call failed; the text says which and why."""


class Conflict(ClusterError):
    """Somebody else has changed the object since it was read (409): read it again."""


class Missing(ClusterError):
    """The object does not exist (404)."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Where the API server is, and the directory with ``token`` and ``ca.crt``."""

    url: str
    account: Path = ACCOUNT

    @classmethod
    def around(cls, environment: Mapping[str, str]) -> "ApiServer":
        """The API server of the cluster that this pod runs in. Raises :class:`DeployError` outside of a cluster."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
        if not host or not port or not (ACCOUNT / "token").exists():
            raise DeployError(
                "--self-signed keeps its certificates in the cluster, but this is not a pod with a service account: "
                "run the injector in a pod, or give certificates with --cert-dir"
            )
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}")


class ApiClient:
    """Calls to one API server."""

    def __init__(self, server: ApiServer, http: aiohttp.ClientSession) -> None:
        self._server = server
        self._http = http

    async def get(self, path: str) -> Body:
        """The object at ``path``. Raises :class:`ClusterError`."""
        return await self._call("GET", path)

    async def replace(self, path: str, body: Body) -> Body:
        """Replace an object by ``body``, if its ``metadata.resourceVersion`` is still the current one.

        Raises:
            Conflict: it is no longer the current one.
            ClusterError: anything else.
        """
        return await self._call("PUT", path, json=body)

    async def _call(self, method: str, path: str, **options: Any) -> Body:  # noqa: ANN401 - aiohttp's
        what = f"{method} {path}"
        try:
            token, context = await asyncio.to_thread(self._credentials)
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": USER_AGENT}
            url = f"{self._server.url}{path}"
            async with (
                asyncio.timeout(PATIENCE),
                self._http.request(method, url, headers=headers, ssl=context, **options) as answer,
            ):
                content = await answer.json(content_type=None)
                if answer.status == 200 and isinstance(content, dict):
                    return content
                said = content.get("message", "") if isinstance(content, dict) else ""
                kind = {404: Missing, 409: Conflict}.get(answer.status, ClusterError)
                raise kind(f"{what}: {answer.status} {said}".rstrip())
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ClusterError(f"{what}: {error or 'no answer'}") from None

    def _credentials(self) -> tuple[str, ssl.SSLContext]:
        token = (self._server.account / "token").read_text(encoding="utf-8").strip()
        return token, ssl.create_default_context(cafile=str(self._server.account / "ca.crt"))


def secret_path(namespace: str, name: str) -> str:
    """The path of a Secret."""
    return f"/api/v1/namespaces/{namespace}/secrets/{name}"


def webhook_path(name: str) -> str:
    """The path of a MutatingWebhookConfiguration."""
    return f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
