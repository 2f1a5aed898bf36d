"""The pool spec: what it takes, what it refuses and in which words, and how it stands in etcd."""

import json
from pathlib import Path

import pytest

from understudy.statesync.pool.spec import NEWER_KEYS, PoolSpec, SessionKey, SpecError, refuse_contradiction
from understudy.statesync.pool.spec_reader import (
    FAULTS_MOST,
    decode_known_spec,
    decode_spec,
    load_spec,
    parse_checks,
    parse_spec,
)


def parsed(text: str) -> PoolSpec:
    return parse_spec(f"pool: cart\n{text}", where="pool.yaml")


def refusal(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parsed(text)
    return str(caught.value).splitlines()


def test_a_spec_needs_no_more_than_a_name() -> None:
    spec = parsed("")
    assert spec == PoolSpec(pool="cart")
    assert [(key.header, key.cookie) for key in spec.session_key] == [("x-session-id", None), (None, "sid")]


@pytest.mark.parametrize(
    ("objectives", "p99", "share"),
    [
        ("{rto: {p99: 250ms}, failed_requests: 0.1%}", 0.25, 0.001),
        ("{rto: {p99: 2m}, failed_requests: 5 %}", 120.0, 0.05),
        ("{rto: {p99: 1.5}, failed_requests: 0.5}", 1.5, 0.5),
    ],
)
def test_times_have_units_and_shares_may_be_percent(objectives: str, p99: float, share: float) -> None:
    spec = parsed(f"objectives: {objectives}")
    assert (spec.objectives.rto.p99, spec.objectives.failed_requests) == (p99, pytest.approx(share))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sloots: 8", "unknown key 'sloots'; did you mean 'slots'?"),
        ("limits: {sesions: 8}", "unknown key 'limits.sesions'; did you mean 'sessions'?"),
        ("session_key: [{heder: x, cookie: a}]", "unknown key 'session_key.0.heder'; did you mean 'header'?"),
        ("mesh: {zzz: 1, host: a.b}", "unknown key 'mesh.zzz'; valid keys are host, port"),
        ("slots: 0", "slots: Input should be greater than or equal to 1 (got 0)"),
        ("objectives: {rto: {p99: 2h}}", "objectives.rto.p99: Input should be a valid number"),
        ("objectives: {failed_requests: 101%}", "objectives.failed_requests: Input should be less than or equal to 1"),
        ("session_key: [{}]", "session_key.0: name either a header or a cookie"),
        ("checks: [{name: a}]", "checks.0: name either http or a command"),
        (
            "checks: [{name: a, command: [x]}, {name: a, command: [y]}]",
            "spec: checks: every check needs a name of its own",
        ),
        (
            "durability_rules: [{prefix: '', durability: sync}]",
            "durability_rules.0.prefix: String should have at least 1",
        ),
        ("durability_rules: [{prefix: a, durability: fast}]", "durability_rules.0.durability: Input should be 'sync'"),
        (
            "durability_rules: [{prefix: a, durability: sync}, {prefix: a, durability: async}]",
            "spec: durability_rules: every rule needs a prefix of its own",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(text: str, words: str) -> None:
    assert refusal(text)[0].startswith(f"pool.yaml: {words}")


def test_every_fault_has_a_line() -> None:
    assert len(refusal("slots: 0\ncopies: 1\nsloots: 8")) == 3


def test_a_hostile_spec_is_refused_in_few_lines() -> None:
    value = b'{"pool":"cart",' + b",".join(b'"k%d":1' % n for n in range(5000)) + b"}"
    with pytest.raises(SpecError) as caught:
        decode_spec(value)
    assert len(str(caught.value).splitlines()) == FAULTS_MOST + 1


@pytest.mark.parametrize("text", ["", "[]", "cart"])
def test_a_spec_is_a_mapping(text: str) -> None:
    with pytest.raises(SpecError, match="a mapping that starts with 'pool: NAME'"):
        parse_spec(text, where="pool.yaml")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "name the pool spec's file"), (b"\xff", "cannot be read"), (b"slots: 8", "pool: ")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "pool.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path))


def test_the_checks_of_one_member_are_read_by_the_same_rules() -> None:
    (check,) = parse_checks("[{name: db, http: 'http://db/'}]", where="--checks")
    assert (check.name, check.every_seconds) == ("db", 1.0)
    with pytest.raises(SpecError, match="line 1: key 'name'"):
        parse_checks("[{name: a, name: b, http: 'http://a/'}]", where="--checks")


def test_etcd_holds_every_default() -> None:
    spec = parsed("slots: 8")
    assert json.loads(spec.encode())["copies"] == 3
    assert decode_spec(spec.encode()) == spec


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b'{"pool":1}'])
def test_what_is_not_a_spec_in_etcd_is_refused(value: bytes) -> None:
    for decode in (decode_spec, decode_known_spec):
        with pytest.raises(SpecError, match="spec in etcd: "):
            decode(value)


