"""Keeps the injector's own certificates in one Secret that all replicas share, and in the webhook's caBundle.

``certificates.next_material`` decides what to do next, and every replica does it. The second one gets a conflict
(resourceVersion), reads again and finds the work done. A certificate is served once the caBundle contains the CA that
signed it. While the API server is away, the replicas keep serving what they have.
"""

import asyncio
import base64
import datetime as dt
import logging
import random
from collections.abc import Callable

from understudy.deploy.kubernetes.base.lenient_json import Body, InjectionRefused, mapping, objects
from understudy.deploy.kubernetes.webhook.api_client import ApiClient, ClusterError, Conflict, secret_path, webhook_path
from understudy.deploy.kubernetes.webhook.certificates import BadMaterial, Lifetimes, Material, next_material
from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace
from understudy.deploy.kubernetes.webhook.tls_reload import ServingCertificate

logger = logging.getLogger(__name__)

LOOK = 15.0
"""Average seconds between two checks."""
FIRST_LOOKS = 1.0
"""The same, while there is no certificate yet."""
AT_ONCE = 20
"""Maximum number of steps before a pause. Each step may finish what another replica has begun."""


def hosts_of(place: InjectorPlace) -> tuple[str, ...]:
    """The DNS names of the injector."""
    return place.host, f"{place.name}.{place.namespace}", f"{place.host}.cluster.local"


class Keeper:
    """The part of one replica.

    Args:
        cluster: the API server.
        place: the injector whose certificates are kept.
        serving: receives the certificate to serve.
        wall: the current time.
        lifetimes: lifetimes of certificates.
    """

    def __init__(
        self,
        cluster: ApiClient,
        place: InjectorPlace,
        serving: ServingCertificate,
        *,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self._cluster = cluster
        self._place = place
        self._serving = serving
        self._wall = wall
        self._lifetimes = lifetimes or Lifetimes()
        self.trouble = "the certificates have not been checked yet"

    async def run(self, looked: Callable[[], None]) -> None:
        """Check repeatedly until cancelled; ``looked`` is called after each check."""
        while True:
            await self.look()
            looked()
            pause = LOOK if self._serving.current else FIRST_LOOKS
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - so that replicas don't meet

    async def look(self) -> None:
        """Do what is due. Afterwards :attr:`trouble` says what failed, or is ''."""
        try:
            for _ in range(AT_ONCE):
                try:
                    if await self._step():
                        break
                except Conflict:
                    logger.debug("another replica was first")
            trouble = ""
        except (ClusterError, InjectionRefused, BadMaterial) as error:
            trouble = f"the certificates cannot be kept: {error}"
        if trouble and trouble != self.trouble:
            logger.warning("%s", trouble)
        self.trouble = trouble

    async def _step(self) -> bool:
        """Take one step. True if nothing is left to do. Raises :class:`ClusterError`, :class:`InjectionRefused`."""
        path = secret_path(self._place.namespace, self._place.secret)
        secret = await self._cluster.get(path)
        material = _material_in(secret)
        wanted = next_material(material, hosts_of(self._place), self._wall(), self._lifetimes)
        if wanted is not material:
            await self._cluster.replace(path, {**secret, "data": wanted.encode()})
            logger.info("certificates: changed the Secret")
            return False
        await self._publish(wanted)
        if self._serving.take(wanted.certificate, wanted.key):
            logger.info("certificate loaded")
        return True

    async def _publish(self, material: Material) -> None:
        """Put the current CAs into the webhook configuration, so that API servers trust them."""
        path = webhook_path(self._place.name)
        configuration = await self._cluster.get(path)
        bundle = base64.b64encode(material.trusted).decode()
        webhooks = objects(configuration, "webhooks", "webhook configuration")
        if all(mapping(each, "clientConfig", "webhook").get("caBundle") == bundle for each in webhooks):
            return
        told = [_trusting(webhook, bundle) for webhook in webhooks]
        await self._cluster.replace(path, {**configuration, "webhooks": told})
        logger.info("the webhook configuration trusts %d CAs", len(material.authorities))


def _material_in(secret: Body) -> Material | None:
    try:
        return Material.decode(mapping(secret, "data", "secret"))
    except BadMaterial as error:
        logger.warning("the Secret has no usable certificates, so new ones are made: %s", error)
        return None


def _trusting(webhook: Body, bundle: str) -> Body:
    return {**webhook, "clientConfig": {**mapping(webhook, "clientConfig", "webhook"), "caBundle": bundle}}
