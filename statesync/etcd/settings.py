"""How to reach etcd: the settings that every process of a pool takes."""

import asyncio
import logging
import time
from dataclasses import dataclass

from understudy.statesync.etcd.client import EtcdClient, EtcdError, Rejected, TlsFiles
from understudy.statesync.pool.keys import PoolKeys

logger = logging.getLogger(__name__)

START_PATIENCE = 10.0


class EtcdMissing(Exception):
    """No etcd answered while a process started, or none let it in; the text says where it looked and what to do."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """``endpoints`` are ``host:port``; ``tls`` and the account are optional."""

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    tls: TlsFiles | None = None
    username: str | None = None
    password: str | None = None

    def client(self) -> EtcdClient:
        """A new client; close it."""
        return EtcdClient(self.endpoints, tls=self.tls, username=self.username, password=self.password)


async def await_etcd(
    client: EtcdClient, settings: EtcdSettings, pool: str, *, patience: float = START_PATIENCE
) -> None:
    """Return once etcd answers a linearizable read of ``pool``.

    Raises:
        EtcdMissing: it was silent for ``patience`` seconds, or does not let this account read the pool.
    """
    give_up = time.monotonic() + patience
    keys = PoolKeys(pool)
    while True:
        try:
            await client.get(keys.spec)
        except Rejected as error:
            raise EtcdMissing(
                f"etcd at {', '.join(settings.endpoints)} refuses access to pool {pool} to "
                f"{f'user {settings.username}' if settings.username else 'a client without a user'} ({error.detail}); "
                f"grant its role readwrite on the prefix {keys.prefix}, or use another account (--etcd-user, "
                "UNDERSTUDY_ETCD_PASSWORD)"
            ) from None
        except EtcdError as error:
            if time.monotonic() > give_up:
                raise EtcdMissing(
                    f"etcd does not answer at {', '.join(settings.endpoints)} ({error}); "
                    "start it, or name another one with --etcd or UNDERSTUDY_ETCD"
                ) from None
            await asyncio.sleep(0.2)
        else:
            return