def test_keys_of_a_newer_version_are_left_out_and_named() -> None:
    raw = json.loads(PoolSpec(pool="cart").encode())
    raw["newer"] = raw["limits"]["newest"] = 1
    spec, unknown = decode_known_spec(json.dumps(raw).encode())
    assert (spec, set(unknown)) == (PoolSpec(pool="cart"), {"newer", "limits.newest"})


@pytest.mark.parametrize(
    ("text", "words"),
    [("slots: 8", "slots: the running pool 'cart' has 4 slots"), ("slots: 4\nprotocol: tcp", "stays with tcp")],
)
def test_a_live_pool_keeps_its_slots_and_its_kind(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        refuse_contradiction(parsed("slots: 4"), parsed(text))


def test_a_live_pool_takes_any_other_change() -> None:
    refuse_contradiction(parsed("slots: 4"), parsed("slots: 4\ncopies: 2\nmode: active_standby"))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("X_Session", "refuse requests with an underscore"),
        ("Understudy-Session", "remove headers that begin with understudy-"),
        ("x-understudy-session", "remove headers that begin with"),
    ],
)
def test_a_header_that_front_envoys_remove_is_refused_in_new_specs_alone(header: str, why: str) -> None:
    (line,) = refusal(f"session_key: [{{header: x-id}}, {{header: {header}}}]")
    assert line.startswith(f"pool.yaml: session_key: front Envoys {why}")
    running = PoolSpec(pool="cart", session_key=(SessionKey(header=header),))
    assert decode_spec(running.encode()) == running


def test_other_headers_and_cookies_are_taken() -> None:
    assert parsed("session_key: [{header: X-Understudy}, {cookie: a_b}]")


@pytest.mark.parametrize(
    ("key", "durability"),
    [("cache:1", "async"), ("cache:", "async"), ("cache:cart:7", "replicas"), ("cache", "sync"), ("x-cache:1", "sync")],
)
def test_the_longest_prefix_that_fits_says_how_durable_a_write_is(key: str, durability: str) -> None:
    rules = "[{prefix: 'cache:', durability: async}, {prefix: 'cache:cart:', durability: replicas}]"
    spec = parsed(f"durability_rules: {rules}")
    assert spec.durability_of(key) == durability
    assert decode_spec(spec.encode()) == spec


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", set()),
        ("predictive: warn", set()),
        ("predictive: off", {"predictive"}),
        ("priority: low", {"priority"}),
        ("priority_rules: [{prefix: a, priority: critical}]", {"priority_rules"}),
        ("durability_rules: [{prefix: a, durability: async}]", {"durability_rules"}),
    ],
)
def test_a_newer_key_is_stored_only_if_it_is_used(text: str, kept: set[str]) -> None:
    stored = json.loads(parsed(text).encode())
    assert stored.keys() & set(NEWER_KEYS) == kept


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("", None),
        ("priority: critical", None),
        ("priority: low", 100),
        ("priority: low\nlimits: {concurrent_requests: 7}", 7),
        ("limits: {concurrent_requests: 7}", 7),
    ],
)
def test_how_many_requests_an_envoy_has_under_way_at_a_member(text: str, most: int | None) -> None:
    assert parsed(text).concurrent_requests == most
