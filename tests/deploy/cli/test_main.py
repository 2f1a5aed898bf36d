"""The command line as users meet it: one clear line for each mistake, exit codes, and answers as tables and JSON."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from rich.console import Console

from tests.harness.forkserver import forked
from tests.harness.recorded import answering
from tests.harness.waiting import free_port
from understudy.deploy.cli import commands_read
from understudy.deploy.cli.commands_site import result_line
from understudy.deploy.cli.main import COMMANDS, SECTIONS, cli
from understudy.deploy.inspect.tables import members_table
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    ControlServer,
    FailoverRecord,
    Intent,
    Lost,
    Member,
    MemberState,
    Owner,
    Revival,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session

ROOT = Path(__file__).parents[3]
FAR_FUTURE_MS = 4_000_000_000_000
TRACE = "ab" * 16


@pytest.fixture
def up(tmp_path):
    """Run ``understudy up`` as a process of its own in an empty directory, to its end."""

    def run(*arguments, **environment):
        return subprocess.run(
            forked([sys.executable, "-m", "understudy.deploy.cli", "up", *arguments], forks=True),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
async def small_pool(client, pool_name):
    """A pool of four slots in etcd: two members, one of them lost, one session and one failover; returns its name."""
    keys = PoolKeys(pool_name)
    spec = PoolSpec(pool=pool_name, slots=4, copies=2)
    living = Member("cart-1", "boot1", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, stall=0.1)
    lost = {"cart-2": Lost("boot2", "connection refused", "", 1000.0)}
    slot = slot_of("tea-for-two", 4)
    session = Session("application/json", b'{"items":{"tea":2}}', FAR_FUTURE_MS, 2)
    await client.put(keys.spec, spec.encode())
    await client.put(keys.member("cart-1"), living.encode())
    await client.put(keys.table, Table(7, (("cart-1", "cart-2"),) * 4, lost).encode())
    await client.put(keys.leader, b"control-1")
    await client.put(keys.control("control-1"), ControlServer("control-1", "127.0.0.1:9", "127.0.0.1:9").encode())
    for number in range(4):
        await client.put(keys.owner(number), Owner("cart-1", "boot1", 2, cause="cart-2 lost").encode())
    await client.put(keys.session(slot, "tea-for-two"), session.encode())
    await client.put(keys.session(slot, "gone"), Session("", b"", FAR_FUTURE_MS, 2, deleted=True).encode())
    failover = FailoverRecord(TRACE, "cart-1", "cart-2", "cart-2 lost", False, (1, 3), (2, 2), 1000.0)
    await client.put(keys.failover(TRACE, "cart-1", "cart-2"), failover.encode())
    return pool_name


def test_every_command_explains_itself_with_examples(understudy):
    for name in COMMANDS:
        shown = understudy(name, "--help")
        assert shown.exit_code == 0
        assert f"understudy {name}" in shown.output.split("Examples:")[1]
        assert "\\b" not in shown.output


def test_every_command_within_a_command_explains_itself_with_examples(understudy):
    groups = {name: commands for name in COMMANDS if (commands := within(understudy(name, "--help").output))}
    assert groups.keys() == {"access", "checks", "home", "pools", "rebalance", "render", "site", "slots", "tenants"}
    for group, commands in groups.items():
        for name in commands:
            assert f"understudy {group} {name}" in understudy(group, name, "--help").output.split("Examples:")[1]


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its name, also those within commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))


def test_every_option_says_what_it_does_and_its_default():
    faults = []
    for name, command in commands_of(cli):
        for option in command.params:
            if not isinstance(option, click.Option) or option.hidden:
                continue
            text = option.help or ""
            if not text.endswith("."):
                faults.append(f"{name} {option.opts[0]}: its help is no sentence: {text!r}")
            shown = option.show_default or option.is_flag or option.required or "Default" in text
            if not (shown or "Required" in text):
                faults.append(f"{name} {option.opts[0]}: its help does not name the default: {text!r}")
    assert faults == []


def within(shown: str) -> list[str]:
    """The commands that a group's help lists."""
    listed = shown.partition("\nCommands:\n")[2].partition("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


def test_help_lists_all_commands_by_what_they_are_for_and_fits_a_terminal(understudy):
    lines = understudy("--help").output.splitlines()
    assert [line[:-1] for line in lines if line[:-1] in SECTIONS] == list(SECTIONS)
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in COMMANDS] == list(COMMANDS)
    assert max(map(len, lines)) <= 80


