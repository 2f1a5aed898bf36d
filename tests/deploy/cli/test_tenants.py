"""``understudy tenants``, and what an apply is told that does not fit into its tenant's quota; on a real etcd."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer
from understudy.deploy.common.operator import this_operator
from understudy.deploy.data.apply import apply_spec
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec import PoolSpec, SpecError


class Shell:
    """Runs commands about one tenant, whose pools have names that begin with its own."""

    def __init__(self, shell: Commands, etcd: EtcdServer, tenant: str) -> None:
        self.shell, self.etcd, self.tenant = shell, etcd, tenant

    async def run(self, *arguments: str) -> tuple[int, str]:
        return await self.shell.run(*arguments, "--etcd", self.etcd.endpoint)

    async def set(self, *arguments: str) -> tuple[int, str]:
        return await self.run("tenants", "set", self.tenant, "--own", f"{self.tenant}.*", *arguments)

    async def apply(self, pool: str, text: str = "slots: 16", *arguments: str) -> tuple[int, str]:
        file = self.shell.home / "pool.yaml"
        file.write_text(f"pool: {self.tenant}.{pool}\ntenant: {self.tenant}\n{text}\n")
        return await self.run("apply", "-f", str(file), *arguments)

    async def row(self) -> dict:
        code, output = await self.run("tenants", "-o", "json")
        assert code == 0, output
        return next(row for row in json.loads(output)["tenants"] if row["tenant"] == self.tenant)


@pytest_asyncio.fixture
async def shell(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[Shell]:
    async with commands(tmp_path) as running:
        yield Shell(running, etcd, pool_name)


async def test_a_tenants_pools_stay_within_its_quota_and_every_act_is_in_its_log(shell: Shell) -> None:
    assert await shell.set("--pools", "2", "--slots", "40") == (0, f"tenant {shell.tenant}: created\n")
    assert (await shell.apply("cart"))[0] == 0
    code, told = await shell.apply("desk", "slots: 32")
    assert (code, "slots: 32 is too much" in told, "so 24 are left" in told) == (2, True, True)
    assert (await shell.apply("desk", "slots: 32", "--dry-run"))[0] == 2
    assert (await shell.apply("desk"))[0] == 0
    code, told = await shell.apply("mail", "slots: 1")
    assert (code, "may have 2 pools" in told) == (2, True)
    assert (await shell.apply("cart", "slots: 16\nsession_ttl: 60"))[0] == 0

    row = await shell.row()
    assert (row["pools"], row["used"]["slots"], row["quotas"]["slots"]) == (
        [f"{shell.tenant}.cart", f"{shell.tenant}.desk"],
        32,
        40,
    )
    code, told = await shell.set("--pools", "1")
    assert (code, "has 2 pools, and may have 1" in told, "--force" in told) == (2, True, True)
    assert (await shell.set("--pools", "1", "--force", "--reason", "contract ended"))[0] == 0
    assert (await shell.apply("cart", "slots: 16\nsession_ttl: 90"))[0] == 0, "what a pool has it keeps"
    assert (await shell.run("pools", "delete", f"{shell.tenant}.desk", "--yes"))[0] == 0
    assert (await shell.run("tenants", "delete", shell.tenant))[0] == 0
    assert (await shell.run("tenants", "delete", shell.tenant))[0] == 1
    assert (await shell.apply("mail", "slots: 1"))[0] == 0

    code, output = await shell.run("audit", "--tenant", shell.tenant, "-o", "json")
    assert code == 0
    records = json.loads(output)["records"]
    assert [(record["what"], record["why"]) for record in records] == [
        ("tenants set", ""),
        ("tenants set", "contract ended"),
        ("tenants delete", ""),
    ]
    assert "pools: 2 -> 1" in records[1]["detail"]
    assert records[1]["undo"] == f"understudy tenants set {shell.tenant} --pools 2 --slots 40 --own '{shell.tenant}.*'"
    assert (await shell.run("audit", "--tenant", shell.tenant, "--verify"))[0] == 0


async def test_names_belong_to_one_tenant(shell: Shell, client: EtcdClient) -> None:
    assert (await shell.set())[0] == 0
    code, told = await shell.run("tenants", "set", "another", "--own", f"{shell.tenant}.cart")
    assert (code, f"tenant {shell.tenant} has {shell.tenant}.* already" in told) == (2, True)
    actor = this_operator("apply", EtcdSettings((shell.etcd.endpoint,)))
    with pytest.raises(SpecError, match=f"belong to tenant {shell.tenant}; the spec says no tenant"):
        await apply_spec(client, PoolSpec(pool=f"{shell.tenant}.cart"), actor)
    with pytest.raises(SpecError, match="is none of them"):
        await apply_spec(client, PoolSpec(pool="cart", tenant=shell.tenant), actor)


async def test_of_specs_that_are_applied_at_once_only_those_that_fit_are_written(
    shell: Shell, client: EtcdClient
) -> None:
    assert (await shell.set("--slots", "48"))[0] == 0
    actor = this_operator("apply", EtcdSettings((shell.etcd.endpoint,)))
    specs = [PoolSpec(pool=f"{shell.tenant}.{n}", tenant=shell.tenant, slots=16) for n in range(5)]
    done = await asyncio.gather(*(apply_spec(client, one, actor) for one in specs), return_exceptions=True)
    assert sorted(str(one) for one in done if not isinstance(one, Exception)) == ["created"] * 3
    assert (await shell.row())["used"]["slots"] == 48
