"""Commands leave records in the audit log, in the transaction of what they do; ``audit`` lists and checks them."""

import asyncio
import getpass
import json
import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.harness.certificates import Authority
from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer, etcd_binary
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.audit.actor import account_of, certificate_name
from understudy.statesync.audit.chain import Mark
from understudy.statesync.audit.entry import Act, Actor, Chain, unseal
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, ModRevision, Put
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member
from understudy.statesync.tls.pem_files import PemFiles


class Shell:
    """Runs commands for one pool."""

    def __init__(self, shell: Commands, etcd: EtcdServer, pool: str, client: EtcdClient) -> None:
        self.shell, self.etcd, self.client = shell, etcd, client
        self.keys = PoolKeys(pool)
        self.place = ("--pool", pool, "--etcd", etcd.endpoint)
        self.file = shell.home / "pool.yaml"

    async def apply(self, text: str, *arguments: str) -> None:
        self.file.write_text(f"pool: {self.keys.pool}\n{text}\n")
        await self.ok("apply", "-f", str(self.file), "--etcd", self.etcd.endpoint, *arguments)

    async def ok(self, *arguments: str) -> str:
        code, output = await self.shell.run(*arguments)
        assert code == 0, output
        return output

    async def rows(self, *arguments: str) -> list[dict[str, Any]]:
        return json.loads(await self.ok("audit", *self.place, "-o", "json", *arguments))["records"]

    async def verify(self) -> tuple[int, list[str]]:
        """The exit code and the faults of the operators' chain."""
        code, output = await self.shell.run("audit", "--verify", "-o", "json", *self.place)
        view = json.loads(output)
        assert view["whole"] is (code == 0)
        return code, view["chains"][0]["faults"]

    async def revision(self, key: str) -> int:
        kv = await self.client.get(key)
        return kv.mod_revision if kv else 0


@pytest_asyncio.fixture
async def operator(etcd: EtcdServer, client: EtcdClient, pool_name: str, tmp_path: Path) -> AsyncIterator[Shell]:
    async with commands(tmp_path) as shell:
        yield Shell(shell, etcd, pool_name, client)


@pytest_asyncio.fixture
async def pool(operator: Shell) -> Shell:
    """A pool with two members on two sites, which are only records, and no control server."""
    await operator.apply("slots: 4")
    for name, site in (("cart-1", "east"), ("cart-2", "west")):
        record = Member(name, "one", "127.0.0.1:1", "127.0.0.1:2", "UP", site=site)
        await operator.client.put(operator.keys.member(name), record.encode())
    return operator


async def test_every_command_says_who_what_from_where_why_and_how_to_undo_it(pool: Shell) -> None:
    spec = await pool.revision(pool.keys.spec)
    await pool.ok("drain", "cart-1", "--wait", "0", "--for", "1d", "--reason", "its disk", *pool.place)
    drained = await pool.revision(pool.keys.intent("cart-1"))
    await pool.ok("undrain", "cart-1", *pool.place)
    await pool.ok("site", "offline", "west", "--wait", "0", *pool.place)
    await pool.ok("site", "online", "west", "--reason", "done", *pool.place)
    await pool.apply("slots: 4\nsession_ttl: 60", "--reason", "shorter")
    rows = await pool.rows()
    name = pool.keys.pool
    assert [(row["what"], row["why"]) for row in rows] == [
        ("apply", ""),
        ("drain cart-1", "its disk"),
        ("undrain cart-1", ""),
        ("site offline west", ""),
        ("site online west", "done"),
        ("apply", "shorter"),
    ]
    assert [row["undo"] for row in rows[:-1]] == [
        f"understudy pools delete {name}",
        f"understudy undrain cart-1 --pool {name}",
        f"understudy drain cart-1 --pool {name}",
        f"understudy site online west --pool {name}",
        f"understudy site offline west --pool {name}",
    ]
    assert re.fullmatch(r"until 20\d\d-.*Z", rows[1]["detail"])
    assert rows[-1]["detail"] == "session_ttl: 3600 -> 60"
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["before"] for row in rows] == [0, 0, drained, 0, rows[3]["revision"], spec]
    assert [rows[0]["revision"], rows[1]["revision"]] == [spec, drained]
    assert {(row["host"], row["account"], row["fault"]) for row in rows} == {(socket.gethostname(), "", "")}
    assert all(row["who"].startswith(getpass.getuser()) for row in rows)
    assert [row["process"].partition(",")[0] for row in rows] == [
        *("apply", "drain", "undrain", "site offline", "site online", "apply")
    ]
    assert await pool.verify() == (0, [])