def test_an_unknown_command_is_wrong_use(understudy):
    refused = understudy("stauts")
    assert (refused.exit_code, "No such command 'stauts'. Did you mean 'status'?" in refused.stderr) == (2, True)
    assert understudy("xyzzy").exit_code == 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("pool: cart\nslotz: 16\n", "unknown key 'slotz'; did you mean 'slots'?"),
        ("pool: cart\nlimits: {session_byte: 1}\n", "unknown key 'limits.session_byte'; did you mean 'session_bytes'?"),
        ("pool: cart\nslots: many\n", "slots:"),
        ("pool: Cart!\n", "pool:"),
        ("pool: [cart\n", "not YAML"),
        ("- cart\n", "a pool spec is a mapping"),
    ],
)
async def test_a_wrong_spec_is_refused_by_name_and_changes_nothing(
    understudy, tmp_path, etcd, client, pool_name, spec, told
):
    (tmp_path / "pool.yaml").write_text(spec.replace("cart", pool_name))
    refused = understudy("apply", "-f", "pool.yaml", "--etcd", etcd.endpoint)
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (await client.range(PoolKeys(pool_name).everything)).count == 0


async def test_the_example_spec_can_be_applied(understudy, tmp_path, etcd, pool_name):
    example = (ROOT / "deploy/examples/pool.yaml").read_text()
    (tmp_path / "pool.yaml").write_text(example.replace("pool: cart", f"pool: {pool_name}"))
    assert understudy("apply", "-f", "pool.yaml", "--etcd", etcd.endpoint).exit_code == 0


def test_a_spec_file_that_is_not_there_is_told(understudy):
    refused = understudy("apply", "-f", "nothing.yaml")
    assert (refused.exit_code, "nothing.yaml: cannot be read" in refused.stderr) == (2, True)


def test_a_missing_etcd_is_told_with_what_to_do(understudy, tmp_path):
    (tmp_path / "pool.yaml").write_text("pool: cart\n")
    nowhere = f"127.0.0.1:{free_port()}"
    for command in (("apply", "-f", "pool.yaml"), ("status", "--pool", "cart"), ("explain", "key", "--pool", "cart")):
        refused = understudy(*command, "--etcd", nowhere)
        assert refused.exit_code == 2
        assert nowhere in refused.stderr
        assert "is etcd running there?" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


async def test_a_spec_that_contradicts_the_running_pool_changes_nothing(understudy, tmp_path, etcd, client, pool_name):
    spec, key = tmp_path / "pool.yaml", PoolKeys(pool_name).spec
    spec.write_text(f"pool: {pool_name}\nslots: 64\n")
    assert understudy("apply", "-f", spec, "--etcd", etcd.endpoint).output == f"pool {pool_name}: created\n"
    assert understudy("apply", "-f", spec, "--etcd", etcd.endpoint).output == f"pool {pool_name}: unchanged\n"
    stands = await client.get(key)
    spec.write_text(f"pool: {pool_name}\nslots: 128\n")
    refused = understudy("apply", "-f", spec, "--etcd", etcd.endpoint)
    assert refused.exit_code == 2
    assert "has 64 slots and the new spec says 128" in refused.stderr
    assert await client.get(key) == stands
    spec.write_text(f"pool: {pool_name}\nslots: 64\nsession_ttl: 60\n")
    assert understudy("apply", "-f", spec, "--etcd", etcd.endpoint).output == f"pool {pool_name}: changed\n"


def test_up_refuses_an_occupied_port_before_it_starts_anything(up, tmp_path, taken):
    refused = up("--listen", taken)
    assert refused.returncode == 2
    assert refused.stderr == f"understudy: {taken} is in use by another process: choose another address with --listen\n"
    assert not (tmp_path / ".understudy").exists()


def test_up_refuses_an_application_that_is_not_there(up):
    refused = up("--app", "no-such-program --fast", "--listen", f"127.0.0.1:{free_port()}")
    assert (refused.returncode, "no-such-program was not found" in refused.stderr) == (2, True)


