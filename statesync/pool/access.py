"""Waits at the start of a process until etcd answers for its pool."""

import asyncio
import time

from understudy.statesync.etcd.client import EtcdClient, EtcdError, Rejected
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import ROOT, PoolKeys

START_TIMEOUT = 10.0
POLL_INTERVAL = 0.2


class EtcdMissing(Exception):
    """etcd did not answer, or denied access, while a process started; the text says where and what to do."""


async def await_etcd(client: EtcdClient, settings: EtcdSettings, pool: str, *, timeout: float = START_TIMEOUT) -> None:
    """Return once etcd answers a linearizable read of ``pool``; '' means all pools.

    Raises:
        EtcdMissing: etcd did not answer within ``timeout`` seconds, or does not let this user read the pool.
    """
    give_up = time.monotonic() + timeout
    keys = PoolKeys(pool)
    prefix, asked = (keys.prefix, KeyRange(keys.spec, f"{keys.spec}\0")) if pool else (ROOT, prefix_range(ROOT))
    while True:
        try:
            await client.range(asked, limit=1, keys_only=True)
        except Rejected as error:
            what = f"pool {pool}" if pool else "all pools"
            raise EtcdMissing(
                f"etcd at {', '.join(settings.endpoints)} refuses access to {what} to "
                f"{f'user {settings.username}' if settings.username else 'a client without a user'} ({error.detail}); "
                f"grant its role readwrite on the prefix {prefix}, or use another user (--etcd-user, "
                "UNDERSTUDY_ETCD_PASSWORD)"
            ) from None
        except EtcdError as error:
            if time.monotonic() > give_up:
                raise EtcdMissing(
                    f"etcd does not answer at {', '.join(settings.endpoints)} ({error}); "
                    "start it, or name another one with --etcd or UNDERSTUDY_ETCD"
                ) from None
            await asyncio.sleep(POLL_INTERVAL)
        else:
            return