async def test_a_dependency_of_a_site_goes_down_and_up_and_saying_it_twice_changes_nothing(pool: Shell) -> None:
    await pool.apply("slots: 4\nsites: {east: {weight: 100, needs: [database]}, west: {weight: 0}}")
    for state in ("down", "down", "up", "up", "down"):
        await pool.ok("site", "dependency", "east", "database", state, "--reason", "a probe", *pool.place)
    name = pool.keys.pool
    assert [(row["what"], row["undo"]) for row in await pool.rows()][2:] == [
        ("site dependency east database down", f"understudy site dependency east database up --pool {name}"),
        ("site dependency east database up", f"understudy site dependency east database down --pool {name}"),
        ("site dependency east database down", f"understudy site dependency east database up --pool {name}"),
    ]
    state, _ = await read_pool(pool.client, name)
    assert state.lacking() == {"east": {"database"}}
    assert state.offline(time.time()) == frozenset()
    assert state.dependencies["east", "database"].record.why == "a probe"
    code, said = await pool.shell.run("site", "dependency", "east", "datbase", "down", *pool.place)
    assert code == 1
    assert "needs no 'datbase' by the spec, but database: add it to needs of sites.east" in said


async def test_the_command_of_an_apply_brings_the_former_spec_back(pool: Shell, tmp_path: Path) -> None:
    before = await pool.client.get(pool.keys.spec)
    await pool.apply("slots: 4\nsession_ttl: 60")
    undo = (await pool.rows())[-1]["undo"]
    read, _, applied = undo.partition(" | ")
    former = await asyncio.to_thread(
        subprocess.check_output,
        [etcd_binary("etcdctl"), f"--endpoints={pool.etcd.endpoint}", *shlex.split(read)[1:]],
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    assert applied == "understudy apply -f /dev/stdin"
    (tmp_path / "former.yaml").write_bytes(former)
    await pool.ok("apply", "-f", str(tmp_path / "former.yaml"), "--etcd", pool.etcd.endpoint)
    after = await pool.client.get(pool.keys.spec)
    assert before is not None
    assert after is not None
    assert after.value == before.value


async def test_what_is_refused_or_changes_nothing_leaves_no_record(pool: Shell) -> None:
    await pool.apply("slots: 4")
    for refused in (
        ("undrain", "cart-1", *pool.place),
        ("drain", "cart-9", *pool.place),
        ("site", "online", "west", *pool.place),
        ("drain", "cart-1", "--wait", "0", "--reason", "x" * 501, *pool.place),
    ):
        code, _ = await pool.shell.run(*refused)
        assert code
    assert [row["what"] for row in await pool.rows()] == ["apply"]


async def test_the_list_is_for_people_too_and_can_be_cut(pool: Shell) -> None:
    await pool.ok("drain", "cart-1", "--wait", "0", "--reason", "a\nb", *pool.place)
    await pool.client.put(pool.keys.audit_record(Chain.OPERATORS, 1), b"{}")
    lines = (await pool.ok("audit", *pool.place)).splitlines()
    assert lines[0].split() == ["time", "revision", "who", "from", "what", "why", "undo"]
    assert len(lines) == 3
    assert any("drain cart-1" in line and r"a\nb" in line for line in lines)
    assert any("operators 1: it is not an audit record" in line for line in lines)
    assert [row["what"] for row in await pool.rows("-n", "1")] == ["drain cart-1"]
    assert [row["what"] for row in await pool.rows("--since", "1h")] == ["", "drain cart-1"]
    assert [row["what"] for row in await pool.rows("-n", "2", "--since", "1h")] == ["", "drain cart-1"]


async def test_a_follower_sees_each_record_as_it_is_written(pool: Shell) -> None:
    await pool.shell.start("follower", "audit", "--follow", "-n", "1", "-o", "json", *pool.place)

    def seen() -> list[str]:
        return [json.loads(line)["what"] for line in pool.shell.log("follower").splitlines()]

    await until(lambda: seen() == ["apply"], 30, "the newest record is shown")
    await pool.ok("drain", "cart-1", "--wait", "0", *pool.place)
    await pool.ok("undrain", "cart-1", *pool.place)
    await until(lambda: seen() == ["apply", "drain cart-1", "undrain cart-1"], 30, "the new records are shown")


async def test_a_pool_that_is_not_there_is_an_error_and_so_are_options_that_contradict(operator: Shell) -> None:
    for arguments in ((), ("--verify",)):
        code, output = await operator.shell.run("audit", *arguments, *operator.place)
        assert code == 2
        assert "pool" in output
    for arguments in (("--verify", "--follow"), ("--verify", "-n", "3"), ("--follow", "-o", "yaml")):
        code, _ = await operator.shell.run("audit", *arguments, *operator.place)
        assert code == 2


async def test_commands_at_the_same_time_make_one_chain(pool: Shell) -> None:
    actor = Actor("anna", "here", "test, pid 1")
    key = pool.keys.probe("together")

    async def act(number: int) -> None:
        log = OperatorLog(pool.client, pool.keys, actor)
        result = await log.txn(Act(f"act {number}"), [], [Put(f"{key}-{number}", b"done")], 0)
        assert result.succeeded

    await asyncio.gather(
        *(act(number) for number in range(12)),
        pool.ok("drain", "cart-2", "--wait", "0", *pool.place),
        pool.ok("site", "offline", "west", "--force", "--reason", "a test", "--wait", "0", *pool.place),
    )
    rows = await pool.rows()
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["what"] for row in rows} == {
        "apply",
        "drain cart-2",
        "site offline west",
        *(f"act {number}" for number in range(12)),
    }
    assert await pool.verify() == (0, [])


