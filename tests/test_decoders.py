"""No value in etcd, in a backup or in an answer ends a process: every decoder returns, or raises its one error."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.deploy.cli.commands_audit import _table
from understudy.deploy.common.layout import Layout
from understudy.deploy.data.backup_file import BackupError, check
from understudy.deploy.inspect.audit import rows_of
from understudy.deploy.inspect.traces import spans_of
from understudy.statesync.audit.chain import Mark, verify
from understudy.statesync.audit.entry import Chain, unseal
from understudy.statesync.audit.log import end_in
from understudy.statesync.etcd.client import EtcdClient, Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.heartbeat.heartbeat import Beat, BeatAnswer
from understudy.statesync.heartbeat.probe import answer_in
from understudy.statesync.parsing.stored import MOST_DEPTH, read_json, read_object
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.records import (
    ControlServer,
    FailoverRecord,
    Intent,
    Lost,
    Member,
    Owner,
    Revival,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_reader import decode_known_spec, decode_spec, parse_spec
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.messages import Stored
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog, decode_entries
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import (
    PLAIN,
    EncryptionKey,
    SealedSessions,
    UnreadableSession,
    outline,
)
from understudy.xds.membership.cluster_state import pool_view
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.plan import next_plan

KEYS = PoolKeys("cart")
SEALED = SealedSessions((EncryptionKey.of(b"k" * 32),))
KEY = KEYS.session(3, "key")
NAN, DEEP = b'{"epoch": NaN}', b"[" * 100_000 + b"]" * 100_000
POISON = [
    b"",
    b"null",
    b"[]",
    b"7",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    DEEP,
    b'{"a":' * 50_000,
    b'{"sealed":"a","sealed":["b"]}',
    b'{"sealed":"' + b"a" * 5000 + b'"}\n',
    b'{"sealed":{}}\nxxxxxxxxxxxxxxxxxxxxx',
    b'{"epoch":1,"expires":1e400,"type":"t"}\n',
    b'{"epoch":1,"expires":"soon","type":7}\n',
    b'{"epoch":1,"expires":1,"type":"a\\r\\nb: c"}\n',
    b'{"epoch":1,"expires":' + b"9" * 5000 + b',"type":"t"}\n',
    b'{"epoch":1,"expires":1,"type":"t","answers":[["a","b",[],{}]]}\n',
    b'[[["a"],{},"200"]]',
    b'[{"a":1}]',
    b'["abcd"]',
    NAN,
    b'{"active":["a"],"boot":{},"epoch":"x"}',
    b'{"active":"\\ud800","boot":"b","epoch":1}',
    b'{"active":"a","boot":"b","epoch":1,"since":1e300}',
    b'{"active":"a","boot":"b","epoch":1,"since":' + b"9" * 400 + b"}",
    b'{"member":"a","boot":"b","app":[],"peer":"p","weight":0}',
    b'{"member":"a","boot":"b","app":"x","peer":"p","weight":-5}',
    b'{"member":"a\\n\\u001b[31m","boot":"b","app":"x","peer":"p"}',
    b'{"generation":1,"orders":[["a"]],"slots":[-1]}',
    b'{"generation":1,"orders":[["a","a"]],"slots":[0]}',
    b'{"generation":1,"orders":{"a":1},"slots":[0],"lost":[1]}',
    b'{"generation":1,"orders":[["a"]],"slots":[0],"lost":{"a":[]}}',
    b'{"pool":"cart","slots":[[[[1]]]]}',
    b'{"pool":"cart",' + b",".join(b'"k%d":1' % n for n in range(2000)) + b"}",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("member", "boot", "app", "peer", "state", "weight", "active", "epoch", "phase", "since", "generation", "orders"),
    *(
        "slots",
        "lost",
        "sealed",
        "type",
        "expires",
        "deleted",
        "answers",
        "pool",
        "name",
        "grpc",
        "http",
        "trace",
        "to",
    ),
    *(
        "source",
        "cause",
        "planned",
        "epochs",
        "started",
        "claims",
        "pulses",
        "sent",
        "clock",
        "checks",
        "members",
        "tcp",
    ),
    *(
        "offline",
        "protocol",
        "session_key",
        "limits",
        "traceparent",
        "at",
        "applied",
        "until",
        "header",
        "spec",
        "owner",
        "memory",
        "former",
        "losses",
        "loss_epoch",
        "loss_seconds",
        "restored",
    ),
)
fit_values = json_values | st.sampled_from(["UP", "stable", "cart", "a", 1, 0, [["a"]], [0], {"a": {}}, True, "tcp"])
objects = st.dictionaries(st.sampled_from(FIELDS), fit_values, max_size=14).map(lambda raw: json.dumps(raw).encode())
wild = (
    st.binary(max_size=80) | json_values.map(lambda raw: json.dumps(raw).encode()) | objects | st.sampled_from(POISON)
)


def in_state(value: bytes) -> None:
    """As the watch of a process brings it, under every prefix."""
    state = PoolState(KEYS)
    for key in all_keys():
        state.apply(InformerBatch(1, (Event("put", Kv(key, value, 1, 1, 0)),)))
    state.read_owner(3, Kv(KEYS.owner(3), value, 1, 1, 0))
    state.read_sync_set(3, Kv(KEYS.sync_set(3), value, 1, 1, 0))


def all_keys(of: str = "a") -> list[str]:
    named = (KEYS.members, KEYS.admin, KEYS.site_intents, KEYS.controls, KEYS.failovers, KEYS.commits, KEYS.probes)
    single = (KEYS.spec, KEYS.table, KEYS.leader, KEYS.secret, KEYS.encryption)
    return [
        *(prefix + of for prefix in named),
        *single,
        KEYS.owner(3),
        KEYS.sync_set(3),
        KEYS.revival(3),
        KEYS.requests + f"{of}/b/1",
        KEY,
    ]


def in_replica(value: bytes) -> None:
    for codec in (PLAIN, SEALED):
        replica = Replica(None, KEYS, codec)  # type: ignore[arg-type]
        replica.clear(3)
        replica.keep(3, [Stored("key", 5, value)])
        assert (replica.session(3, "key") is None) == bool(replica.unreadable(3, "key"))


def in_request_log(value: bytes) -> None:
    log = RequestLog(KEYS, "a", "b")
    log.read([Kv(KEYS.requests + "a/b/1", value, 5, 5, 0)], 0.0)
    log.outcomes(3)
    log.forget(100.0, 1.0)


def in_control_server(value: bytes) -> None:
    """Whatever was decoded, a control server can make its plan and Envoys' view of it."""
    observer = StateBuilder(KEYS, FailureDetector())
    good = PoolSpec(pool="cart", slots=4).encode()
    observer.apply(InformerBatch(1, (Event("put", Kv(KEYS.spec, good, 1, 1, 0)),)))
    for number, key in enumerate(all_keys(), start=2):
        if key != KEYS.spec:
            observer.apply(InformerBatch(number, (Event("put", Kv(key, value, number, number, 0)),)))
    world = observer.current()
    assert world is not None
    pool_view(world)
    next_plan(world, 1.0)