def test_up_refuses_a_wrong_spec(up, tmp_path):
    (tmp_path / "pool.yaml").write_text("pool: cart\ncopees: 2\n")
    refused = up("-f", "pool.yaml")
    assert (refused.returncode, "did you mean 'copies'?" in refused.stderr) == (2, True)


@pytest.mark.parametrize("variable", ["UNDERSTUDY_ETCD_BINARY", "UNDERSTUDY_ENVOY"])
def test_a_missing_program_is_told(up, variable):
    refused = up("--listen", f"127.0.0.1:{free_port()}", **{variable: "/nowhere/etcd"})
    assert (refused.returncode, "/nowhere/etcd" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sidecar", "--member", "a", "--pool", "cart", "--app", "localhost"),
        ("sidecar", "--member", "a", "--pool", "cart", "--app", "localhost:80", "--peer", "localhost:99999"),
        ("sidecar", "--member", "a", "--pool", "cart", "--app", "localhost:80", "--session-api", "unix:relative"),
        ("control", "--name", "c", "--pool", "cart", "--grpc", "18000"),
        ("envoy", "--node", "e", "--pool", "cart", "--control", "127.0.0.1"),
        ("up", "--listen", "8080"),
    ],
)
def test_a_wrong_address_is_told(understudy, arguments):
    refused = understudy(*arguments)
    assert refused.exit_code == 2
    assert "HOST:PORT" in refused.stderr or "from 1 to 65535" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("control", "--member", "cart-1"), "--member has no effect on 'drill control'"),
        (("kill", "--command", "kubectl delete pod cart-1"), "write {name} in place of the target's name"),
        (("freeze", "--undo", "kill -CONT 7"), "--undo needs --command"),
        (("kill", "--url", "http://shop.example"), "give --load N"),
    ],
)
def test_a_drill_whose_options_contradict_each_other_is_wrong_use(understudy, arguments, told):
    refused = understudy("drill", *arguments, "--pool", "cart", "--etcd", f"127.0.0.1:{free_port()}")
    assert (refused.exit_code, told in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list", "--session-api", "cart-1"), "'cart-1' is not HOST:PORT, http://HOST:PORT or unix:/path"),
        (("remove", "a/b"), "'a/b': the name of a check has 1 to 256 characters of"),
        (("register", "db", "--deadline", "10"), "'10' is not a duration; examples: 90s, 10m"),
        (("report", "db", "fine"), "'ok', 'init', 'problem'"),
    ],
)
def test_a_check_that_cannot_be_is_wrong_use(understudy, arguments, told):
    refused = understudy("checks", *arguments)
    assert (refused.exit_code, told in refused.stderr) == (2, True)


def test_a_name_that_cannot_be_one_is_told(understudy):
    refused = understudy("sidecar", "--member", "Cart 1", "--pool", "cart", "--app", "127.0.0.1:80")
    assert (refused.exit_code, "--member 'Cart 1': a name has" in refused.stderr) == (2, True)


def test_without_a_local_pool_a_reading_command_says_how_to_name_one(understudy):
    refused = understudy("status")
    assert (refused.exit_code, "name another pool with --etcd and --pool" in refused.stderr) == (2, True)


def test_an_unknown_pool_is_told(understudy, etcd, pool_name):
    refused = understudy("table", "--etcd", etcd.endpoint, "--pool", pool_name)
    assert (refused.exit_code, f"there is no pool '{pool_name}'" in refused.stderr) == (2, True)


