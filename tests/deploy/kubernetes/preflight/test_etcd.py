"""A preflight of a real etcd, and what is made of each answer that it can give."""

import json
from dataclasses import replace

import pytest
from msgspec import structs

from tests.harness.commands import commands
from tests.harness.etcd import running_etcd
from tests.harness.waiting import free_port
from understudy.deploy.kubernetes.preflight.etcd import YOUNG, EtcdFacts, EtcdReport, judge_etcd
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.keys import PoolKeys


async def preflight(running, *arguments):
    code, told = await running.run("verify", "--preflight", "--no-cluster", "-o", "json", *arguments)
    view = json.loads(told)
    return code, {(one["level"], one["what"]): one["detail"] for one in view["findings"] if one["area"] == "etcd"}


async def test_the_embedded_etcd_is_told_to_be_for_development(tmp_path, etcd_server, pool_name):
    """One of its own: where other tests have written, revisions may be too many for a young one."""
    async with commands(tmp_path) as running:
        code, found = await preflight(running, "--etcd", etcd_server.endpoint, "--pool", pool_name)

    assert code == 1
    assert "etcd 3.5.1" in found["fail", "the version is safe"]
    assert [what for level, what in found if level == "fail"] == ["the version is safe"]
    assert found["ok", "the quota is large enough"].endswith("of 2048 MiB are used")
    assert "no flag is set" in found["warn", "history is compacted"]
    assert ("ok", "the pool's keys can be written") in found
    async with etcd_server.client() as client:
        left = await client.range(PoolKeys(pool_name).everything)
    assert left.kvs == (), "the probe key is gone"


async def test_compaction_is_read_from_the_flags(tmp_path):
    flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=5m"]
    async with running_etcd(arguments=flags) as server, commands(tmp_path) as running:
        _, found = await preflight(running, "--etcd", server.endpoint)

    assert found["ok", "history is compacted"].endswith("by its flags")
    assert found["skipped", "the pool's keys can be written"] == "no pool is named"


async def test_an_etcd_that_is_not_there_is_told(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    async with commands(tmp_path) as running:
        code, found = await preflight(running, "--etcd", address, "--pool", "cart")

    assert code == 1
    assert address in found["fail", "every endpoint answers"]
    assert len(found) == 1


GOOD = EtcdFacts(
    EndpointStatus("a:2379", "3.5.21", leader=True, db_size=1 << 20, errors=()),
    quota=2 << 30,
    compacted=900,
    revision=1000,
    flags=("etcd",),
)


def two_more(facts):
    return (
        facts,
        *(replace(facts, status=structs.replace(facts.status, endpoint=f"{name}:2379", leader=False)) for name in "bc"),
    )


def levels(*facts, refusal=""):
    found = judge_etcd(EtcdReport(facts, refusal))
    return {one.what: one.level for one in found if one.level is not Level.OK}


def test_a_good_one_has_nothing_against_it():
    assert levels(*two_more(GOOD)) == {}


@pytest.mark.parametrize(
    ("facts", "what", "level"),
    [
        (replace(GOOD, status=structs.replace(GOOD.status, version="3.5.2")), "the version is safe", Level.FAIL),
        (replace(GOOD, status=structs.replace(GOOD.status, version="3.3.27")), "the version is safe", Level.FAIL),
        (
            replace(GOOD, status=structs.replace(GOOD.status, errors=("alarm:NOSPACE",))),
            "there is no alarm",
            Level.FAIL,
        ),
        (replace(GOOD, compacted=-1, revision=YOUNG), "history is compacted", Level.FAIL),
        (replace(GOOD, compacted=-1), "history is compacted", Level.WARN),
        (replace(GOOD, compacted=None), "history is compacted", Level.WARN),
        (
            replace(GOOD, compacted=-1, revision=YOUNG, flags=("etcd", "--auto-compaction-retention=0")),
            "history is compacted",
            Level.FAIL,
        ),
        (replace(GOOD, quota=None), "the quota is large enough", Level.WARN),
        (replace(GOOD, quota=1 << 20), "the quota is large enough", Level.WARN),
        (
            replace(GOOD, status=structs.replace(GOOD.status, db_size=2 << 30)),
            "the quota is large enough",
            Level.FAIL,
        ),
    ],
)
def test_each_answer_that_is_not_good_is_told(facts, what, level):
    assert levels(facts, *two_more(GOOD)[1:]) == {what: level}


def test_flags_count_in_both_spellings():
    for flags in (("--auto-compaction-retention", "5m"), ("-auto-compaction-retention=1000",)):
        assert levels(*two_more(replace(GOOD, compacted=-1, revision=YOUNG, flags=("etcd", *flags)))) == {}


def test_one_or_two_members_and_two_clusters_are_told():
    assert levels(GOOD) == {"it survives the loss of a member": Level.WARN}
    assert levels(*two_more(GOOD)[:2]) == {"it survives the loss of a member": Level.WARN}
    other = replace(GOOD, status=structs.replace(GOOD.status, endpoint="z:2379"))
    assert levels(*two_more(GOOD)[:2], other) == {"all endpoints belong to one cluster": Level.FAIL}


def test_an_account_without_rights_is_told():
    assert levels(*two_more(GOOD), refusal="permission denied") == {"the pool's keys can be written": Level.FAIL}