def sealed(value: bytes) -> bytes:
    return b'{"entry":%b,"digest":"%b"}' % (value, hashlib.sha256(value).hexdigest().encode())


def in_audit_log(value: bytes) -> None:
    chain = Chain.OPERATORS
    keys = [KEYS.audit_end(chain), KEYS.audit_anchor(chain), *(KEYS.audit_record(chain, n) for n in (1, 3))]
    for record in (value, sealed(value)):
        log = {key: Kv(key, record, 1, 1, 0) for key in keys}
        end_in(log[keys[0]])
        rows = rows_of(KEYS, log.values())
        assert len(rows) == 2
        _table({"pool": "cart", "records": rows})
        assert all(len(fault) < 1000 for fault in verify(KEYS, chain, log).faults)


DECODERS: dict[str, tuple[Callable[[bytes], Any], type[Exception] | tuple[()]]] = {
    "json": (read_json, ValueError),
    "object": (read_object, ValueError),
    **{
        kind.__name__: (kind.decode, ValueError)
        for kind in (Member, Owner, SyncRecord, Intent, Lost, Revival, Table, ControlServer)
    },
    **{kind.__name__: (kind.decode, ValueError) for kind in (FailoverRecord, Beat, BeatAnswer)},
    "pool in a group": (PoolInGroup.decode, ValueError),
    "end of a chain": (Mark.decode, ValueError),
    "audit record": (unseal, ValueError),
    "audit record with its digest": (lambda value: unseal(sealed(value)), ValueError),
    "audit log": (in_audit_log, ()),
    "spec": (decode_spec, SpecError),
    "known spec": (decode_known_spec, SpecError),
    "spec in YAML": (lambda value: parse_spec(value.decode(errors="replace"), where="f"), SpecError),
    "session": (lambda value: Session.decode(value, 1), ValueError),
    "plain session": (lambda value: PLAIN.decode(KEY, value, 1), UnreadableSession),
    "sealed session": (lambda value: SEALED.decode(KEY, value, 1), UnreadableSession),
    "outline": (lambda value: outline(value, 1), UnreadableSession),
    "entries of requests": (decode_entries, ValueError),
    "slot": (lambda value: slot_in(value.decode(errors="replace"), ""), ValueError),
    "layout": (lambda value: Layout.decode(value.decode(errors="replace")), ValueError),
    "a probe's answer": (answer_in, ()),
    "state": (in_state, ()),
    "replica": (in_replica, ()),
    "request log": (in_request_log, ()),
    "control server": (in_control_server, ()),
}


