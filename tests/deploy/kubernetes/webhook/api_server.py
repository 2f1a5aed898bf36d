"""The calls that the injector makes to an API server, answered over HTTPS as one does: versions, conflicts, errors.

Objects have the shape in which an API server of 1.31 gives them out; ``resourceVersion`` rises with each write, and a
write on another version than the current one is refused with 409 and a Status.
"""

import base64
import contextlib
import copy
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.harness.certificates import Authority
from tests.harness.waiting import free_port
from understudy.deploy.kubernetes.webhook.api_client import ApiServer, secret_path, webhook_path
from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace

TOKEN = "the-service-accounts-token"
PLACE = InjectorPlace("understudy-system")
SECRET = secret_path(PLACE.namespace, PLACE.secret)
WEBHOOK = webhook_path(PLACE.name)


def status(code: int, reason: str, message: str) -> web.Response:
    """A failure as Kubernetes tells it."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(body, status=code)


@dataclass
class FakeApiServer:
    """Objects by path, and what was done to them."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 1000
    writes: list[str] = field(default_factory=list)
    conflicts: int = 0
    failing: int = 0
    token: str = TOKEN

    def put(self, path: str, body: dict[str, Any]) -> None:
        """Put an object there, as somebody else would."""
        self.version += 1
        metadata = {**body.get("metadata", {}), "resourceVersion": str(self.version)}
        self.objects[path] = {**copy.deepcopy(body), "metadata": metadata}

    @property
    def bundles(self) -> list[bytes]:
        """What API servers would trust, per webhook."""
        webhooks = self.objects[WEBHOOK]["webhooks"]
        return [base64.b64decode(webhook["clientConfig"].get("caBundle", "")) for webhook in webhooks]

    async def answer(self, request: web.Request) -> web.Response:
        """One call."""
        if self.failing:
            self.failing -= 1
            return status(500, "InternalError", "etcdserver: request timed out")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "28+", "gitVersion": "v1.28.15-eks-1"})
        known = self.objects.get(request.path)
        if known is None:
            return status(404, "NotFound", f'"{request.path.rpartition("/")[2]}" not found')
        if request.method == "GET":
            return web.json_response(known)
        if request.method != "PUT":
            return status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        body = await request.json()
        if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
            self.conflicts += 1
            return status(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        self.writes.append(request.path)
        self.put(request.path, body)
        return web.json_response(self.objects[request.path])


@contextlib.asynccontextmanager
async def api_server(home: Path, webhook: dict[str, Any]) -> AsyncIterator[tuple[FakeApiServer, ApiServer]]:
    """A server with an empty Secret and a webhook configuration, and how it is reached by a pod."""
    authority = Authority(home / "cluster")
    identity = authority.issue("apiserver", "IP:127.0.0.1", use="serverAuth")
    account = home / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "ca.crt").write_bytes(identity.ca.read_bytes())
    fake = FakeApiServer()
    fake.put(
        SECRET,
        {
            "kind": "Secret",
            "apiVersion": "v1",
            "type": "Opaque",
            "metadata": {"name": PLACE.secret, "namespace": PLACE.namespace, "uid": "7a1f", "managedFields": []},
        },
    )
    fake.put(WEBHOOK, webhook)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.cert, identity.key)
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    try:
        yield fake, ApiServer(f"https://127.0.0.1:{port}", account)
    finally:
        await runner.cleanup()