async def test_status_tells_members_with_their_roles_and_why_one_is_gone(understudy, etcd, small_pool):
    shown = understudy("status", "--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json")
    assert shown.exit_code == 0
    view = json.loads(shown.output)
    one, two = view["members"]
    assert (one["member"], one["state"], one["active"], one["boot"]) == ("cart-1", "UP", 4, "boot1")
    assert (two["member"], two["state"], two["standby"], two["reason"]) == ("cart-2", "LOST", 4, "connection refused")
    assert view["controls"][0]["leader"]
    assert view["slots"]["served"] == 4
    assert view["envoys"]["silent"].keys() == {"control-1"}
    assert any("3.5.1" in warning for warning in view["warnings"])
    drawn = understudy("status", "--etcd", etcd.endpoint, "--pool", small_pool).output
    assert "4 of 4 slots served" in drawn
    assert "connection refused" in drawn
    screen = Console(width=80, file=io.StringIO())
    long = "check deep: http://127.0.0.1:18999/deep answers 404"
    screen.print(members_table([{**one, "late_seconds": 0.25}, {**two, "app": "127.0.0.1:21292", "reason": long}]))
    shown = screen.file.getvalue()
    assert f"\ncart-2: {long}\n" in shown, "a reason is not folded into a column"
    assert "127.0.0.1:21292" in shown
    assert "cart-1: its event loop was late by 0.25 s recently, so it gets more time" in shown
    assert (one["late_seconds"], two["late_seconds"]) == (0.1, 0.0)


async def test_status_is_no_when_slots_belong_to_a_member_that_is_gone(understudy, etcd, client, small_pool):
    await client.delete(PoolKeys(small_pool).member("cart-1"))
    shown = understudy("status", "--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json")
    assert shown.exit_code == 1
    assert json.loads(shown.output)["slots"]["owner_gone"] == 4


async def test_table_shows_orders_with_the_true_owner_first(understudy, etcd, client, small_pool):
    await client.put(PoolKeys(small_pool).owner(2), Owner("cart-2", "boot2", 5).encode())
    read = ("table", "--etcd", etcd.endpoint, "--pool", small_pool)
    rows = json.loads(understudy(*read, "-o", "json").output)["slots"]
    assert [row["order"] for row in rows] == [["cart-1", "cart-2"]] * 2 + [["cart-2", "cart-1"], ["cart-1", "cart-2"]]
    assert (rows[2]["epoch"], rows[2]["wanted"]) == (5, "cart-1")
    assert "0-1, 3" in understudy(*read).output
    assert len(json.loads(understudy(*read, "--slot", 2, "-o", "json").output)["slots"]) == 1
    assert understudy(*read, "--slot", 4).exit_code == 2


