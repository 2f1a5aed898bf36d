"""``backup`` and ``restore`` as an operator runs them: what comes back, who may write after it, and what is refused."""

import asyncio
import gzip
import json
import signal
import stat
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner
from msgspec.structs import replace

from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import stays, until
from understudy.deploy.cli.main import cli
from understudy.deploy.data.backup import Restore, RestoreStoppedError, owners_after, write_backup
from understudy.deploy.data.backup_file import OwnerLine, SessionLine, check, sessions_in
from understudy.statesync.audit.entry import Actor, Chain, unseal
from understudy.statesync.audit.log import read_newest
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import decode_spec
from understudy.statesync.replication.history import epoch_of, version_of
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import EncryptionKey, SealedSessions

FOREVER = 2**53
ONCE = {"Idempotency_Key": "order-1", "Understudy_Caller": "anna"}
ANNA = Actor("anna", "here", "restore, pid 1")
SESSION = Session("text/plain", b"hello", FOREVER, epoch=1)


class Operator:
    """Runs commands against etcd."""

    def __init__(self, shell: Commands, pool: SidecarPool) -> None:
        self._shell, self._etcd, self._pool = shell, pool.etcd.endpoint, pool.keys.pool

    async def backup(self, file: Path, *arguments: str) -> tuple[int, str]:
        place = ("--pool", self._pool, "--etcd", self._etcd)
        return await self._shell.run("backup", str(file), *place, *arguments)

    async def restore(self, file: Path, *arguments: str) -> tuple[int, str]:
        return await self._shell.run("restore", str(file), *arguments, "--etcd", self._etcd)


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


@pytest_asyncio.fixture
async def operator(pool: SidecarPool, tmp_path: Path) -> AsyncIterator[Operator]:
    async with commands(tmp_path) as shell:
        yield Operator(shell, pool)