async def test_an_act_whose_own_compare_fails_leaves_no_record(pool: Shell) -> None:
    log = OperatorLog(pool.client, pool.keys, Actor("anna", "here", "test, pid 1"))
    key = pool.keys.probe("mine")
    result = await log.txn(Act("too late"), [ModRevision(key, 1)], [Put(key, b"")], 1)
    assert not result.succeeded
    assert await pool.client.get(key) is None
    assert [row["what"] for row in await pool.rows()] == ["apply"]


async def test_a_deleted_and_an_altered_record_are_found(pool: Shell) -> None:
    for command in ("drain", "undrain", "drain", "undrain"):
        await pool.ok(command, "cart-1", *(("--wait", "0") if command == "drain" else ()), *pool.place)
    third, fourth = (pool.keys.audit_record(Chain.OPERATORS, number) for number in (3, 4))
    kv = await pool.client.get(third)
    assert kv is not None

    await pool.client.put(third, kv.value.replace(b"undrain", b"restart"))
    assert await pool.verify() == (1, ["record 3 was altered: its digest is not that of its content"])
    await pool.client.put(third, kv.value)
    assert await pool.verify() == (1, ["record 3 was altered: it was written more than once"])
    await pool.client.delete(third)
    assert await pool.verify() == (1, ["record 3 is missing"])
    await pool.client.put(third, kv.value)
    assert await pool.verify() == (1, ["record 3 was altered: it was written after the record that follows it"])
    await pool.client.delete(third)
    await pool.client.delete(fourth)
    assert await pool.verify() == (1, ["records 3 to 4 are missing"])
    code, output = await pool.shell.run("audit", "--verify", *pool.place)
    assert code == 1
    assert "operators: records 3 to 4 are missing\n" in output
    assert "decisions: whole, no records\n" in output


async def test_acts_go_on_when_the_end_mark_is_lost(pool: Shell) -> None:
    await pool.ok("drain", "cart-1", "--wait", "0", *pool.place)
    end = pool.keys.audit_end(Chain.OPERATORS)
    await pool.client.delete(end)
    assert await pool.verify() == (1, ["the end mark is missing"])
    await pool.ok("undrain", "cart-1", *pool.place)
    assert [row["number"] for row in await pool.rows()] == [1, 2, 3]
    assert await pool.verify() == (0, [])
    await pool.client.delete(end)
    last = await pool.client.get(pool.keys.audit_record(Chain.OPERATORS, 3))
    assert last is not None
    anchor = Mark(3, unseal(last.value).digest)
    await pool.client.put(pool.keys.audit_anchor(Chain.OPERATORS), anchor.encode())
    for number in (1, 2, 3):
        await pool.client.delete(pool.keys.audit_record(Chain.OPERATORS, number))
    await pool.ok("drain", "cart-1", "--wait", "0", *pool.place)
    assert [row["number"] for row in await pool.rows()] == [4]
    assert await pool.verify() == (0, [])


async def test_the_log_goes_with_the_pool(pool: Shell) -> None:
    await pool.ok("pools", "delete", pool.keys.pool, "--yes", "--force", "--etcd", pool.etcd.endpoint)
    assert (await pool.client.range(pool.keys.everything)).count == 0


async def test_the_account_is_the_user_at_etcd_or_the_name_of_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shown = authority.member("anna")
    files = PemFiles(shown.cert, shown.key, authority.ca)
    assert account_of(EtcdSettings(username="root", tls=files)) == "root"
    assert account_of(EtcdSettings(tls=files)) == certificate_name(shown.cert) == "anna"
    assert account_of(EtcdSettings(tls=PemFiles(None, None, files.ca))) == ""
    assert account_of(EtcdSettings(tls=PemFiles(tmp_path / "none", None, files.ca))) == ""
    assert account_of(EtcdSettings()) == ""