async def test_a_site_goes_offline_and_online_by_an_intent_that_tells_its_end(understudy, etcd, client, small_pool):
    keys, place = PoolKeys(small_pool), ("--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json")
    for name, boot, site in (("cart-1", "boot1", "east"), ("cart-3", "boot3", "west")):
        member = Member(name, boot, "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, site=site)
        await client.put(keys.member(name), member.encode())

    gone = understudy("site", "offline", "east", "--for", "10m", "--wait", "0", *place)
    told = json.loads(gone.output)
    intent = Intent.decode((await client.get(keys.site_intent("east"))).value)
    assert (gone.exit_code, told["members"], told["slots_left"], told["until"]) == (0, ["cart-1"], 4, intent.until)
    assert (told["lag_before"], 0 <= told["seconds"] < 60) == ({}, True)
    assert (intent.site, intent.until - intent.since) == ("east", 600)

    refused = understudy("site", "offline", "west", *place)
    assert (refused.exit_code, "west is the last site that can serve" in refused.stderr) == (1, True)
    slow = understudy("site", "offline", "east", "--wait", "0.1", *place)
    assert (slow.exit_code, "site east still owns 4 slots after 0.1 s" in slow.stderr) == (1, True)
    south = Member("cart-5", "cart-5", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, site="south")
    await client.put(keys.member("cart-5"), south.encode())
    second = understudy("site", "offline", "south", *place)
    assert (second.exit_code, "site east is offline already" in second.stderr) == (1, True)
    for contradiction in (("--force",), ("--for", "1h", "--until-i-say")):
        assert understudy("site", "offline", "south", *contradiction, *place).exit_code == 2
    shown = understudy("site", "status", *place)
    assert (shown.exit_code, [row["state"] for row in json.loads(shown.output)["sites"]]) == (
        1,
        ["offline", "standing by", "standing by"],
    )
    for command in ("offline", "online"):
        unknown = understudy("site", command, "north", *place)
        assert (unknown.exit_code, "its sites are east, south, west" in unknown.stderr) == (1, True)
    assert understudy("site", "offline", "north", "--force", "--reason", "it comes later", *place).exit_code == 0
    default = Intent.decode((await client.get(keys.site_intent("north"))).value)
    assert default.until - default.since == 2 * 3600
    endless = ("--until-i-say", "--force", "--reason", "it comes later", *place)
    assert json.loads(understudy("site", "offline", "north", *endless).output)["until"] is None
    assert understudy("site", "online", "north", *place).exit_code == 0
    assert understudy("site", "offline", "a/b", *place).exit_code == 2

    assert json.loads(understudy("site", "online", "east", *place).output)["offline"] is False
    assert await client.get(keys.site_intent("east")) is None
    again = understudy("site", "online", "east", *place)
    assert (again.exit_code, "site east is not offline" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("left", "lag", "end"),
    [
        (
            0,
            {"west": {"ms": 12, "writes": 3}},
            "; it took 3.2 s; behind it in the 10 s before: west at most 12 ms, 3 writes",
        ),
        (4, {}, ", and still owns 4 slots"),
    ],
)
def test_site_offline_says_how_long_it_took_and_the_lag_before(left, lag, end):
    view = {"site": "east", "offline": True, "until": None, "members": ["cart-1"], "slots_left": left}
    line = result_line({**view, "lag_before": lag, "seconds": 3.2})
    assert line == f"site east is offline until 'understudy site online east': cart-1{end}"


async def test_slots_whose_newest_writes_are_gone_are_listed_and_revived_when_the_user_agrees(
    understudy, etcd, client, small_pool
):
    keys, place = PoolKeys(small_pool), ("--etcd", etcd.endpoint, "--pool", small_pool)
    owner = Owner.decode((await client.get(keys.owner(0))).value)
    assert (understudy("slots", "waiting", *place).exit_code, owner.active) == (0, "cart-1")
    refused = understudy("slots", "revive", "0", "--yes", *place)
    assert (refused.exit_code, "slot 0: cart-1 serves it" in refused.stderr) == (1, True)
    await client.delete(keys.member("cart-1"))
    refused = understudy("slots", "revive", "0", "--yes", *place)
    assert (refused.exit_code, "slot 0: etcd has all its acknowledged writes" in refused.stderr) == (1, True)
    none = understudy("slots", "revive", "--all-waiting", *place)
    assert (none.exit_code, f"no slot of pool {small_pool} waits" in none.stderr) == (1, True)

    record = SyncRecord(owner.epoch, (Process("cart-1", owner.boot), Process("cart-9", "gone")), memory=True)
    await client.put(keys.sync_set(0), record.encode())
    listed = understudy("slots", "waiting", *place, "-o", "json")
    assert (listed.exit_code, [row["slot"] for row in json.loads(listed.output)["waiting"]]) == (1, [0])
    assert "cart-1, cart-9" in understudy("slots", "waiting", *place).output
    assert "'understudy slots waiting' says why" in understudy("status", *place).output.replace("\n", " ")

    unserved = understudy("slots", "revive", "0", "--yes", *place)
    assert (unserved.exit_code, "has no member that can serve slots" in unserved.stderr) == (1, True)
    member = Member("cart-3", "c1", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP)
    await client.put(keys.member("cart-3"), member.encode())
    for arguments in ((), ("0", "--all-waiting"), ("x",), ("4",)):
        assert understudy("slots", "revive", *arguments, *place).exit_code == 2
    asked = understudy("slots", "revive", "0-0", *place)
    assert (asked.exit_code, "give --yes" in asked.stderr) == (2, True)
    assert "were in the memory of cart-1 and cart-9" in asked.stderr
    assert await client.get(keys.revival(0)) is None

    now = understudy("slots", "revive", "0", "--yes", "--wait", "0", *place, "-o", "json")
    assert (now.exit_code, json.loads(now.output)["waiting"]) == (0, [0])
    word = Revival.decode((await client.get(keys.revival(0))).value)
    assert (word.epoch, "@" in word.by) == (owner.epoch, True)
    entry = json.loads(understudy("audit", "-n", "1", *place, "-o", "json").output)["records"][0]
    assert (entry["what"], entry["detail"], entry["undo"]) == (
        "slots revive 0",
        "gives up writes in memory of cart-1, cart-9",
        "",
    )
    assert entry["revision"] == (await client.get(keys.revival(0))).mod_revision
    slow = understudy("slots", "revive", "--all-waiting", "--yes", "--wait", "0.1", *place)
    assert (slow.exit_code, "slots 0 are not served after 0.1 s" in slow.stderr) == (1, True)


async def test_without_sites_none_can_be_taken_offline(understudy, etcd, small_pool):
    refused = understudy("site", "offline", "east", "--etcd", etcd.endpoint, "--pool", small_pool)
    assert (refused.exit_code, "its sites are none (--site of sidecars)" in refused.stderr) == (1, True)


async def test_status_and_table_tell_which_sites_are_offline(understudy, etcd, client, small_pool):
    keys, place = PoolKeys(small_pool), ("--etcd", etcd.endpoint, "--pool", small_pool)
    await client.put(keys.table, Table(8, (("cart-1",),) * 4, offline=("east", "north")).encode())
    assert "! site north is offline" in understudy("status", *place).output
    assert "table generation 8, offline: east, north" in understudy("table", *place).output
    assert json.loads(understudy("table", *place, "-o", "json").output)["offline"] == ["east", "north"]


async def test_explain_tells_where_a_session_lives_but_not_its_content(understudy, etcd, small_pool):
    ask = ("explain", "tea-for-two", "--etcd", etcd.endpoint, "--pool", small_pool)
    view = json.loads(understudy(*ask, "-o", "json").output)
    assert (view["slot"], view["owner"], view["epoch"]) == (slot_of("tea-for-two", 4), "cart-1", 2)
    assert (view["session"]["size"], view["session"]["content_type"]) == (19, "application/json")
    assert "body" not in view["session"]
    assert json.loads(understudy(*ask, "--body", "-o", "json").output)["session"]["body"] == {"items": {"tea": 2}}
    assert "tea-for-two" in understudy(*ask).output


async def test_explain_answers_no_for_a_session_that_is_not_there(understudy, etcd, small_pool):
    for key in ("nobody", "gone"):
        shown = understudy("explain", key, "--etcd", etcd.endpoint, "--pool", small_pool)
        assert shown.exit_code == 1
        assert "standby" in shown.output


async def test_explain_takes_cookies_headers_and_keys_of_stores_and_says_what_is_hashed(
    understudy, client, etcd, small_pool
):
    keys, session = PoolKeys(small_pool), Session("", b"1", FAR_FUTURE_MS, 2)
    entries = ({"header": "X-Id"}, {"preset": "express"}, {"preset": "spring"})
    await client.put(keys.spec, PoolSpec(pool=small_pool, slots=4, session_key=entries).encode())
    for key in ("sess:-tea", "spring:session:sessions:java"):
        text = {"sess:-tea": "-tea"}.get(key, "amF2YQ==")
        await client.put(keys.session(slot_of(text, 4), key), session.encode())

    def explained(given: str) -> tuple[str | None, int | None, str, bool]:
        shown = understudy("explain", given, "--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json")
        view = json.loads(shown.output)
        assert shown.exit_code == (0 if view["session"] else 1)
        return view["hashed"], view["slot"], view["key"], view["session"] is not None

    for given in ("sess:-tea", "connect.sid=s%3A-tea.signed", "Cookie: a=b; connect.sid=s%3A-tea.x", "x-id: -tea"):
        expected = "sess:-tea" if given != "x-id: -tea" else given
        assert explained(given) == ("-tea", slot_of("-tea", 4), expected, expected == "sess:-tea"), given
    found = ("amF2YQ==", slot_of("amF2YQ==", 4), "spring:session:sessions:java", True)
    assert explained("SESSION=amF2YQ==") == explained("spring:session:sessions:java") == found
    for odd in ("-tea", "no/key", "-", "a b|c", "connect=1", "", "[red]", "\udcff{", "café"):
        assert explained(odd) == (odd, slot_of(odd, 4), odd, False)
    assert explained("{-tea}:x") == ("-tea", slot_of("-tea", 4), "{-tea}:x", False)
    assert explained("connect.sid=garbage; b=c") == (None, None, "connect.sid=garbage; b=c", False)
    shown = understudy("explain", "a=b; connect.sid=c", "--etcd", etcd.endpoint, "--pool", small_pool).output
    assert "such a request goes to any member" in shown


async def test_sessions_lists_the_living(understudy, etcd, small_pool):
    view = json.loads(understudy("sessions", "--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json").output)
    assert [row["key"] for row in view["sessions"]] == ["tea-for-two"]
    assert view["records"] == 2


async def test_failovers_are_put_together_by_trace(understudy, etcd, client, small_pool):
    more = FailoverRecord(TRACE, "cart-3", "cart-2", "cart-2 lost", False, (0,), (2,), 1000.5)
    await client.put(PoolKeys(small_pool).failover(TRACE, "cart-3", "cart-2"), more.encode())
    read = ("failovers", "--etcd", etcd.endpoint, "--pool", small_pool)
    (row,) = json.loads(understudy(*read, "-o", "json").output)["failovers"]
    assert (row["trace"], row["kind"], row["slots"]) == (TRACE, "takeover", 3)
    assert row["to"] == {"cart-1": 2, "cart-3": 1}
    assert "takeover cart-2 > cart-1 (2), cart-3 (1): cart-2 lost" in understudy(*read).output
    assert row["took_ms"] is None, "no control server answers"


async def test_failovers_tell_how_long_they_took_as_far_as_control_servers_know(understudy, etcd, client, small_pool):
    known = {"trace_id": TRACE, "measured": True, "total_ms": 31.4}
    other = {"trace_id": "c" * 32, "measured": False, "total_ms": None}
    with answering({"/v1/traces": {"traces": [other, known, {"trace_id": "of an older version"}]}}) as (address, asked):
        record = ControlServer("control-2", "127.0.0.1:9", address.removeprefix("http://"))
        await client.put(PoolKeys(small_pool).control("control-2"), record.encode())
        read = ("failovers", "--etcd", etcd.endpoint, "--pool", small_pool, "--limit", "5")
        (row,) = json.loads(understudy(*read, "-o", "json").output)["failovers"]
        assert row["took_ms"] == 31.4
        assert "31 ms" in understudy(*read).output
    assert asked[0] == "/v1/traces?limit=10"


async def test_a_trace_needs_a_control_server_and_a_known_id(understudy, etcd, small_pool):
    read = ("--etcd", etcd.endpoint, "--pool", small_pool)
    unreachable = understudy("trace", TRACE[:6], *read)
    assert (unreachable.exit_code, "no control server could be asked" in unreachable.stderr) == (2, True)
    unknown = understudy("trace", "0123", *read)
    assert (unknown.exit_code, "no failover's trace begins with '0123'" in unknown.stderr) == (1, True)


class Late(dict[str, object]):
    """Answers that are not there yet when one is asked for the first time."""

    asked = False

    def get(self, path, default=None):
        before, self.asked = self.asked, True
        return super().get(path, default) if before else None


async def test_the_trace_of_a_failover_that_has_just_been_is_waited_for(
    understudy, etcd, client, small_pool, monkeypatch
):
    """Its record is in etcd before its spans are with the control servers."""
    monkeypatch.setattr(commands_read, "SPANS_TIMEOUT", 60.0)
    keys = PoolKeys(small_pool)
    span = {"trace_id": TRACE, "span_id": "c" * 16, "parent_id": "", "name": "failover", "start_ns": 1, "end_ns": 9}

    async def told(started):
        record = FailoverRecord(TRACE, "cart-1", "cart-2", "cart-2 lost", False, (1, 3), (2, 2), started)
        await client.put(keys.failover(TRACE, "cart-1", "cart-2"), record.encode())
        with answering(Late({f"/v1/traces/{TRACE}": {"spans": [span]}})) as (address, _):
            control = ControlServer("control-1", "127.0.0.1:9", address.removeprefix("http://"))
            await client.put(keys.control("control-1"), control.encode())
            return understudy("trace", "--etcd", etcd.endpoint, "--pool", small_pool, "-o", "json")

    young = await told(time.time())
    assert (young.exit_code, '"failover"' in young.output) == (0, True), young.output
    old = await told(1000.0)
    assert (old.exit_code, "(any more)" in old.stderr) == (1, True)
