"""``--pool all``: a reading command for every pool in etcd, one section for each, and the worst exit code."""

import json

import yaml

from tests.harness.etcd import running_etcd
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec


async def test_every_pool_has_a_section_and_the_worst_exit_code_counts(understudy):
    async with running_etcd() as etcd, EtcdClient(etcd.endpoints) as client:
        place = ("--pool", "all", "--etcd", etcd.endpoint)
        nothing = understudy("failovers", *place)
        assert (nothing.exit_code, "no pool in etcd" in nothing.stderr) == (2, True)
        for pool in ("cart", "desk"):
            await client.put(PoolKeys(pool).spec, PoolSpec(pool=pool, slots=4).encode())
        await client.put(PoolKeys("mail").spec, b"{no spec")

        told = json.loads(understudy("failovers", *place, "-o", "json").stdout)["pools"]
        assert [(one["pool"], one["exit_code"], one.get("failovers")) for one in told] == [
            ("cart", 0, []),
            ("desk", 0, []),
            ("mail", 2, None),
        ]
        assert "cannot be read" in told[2]["error"]
        assert yaml.safe_load(understudy("failovers", *place, "-o", "yaml").stdout) == {"pools": told}
        shown = understudy("failovers", *place)
        assert (shown.exit_code, [line for line in shown.stdout.splitlines() if line.endswith(":")]) == (
            2,
            ["pool cart:", "pool desk:", "pool mail:"],
        )
        assert "understudy: pool mail: the spec of pool 'mail'" in shown.stderr

        status = understudy("status", *place, "-o", "json")
        assert (status.exit_code, [one["exit_code"] for one in json.loads(status.stdout)["pools"]]) == (1, [1, 1, 1])
        await client.delete(PoolKeys("mail").spec)
        names = understudy("table", *place, "-o", "name")
        assert (names.exit_code, names.stdout.split()) == (
            0,
            [f"{pool}/{slot}" for pool in ("cart", "desk") for slot in range(4)],
        )
        for command in (("audit",), ("slots", "waiting"), ("site", "status"), ("slo",), ("sessions",)):
            told = json.loads(understudy(*command, *place, "-o", "json").stdout)["pools"]
            assert [one["pool"] for one in told] == ["cart", "desk"]
        for wrong in (("sessions", "--slot", "0"), ("audit", "-f"), ("slo", "--html", "x.html")):
            refused = understudy(*wrong, *place)
            assert (refused.exit_code, "is for one pool" in refused.stderr) == (2, True)