async def asked(
    pool: SidecarPool, name: str, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A session API call, made again while it is answered with 503: on a slow machine one member waits for another."""

    async def answered() -> tuple[int, dict[str, str], bytes] | None:
        answer = await pool.call(name, method, path, body, **headers)
        return None if answer[0] == 503 else answer

    return await until(answered, 40, f"{name} answers {method} {path}")


async def recorded(pool: SidecarPool) -> list[tuple[str, str, str]]:
    """What the audit log says of operators: what, the beginning of the detail, why."""
    kvs, _ = await read_newest(pool.client, pool.keys, Chain.OPERATORS, 0)
    entries = [unseal(kv.value).entry for kv in kvs]
    return [(entry.what, entry.detail.partition(":")[0], entry.why) for entry in entries]


async def put_session(pool: SidecarPool, key: str, session: Session = SESSION) -> str:
    full = pool.keys.session(slot_of(key, pool.spec.slots), key)
    await pool.client.put(full, session.encode(), timeout=10)
    return full


async def everything(pool: SidecarPool) -> dict[str, bytes]:
    page = await pool.client.range(pool.keys.everything)
    return {kv.key: kv.value for kv in page.kvs}


async def sessions(pool: SidecarPool) -> dict[str, bytes]:
    page = await pool.client.range(prefix_range(pool.keys.sessions))
    return {kv.key: kv.value for kv in page.kvs}


async def await_no_members(pool: SidecarPool) -> None:
    async def gone() -> bool:
        return (await pool.client.range(prefix_range(pool.keys.members))).count == 0

    await until(gone, timeout=40, what="the members' records are gone")


async def stop_all(pool: SidecarPool) -> None:
    for name in pool.members:
        pool.kill(name)
    for name in pool.members:  # what etcd does by itself once their leases are over
        await pool.client.delete(pool.keys.member(name))


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.jsonl.gz"])
async def test_a_restored_pool_serves_what_it_served_and_its_epochs_rise(
    pool: SidecarPool, operator: Operator, tmp_path: Path, name: str
) -> None:
    await pool.start("a", "b")
    await pool.settle(("a", "b"), ("b", "a"))
    _, _, created = await asked(pool, "a", "POST", "", "by key", **ONCE)
    for n in range(120):
        await asked(pool, "ab"[n % 2], "PUT", f"/key-{n}", f"before {n}", Content_Type="text/plain")
    epochs = {slot: owner.epoch for slot, owner in (await pool.owners()).items()}
    code, told = await operator.backup(tmp_path / name)
    assert code == 0, told
    for n in range(60):
        await asked(pool, "a", "PUT", f"/key-{n}", "after the backup")
    await asked(pool, "a", "PUT", "/new", "after the backup")
    await stop_all(pool)

    code, told = await operator.restore(tmp_path / name, "--replace", "-o", "json")
    assert code == 0, told
    assert json.loads(told)["restored"] == 121
    assert all(owner.epoch > epochs[slot] for slot, owner in (await pool.owners()).items())

    await pool.start("a", "b")
    await pool.await_owners((("a", "b"), ("b", "a")))
    for n in range(120):
        status, headers, body = await asked(pool, "b", "GET", f"/key-{n}")
        assert (status, body, headers["content-type"]) == (200, f"before {n}".encode(), "text/plain")
        assert headers["etag"].startswith('"0.'), "a restored session has a new version"
    assert (await asked(pool, "a", "GET", "/new"))[0] == 404
    assert (await asked(pool, "b", "POST", "", "by key", **ONCE))[2] == created
    assert (await asked(pool, "a", "PUT", "/key-1", "again"))[0] == 200
    owners = await pool.owners()
    assert all(owner.epoch >= epochs[slot] + 2 for slot, owner in owners.items())


async def test_members_with_other_names_take_up_a_restored_pool(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await asked(pool, "a", "PUT", "/k", "kept")
    _, _, created = await asked(pool, "a", "POST", "", "by key", **ONCE)
    assert (await operator.backup(tmp_path / "b"))[0] == 0
    await stop_all(pool)
    await pool.client.delete(pool.keys.everything)
    assert (await operator.restore(tmp_path / "b", "--reason", "a fire"))[0] == 0
    assert await recorded(pool) == [("restore b", "begun", "a fire"), ("restore b", "ended", "a fire")]

    await pool.start("x", "y")
    await pool.settle(("x", "y"))

    assert (await asked(pool, "y", "GET", "/k"))[2] == b"kept"
    assert (await asked(pool, "y", "POST", "", "by key", **ONCE))[2] == created
    assert all(owner.epoch >= 3 for owner in (await pool.owners()).values())


async def test_expired_sessions_and_foreign_keys_are_left_out(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    kept = await put_session(pool, "k")
    grave = await put_session(pool, "grave", replace(SESSION, body=b"", deleted=True))
    unreadable = pool.keys.session(slot_of("u", 16), "u")
    await pool.client.put(unreadable, b"perhaps of a newer version")
    await put_session(pool, "late", replace(SESSION, expires=1000))
    await pool.client.put(pool.keys.session(slot_of("k", 16) ^ 1, "k"), SESSION.encode())
    assert (await operator.backup(tmp_path / "backup"))[0] == 0

    code, told = await operator.restore(tmp_path / "backup", "--replace", "-o", "json")

    done = json.loads(told)
    assert (code, done["restored"], done["expired"], done["left_out"]) == (0, 3, 1, 1)
    assert set(await sessions(pool)) == {kept, grave, unreadable}


async def test_versions_begin_anew_in_the_etcd_of_a_restore_and_those_of_sealed_sessions_do_not_come_back(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    codec = SealedSessions((EncryptionKey.of(b"k" * 32),))
    session = replace(SESSION, epoch=7, version=version_of(7, 42), since=version_of(7, 40))
    plain = await put_session(pool, "k", session)
    sealed = pool.keys.session(slot_of("s", 16), "s")
    await pool.client.put(sealed, codec.encode(sealed, session))
    for slot in (slot_of("k", 16), slot_of("s", 16)):
        await pool.client.put(pool.keys.owner(slot), Owner("a", "boot", 7).encode())
    assert (await operator.backup(tmp_path / "backup"))[0] == 0
    await pool.client.delete(pool.keys.everything)

    assert (await operator.restore(tmp_path / "backup"))[0] == 0

    restored, kept = await pool.client.get(plain), await pool.client.get(sealed)
    assert restored is not None
    assert kept is not None
    begun = Session.decode(restored.value, restored.mod_revision)
    assert begun == replace(session, revision=restored.mod_revision, version=restored.mod_revision, since=0)
    assert codec.decode(sealed, kept.value, 1).version == session.version
    assert (await pool.owners())[slot_of("s", 16)].epoch > epoch_of(session.version)


async def test_no_sync_set_outlives_a_restore(pool: SidecarPool, operator: Operator, tmp_path: Path) -> None:
    await pool.client.put(pool.keys.owner(3), Owner("a", "boot", 7).encode())
    assert (await operator.backup(tmp_path / "backup"))[0] == 0
    await pool.client.delete(pool.keys.owner(3))
    sync = SyncRecord(8, (Process("a", "boot"),), memory=True)
    await pool.client.put(pool.keys.sync_set(3), sync.encode())

    assert (await operator.restore(tmp_path / "backup"))[0] == 0

    assert (await pool.owners())[3].epoch == sync.epoch, "it would be valid"
    assert (await pool.client.range(prefix_range(pool.keys.sync_sets))).kvs == ()


async def test_a_backup_under_load_is_of_one_moment(pool: SidecarPool, operator: Operator, tmp_path: Path) -> None:
    for n in range(600):
        await put_session(pool, f"key-{n}", replace(SESSION, body=b"0"))
    turn = done = 0

    async def write() -> None:  # each turn rewrites the first, the last and a middle one, in this order
        nonlocal turn
        while not done:
            turn += 1
            for key in ("key-0", "key-599", "key-300"):
                await put_session(pool, key, replace(SESSION, body=str(turn).encode()))
                await put_session(pool, f"more-{turn}-{key}")

    writing = asyncio.create_task(write())
    for number in range(3):
        file = tmp_path / f"{number}.jsonl"
        assert (await operator.backup(file))[0] == 0
        moment, lines = check(file).header.revision, list(sessions_in(file))
        assert all(line.revision <= moment for line in lines)
        found = {line.key: int(Session.decode(line.value, 1).body) for line in lines if line.key.startswith("key-")}
        assert len(found) == 600
        first, last, middle = found["key-0"], found["key-599"], found["key-300"]
        assert first >= last >= middle >= first - 1
    done = 1
    await writing


async def test_a_backup_is_private_replaces_nothing_unasked_and_leaves_nothing_when_it_fails(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    await put_session(pool, "k")
    file = tmp_path / "out" / "backup"
    code, told = await operator.backup(file)
    assert code == 2
    assert str(file) in told
    file.parent.mkdir()
    assert (await operator.backup(file))[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()

    code, told = await operator.backup(file)
    assert (code, "--force" in told, file.read_bytes()) == (2, True, before)
    assert (await operator.backup(file, "--force"))[0] == 0
    assert [path.name for path in file.parent.iterdir()] == ["backup"]
    code, told = await operator.backup(file, "--force", "--pool", "no-such-pool")
    assert (code, "there is no pool 'no-such-pool'" in told) == (2, True)
    assert check(file).header.sessions == 1


def damaged(content: bytes) -> dict[str, bytes]:
    """Ways in which a backup can be broken, by what the error says of them."""
    lines = content.splitlines(keepends=True)
    changed = json.loads(lines[-2])
    changed["session"]["revision"] += 1
    return {
        "it is truncated: the last line": b"".join(lines[:-1]),
        "is truncated, or is not a JSON": content[: len(content) // 2],
        "its content does not match its digest": b"".join(
            [*lines[:-2], json.dumps(changed, separators=(",", ":")).encode() + b"\n", lines[-1]]
        ),
        "comes after the digest": content + b"{}\n",
        "is not a file of": b'{"hello":1}\n',
        "has format 2": content.replace(b'{"understudy_backup":1', b'{"understudy_backup":2', 1),
        "is empty": b"",
        "cannot be used": b"".join(
            [*lines[:-2], b'{"session":{"slot":1,"key":"k","revision":1,"value":"?"}}\n', lines[-1]]
        ),
        "is not a spec, secret": b"".join([*lines[:-2], b'{"what":1}\n', lines[-1]]),
        "it is truncated": gzip.compress(content)[:-20],
        "cannot be read": gzip.compress(content)[:30] + b"nonsense" * 9 + gzip.compress(content)[102:],
    }


async def test_a_damaged_file_is_named_and_changes_nothing(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    for n in range(5):
        await put_session(pool, f"key-{n}")
    await pool.client.put(pool.keys.owner(3), Owner("a", "boot", 7).encode())
    good = tmp_path / "good"
    assert (await operator.backup(good))[0] == 0
    before = await everything(pool)

    for number, (said, content) in enumerate(damaged(good.read_bytes()).items()):
        file = tmp_path / f"bad-{number}"
        file.write_bytes(content)
        code, told = await operator.restore(file, "--replace")
        assert (code, len(told.splitlines())) == (2, 1), told
        assert said in told
        assert str(file) in told
        assert await everything(pool) == before
    assert (await operator.restore(tmp_path / "absent"))[0] == 2


async def test_what_would_harm_a_pool_is_refused(pool: SidecarPool, operator: Operator, tmp_path: Path) -> None:
    await put_session(pool, "k")
    file = tmp_path / "backup"
    assert (await operator.backup(file))[0] == 0

    before = await everything(pool)
    code, told = await operator.restore(file)
    assert (code, "has 1 sessions: give --replace" in told) == (2, True)
    assert await everything(pool) == before

    await pool.client.put(pool.keys.spec, PoolSpec(pool=pool.keys.pool, slots=32).encode())
    code, told = await operator.restore(file, "--replace")
    assert (code, "has 32 slots" in told) == (2, True)

    await pool.client.put(pool.keys.spec, pool.spec.encode())
    await pool.start("a")
    before = await sessions(pool)
    code, told = await operator.restore(file, "--replace")
    assert (code, "has members: a; stop their sidecars first" in told) == (2, True)
    assert await sessions(pool) == before


async def test_a_process_that_was_frozen_over_a_restore_writes_nothing_under_its_old_epoch(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await pool.call("a", "PUT", "/k", "kept")
    assert (await operator.backup(tmp_path / "backup"))[0] == 0
    frozen = pool.members["a"].sidecar
    frozen.signal(signal.SIGSTOP)
    await pool.client.delete(pool.keys.member("a"))  # what etcd does by itself once its lease is over

    code, told = await operator.restore(tmp_path / "backup", "--replace")
    assert code == 0, told
    fenced = (await pool.owners())[slot_of("k", 16)].epoch
    frozen.signal(signal.SIGCONT)
    epochs = []

    async def written() -> bool:
        status, headers, _ = await pool.call("a", "PUT", "/k", "late")
        assert status in (200, 503)
        epochs.append(int(headers.get("understudy-epoch", 0)))
        return status == 200

    await until(written, what="the process takes part again")
    stored = Session.decode((await sessions(pool))[pool.keys.session(slot_of("k", 16), "k")], 1)
    assert stored.body == b"late"
    assert stored.epoch == epochs[-1] > fenced > 1


async def test_nothing_is_served_from_a_pool_whose_restore_was_not_finished(
    pool: SidecarPool, operator: Operator, tmp_path: Path
) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    await pool.call("a", "PUT", "/k", "kept")
    assert (await operator.backup(tmp_path / "backup"))[0] == 0

    for _ in range(20):
        await pool.client.delete(pool.keys.member("a"))  # its sidecar lives, sees etcd, and claims what it can
        code, told = await operator.restore(tmp_path / "backup", "--replace")
        if "stop their sidecars first" not in told:  # else it has registered again before the restore looked
            break

    async def refused() -> bool:
        return (await pool.call("a", "GET", "/k"))[0] == 503

    if code:
        assert "a member claimed a slot" in told
        await until(refused, what="the sidecar knows that the pool is gone")
        await stays(refused, 0.5)
    else:
        assert (await asked(pool, "a", "GET", "/k"))[2] == b"kept"


async def test_a_restore_stops_when_a_member_comes_up_too_early(
    pool: SidecarPool, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(300):
        await put_session(pool, f"key-{n}")
    await pool.client.put(pool.keys.owner(15), Owner("a", "boot", 7).encode())
    assert (await operator.backup(tmp_path / "backup"))[0] == 0
    put_batch = Restore._put_batch

    async def after_a_claim(self: Restore, batch: Sequence[SessionLine]) -> None:
        """Somebody claims a slot after the first sessions."""
        await put_batch(self, batch)
        owner = await self._client.get(pool.keys.owner(15))
        if owner and Owner.decode(owner.value).epoch == 8:
            await self._client.put(pool.keys.owner(15), Owner("early", "boot", 9).encode())

    with monkeypatch.context() as patch:
        patch.setattr(Restore, "_put_batch", after_a_claim)
        command = ["restore", str(tmp_path / "backup"), "--replace", "--etcd", pool.etcd.endpoint]
        done = await asyncio.to_thread(CliRunner().invoke, cli, command)

    told = ("a member claimed a slot" in done.stderr, "again with --replace" in done.stderr)
    assert (done.exit_code, *told) == (2, True, True)
    assert await pool.client.get(pool.keys.spec) is None
    assert (await operator.restore(tmp_path / "backup", "--replace"))[0] == 0
    assert len(await sessions(pool)) == 300
    assert (await pool.owners())[15].epoch == 10
    assert decode_spec((await everything(pool))[pool.keys.spec]) == pool.spec


async def test_a_restore_that_etcd_left_in_the_lurch_is_told_so_and_can_be_made_again(
    etcd_server: EtcdServer, pool_name: str, tmp_path: Path
) -> None:
    async with sidecar_pool(etcd_server, pool_name) as pool:
        for n in range(300):
            await put_session(pool, f"key-{n}")
        await write_backup(pool.client, pool_name, tmp_path / "backup", "1", force=False, progress=lambda _: None)
        contents = check(tmp_path / "backup")

        async def settle() -> None:
            async with etcd_server.client() as other:
                await etcd_server.settle(other)

        def kill(_: int) -> None:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, settle()).result()
            etcd_server.kill()

        with pytest.raises(RestoreStoppedError, match="again with --replace"):
            await Restore(pool.client, contents, boot="one", progress=kill, actor=ANNA).run(replace=True)
        await etcd_server.start()
        assert await pool.client.get(pool.keys.spec) is None
        done = await Restore(pool.client, contents, boot="two", progress=lambda _: None, actor=ANNA).run(replace=True)

        assert (done.sessions, len(await sessions(pool))) == (300, 300)
        assert {owner.epoch for owner in (await pool.owners()).values()} == {2}


def test_epochs_rise_above_the_backups_and_the_present_ones() -> None:
    saved = [OwnerLine(0, "a", 7), OwnerLine(1, "a", 2)]
    present = {1: Owner("b", "boot", 9), 2: Owner("b", "boot", 4)}

    after: dict[int, Any] = owners_after(saved, present, 4, boot="new", now=5.0)

    assert {slot: (owner.active, owner.epoch) for slot, owner in after.items()} == {
        0: ("a", 8),
        1: ("a", 10),
        2: ("b", 5),
        3: ("restored", 1),
    }
    assert {owner.boot for owner in after.values()} == {"new"}