@pytest.mark.parametrize("decoder", DECODERS)
@given(value=wild)
@settings(max_examples=examples(25))
def test_a_decoder_returns_or_raises_its_one_error(decoder: str, value: bytes) -> None:
    survives(decoder, value)


@pytest.mark.parametrize("value", POISON, ids=lambda value: repr(value[:30]))
def test_a_decoder_returns_or_raises_its_one_error_for_known_poison(value: bytes) -> None:
    for decoder in DECODERS:
        survives(decoder, value)


def survives(decoder: str, value: bytes) -> None:
    decode, error = DECODERS[decoder]
    try:
        decode(value)
    except error as told:
        said = str(told)
    else:
        said = ""
    assert len(said) < 10_000


@pytest.mark.parametrize("value", POISON, ids=lambda value: repr(value[:30]))
def test_a_backup_with_poison_is_damaged_and_nothing_else(value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    header = b'{"understudy_backup":1,"pool":"cart","revision":1,"time":1,"version":"1","owners":0,"sessions":0}\n'
    for content in (value, value + b"\n", header + value + b"\n", header + b'{"session":' + value + b"}\n"):
        path.write_bytes(content)
        with pytest.raises(BackupError):
            check(path)


@given(json_values | st.fixed_dictionaries({"spans": json_values}))
def test_spans_of_a_control_server_are_spans_or_left_out(answer: Any) -> None:
    for span in spans_of(answer):
        assert isinstance(span.start_ns, int)


@given(st.text(max_size=12))
@example("-0001/x")
@example("\u0660" * 5 + "/x")
@example("1_000/x")
@example("99999/x")
@example("00001x")
def test_a_key_names_a_slot_of_five_digits_or_none(rest: str) -> None:
    try:
        slot = slot_in(KEYS.sessions + rest, KEYS.sessions)
    except ValueError:
        return
    assert rest.partition("/")[0] == f"{slot:05d}"


def test_depth_does_not_depend_on_who_reads() -> None:
    fine, deep = (b"[" * depth + b"]" * depth for depth in (MOST_DEPTH, MOST_DEPTH + 1))
    assert read_json(fine)
    with pytest.raises(ValueError, match="levels"):
        read_json(deep)


@pytest.mark.parametrize("key", ["\udcff", "00003", "00003/", "-0003/x", "x/y", "99999/x"])
async def test_a_replica_passes_over_keys_that_are_none(client: EtcdClient, pool_name: str, key: str) -> None:
    keys = PoolKeys(pool_name)
    for name in (keys.sessions + key, keys.session(3, "key")):
        await client.put(name, Session("text/plain", b"", 1, 1).encode())
    replica = Replica(client, keys)
    await replica.load(3)
    assert set(replica.sessions_of(3)) == {"key"}


def test_a_record_under_another_name_is_not_taken() -> None:
    state = PoolState(KEYS)
    record = Member("cart-1", "boot", "127.0.0.1:1", "127.0.0.1:2").encode()
    state.apply(InformerBatch(1, (Event("put", Kv(KEYS.member("cart-2"), record, 1, 1, 0)),)))
    assert not state.members
    assert KEYS.member("cart-2") in state.faults
