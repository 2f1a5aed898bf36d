"""``understudy access etcd``: its lines, run on a real etcd, keep two tenants apart."""

import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.harness.commands import commands
from tests.harness.etcd import EtcdServer, etcd_binary, running_etcd
from understudy.deploy.common.operator import this_operator
from understudy.deploy.data.apply import apply_spec
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, Rejected
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.tenants.keys import TenantKeys

CART, DESK = PoolKeys("acme-cart"), PoolKeys("beta-desk")
RIGHTS = ("reader", "operator", "admin")


async def denied(call: Awaitable[object]) -> None:
    with pytest.raises(Rejected, match="permission denied"):
        await call


async def test_a_right_of_one_tenant_reads_and_writes_what_it_includes_and_nothing_of_another(tmp_path: Path) -> None:
    arguments = ["--bcrypt-cost=4", "--auth-token=simple"]
    async with running_etcd(arguments=arguments) as server, EtcdClient(server.endpoints) as root:
        actor = this_operator("apply", EtcdSettings((server.endpoint,)))
        async with commands(tmp_path) as shell:

            async def ok(*words: str) -> str:
                code, output = await shell.run(*words, "--etcd", server.endpoint)
                assert code == 0, output
                return output

            for tenant, pool in (("acme", CART), ("beta", DESK)):
                await ok("tenants", "set", tenant, "--own", f"{tenant}-*", "--slots", "32")
                await apply_spec(root, PoolSpec(pool=pool.pool, tenant=tenant, slots=16), actor)
                await root.put(pool.session(0, "k"), b"x")
            lines = [await ok("access", "etcd", "acme", "--right", right, "--user", right) for right in RIGHTS]
        with_etcdctl(server, tmp_path, "".join(lines))

        async def of(right: str, check: Callable[[EtcdClient], Awaitable[None]]) -> None:
            settings = EtcdSettings((server.endpoint,), username=right, password=right)
            async with settings.client() as client:
                for call in (client.get(DESK.spec), client.put(DESK.intent("m"), b"x"), read_pool(client, DESK.pool)):
                    await denied(call)
                await denied(client.get(TenantKeys("beta").record))
                await denied(client.put(TenantKeys("acme").record, b"x"))
                state, _ = await read_pool(client, CART.pool)
                assert state.spec is not None
                await check(client)

        await of("reader", reader)
        await of("operator", operator)
        await of("admin", lambda client: admin(client, server))


async def drain(client: EtcdClient) -> None:
    actor = this_operator("drain", EtcdSettings(()))
    await OperatorLog(client, CART, actor).put(Act("drain cart-1"), CART.intent("cart-1"), b"{}")


async def reader(client: EtcdClient) -> None:
    await denied(client.get(CART.session(0, "k")))
    await denied(drain(client))


async def operator(client: EtcdClient) -> None:
    await denied(client.get(CART.session(0, "k")))
    await drain(client)
    await denied(client.put(CART.spec, b"x"))


async def admin(client: EtcdClient, server: EtcdServer) -> None:
    assert await client.get(CART.session(0, "k")) is not None
    actor = this_operator("apply", EtcdSettings((server.endpoint,), username="admin"))
    new = PoolSpec(pool="acme-mail", tenant="acme", slots=17)
    with pytest.raises(SpecError, match="slots: 17 is too much"):
        await apply_spec(client, new, actor)
    assert await apply_spec(client, new.model_copy(update={"slots": 16}), actor) == "created"


def with_etcdctl(server: EtcdServer, home: Path, lines: str) -> None:
    """Make the users, run the lines, and switch authentication on."""
    users = [f"etcdctl user add {name}:{name}" for name in (*RIGHTS, "root")]
    script = "\n".join([*users, lines, "etcdctl user grant-role root root", "etcdctl auth enable"])
    environment = {
        **os.environ,
        "PATH": f"{etcd_binary('etcdctl').parent}:{os.environ['PATH']}",
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": server.endpoint,
    }
    done = subprocess.run(
        ["sh", "-euc", script], cwd=home, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
