"""Keeps the injector's own certificates: in one Secret that all replicas share, and in the webhook's caBundle.

What to do next is decided by ``certificates.next_material``; every replica carries it out, and whoever comes second
meets a conflict (resourceVersion), reads again and finds it done. A certificate is served once the caBundle has what
signed it. While the API server is away, what is served stays.
"""

import asyncio
import base64
import datetime as dt
import logging
import random
from collections.abc import Callable

from understudy.deploy.kubernetes.base.lenient_json import Body, Refused, mapping, objects
from understudy.deploy.kubernetes.webhook.api_client import Cluster, ClusterError, Conflict, secret_path, webhook_path
from understudy.deploy.kubernetes.webhook.certificates import BadMaterial, Lifetimes, Material, next_material
from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace
from understudy.deploy.kubernetes.webhook.tls_reload import ServingCertificate

logger = logging.getLogger(__name__)

LOOK = 15.0
"""Seconds between looks, on average."""
FIRST_LOOKS = 1.0
"""The same while nothing can be served yet."""
AT_ONCE = 20
"""Steps that are taken one after the other before a pause: each one ends what another replica has begun."""


def hosts_of(place: InjectorPlace) -> tuple[str, ...]:
    """The names under which the injector is dialled."""
    return place.host, f"{place.name}.{place.namespace}", f"{place.host}.cluster.local"


class Keeper:
    """One replica's part in it.

    Args:
        cluster: the API server.
        place: whose certificates.
        serving: takes up what is to be served.
        wall: the time.
        lifetimes: how long things live.
    """

    def __init__(
        self,
        cluster: Cluster,
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
        self.trouble = "the certificates have not been looked at"

    async def run(self, looked: Callable[[], None]) -> None:
        """Look again and again until cancelled; ``looked`` is called each time."""
        while True:
            await self.look()
            looked()
            pause = LOOK if self._serving.current else FIRST_LOOKS
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - so that replicas don't meet

    async def look(self) -> None:
        """Do what is to be done now; :attr:`trouble` says what could not be, '' for nothing."""
        try:
            for _ in range(AT_ONCE):
                try:
                    if await self._step():
                        break
                except Conflict:
                    logger.debug("another replica was first")
            trouble = ""
        except (ClusterError, Refused, BadMaterial) as error:
            trouble = f"the certificates cannot be kept: {error}"
        if trouble and trouble != self.trouble:
            logger.warning("%s", trouble)
        self.trouble = trouble

    async def _step(self) -> bool:
        """One round; whether nothing is left to do. Raises :class:`ClusterError`, :class:`Refused`."""
        path = secret_path(self._place.namespace, self._place.secret)
        secret = await self._cluster.get(path)
        material = _material_in(secret)
        wanted = next_material(material, hosts_of(self._place), self._wall(), self._lifetimes)
        if wanted is not material:
            await self._cluster.replace(path, {**secret, "data": wanted.encode()})
            logger.info("certificates: the next step was taken")
            return False
        await self._publish(wanted)
        if self._serving.take(wanted.certificate, wanted.key):
            logger.info("certificate taken up")
        return True

    async def _publish(self, material: Material) -> None:
        """Have API servers trust what is to be trusted."""
        path = webhook_path(self._place.name)
        configuration = await self._cluster.get(path)
        bundle = base64.b64encode(material.trusted).decode()
        webhooks = objects(configuration, "webhooks", "webhook configuration")
        if all(mapping(each, "clientConfig", "webhook").get("caBundle") == bundle for each in webhooks):
            return
        told = [_trusting(webhook, bundle) for webhook in webhooks]
        await self._cluster.replace(path, {**configuration, "webhooks": told})
        logger.info("the webhook configuration trusts %d authorities", len(material.authorities))


def _material_in(secret: Body) -> Material | None:
    try:
        return Material.decode(mapping(secret, "data", "secret"))
    except BadMaterial as error:
        logger.warning("the Secret holds no certificates of ours and is filled anew: %s", error)
        return None


def _trusting(webhook: Body, bundle: str) -> Body:
    return {**webhook, "clientConfig": {**mapping(webhook, "clientConfig", "webhook"), "caBundle": bundle}}
