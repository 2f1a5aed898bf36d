"""The JSON schema of pool specs says what the parser says, as far as a schema can."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from understudy.statesync.http.headers import lost_at_the_front
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.spec_schema import _lost_at_the_front, spec_schema

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "deploy/examples"
SCHEMA = EXAMPLES / "pool.schema.json"
BLOCK = (ROOT / "docs/reference.md").read_text().split("```yaml\n")[1].split("```")[0]
"""Every key that there is, those of TCP pools among them."""
EVERY_KEY = re.sub(r"^(tcp:.*?^(?=\w)|prefer:[^\n]*\n|versions:[^\n]*\n)", "", BLOCK, flags=re.DOTALL | re.MULTILINE)

GOOD = [
    "",
    "mode: active_standby\nslots: 16384\ncopies: 8",
    "session_key: [{header: X-Cart}, {cookie: c, header: null}]",
    "session_key: [{preset: express}, {preset: flask, cookie: sid, pattern: null}, {preset: null, header: x}]",
    "session_key: [{cookie: a, pattern: 'v1-([^.]+)'}, {header: x, redis_prefixes: ['s:'], redis_suffixes: [_L]}]",
    "session_key: [{cookie: a, generated: true}, {cookie: b, redis_prefixes: ['s:'], transform: base64}]",
    "members: {cart-1: {weight: 10}, a.b: {priority: null}}",
    "objectives: {rto: {p99: 250ms}, planned_stall: {p99: 0.5}, propagation: {p99: 2m}, failed_requests: 0.1%}",
    "objectives: {exposure: 100%, unmeasured: 0.5, rpo_async_writes: 3}",
    "checks: [{name: db, http: 'http://a/'}, {name: disk, command: [test, -w, /data], every_seconds: 5}]",
    "mesh: {host: cart-slots.shop.svc.cluster.local}",
    "tcp: null\nmesh: null",
    "prefer: {zones: [a], members: [cart-1]}",
    "mode: active_standby\nrecovery: prefer_priority\nprefer: {hosts: [rack-1]}",
    "versions: {new_sessions: v2, unmarked: v1.4.0, when_gone: move}\nmesh: null",
    "protocol: tcp",
    "protocol: tcp\nslots: 4096\ntcp: {ping: P, pong: Q, send_proxy_protocol: v2}\ntimeouts: {connect_ms: 90}",
    "protocol: tcp\nsession_key: [{source_address: true}]\nretries: {attempts: 2}",
]
BAD = [
    "slotz: 1",
    "slots: 0",
    "slots: 16385",
    "slots: many",
    "mode: both",
    "copies: 1",
    "recovery: rebalance",
    "session_key: []",
    "session_key: [{}]",
    "session_key: [{header: a, cookie: b}]",
    "session_key: [{header: 'a b'}]",
    "session_key: [{header: session_id}]",
    "session_key: [{header: Understudy-Admin}]",
    "session_key: [{header: x-underStudy-slot}]",
    "session_key: [{source_address: true}]",
    "session_key: [{source_address: false}]",
    "session_key: [{preset: expres}]",
    "session_key: [{preset: express, header: x}]",
    "session_key: [{preset: express, cookie: null}]",
    "session_key: [{header: x, pattern: (a)}]",
    "session_key: [{header: x, generated: true}]",
    "session_key: [{cookie: x, generated: false}]",
    "session_key: [{cookie: x, redis_suffixes: [a]}]",
    "session_key: [{cookie: x, transform: base64}]",
    "session_key: [{cookie: x, redis_prefixes: [a], transform: base32}]",
    "session_key: [{cookie: x, redis_prefixes: ['']}]",
    "prefer: {zone: a}",
    "prefer: {members: [Cart_1]}",
    "members: {Cart_1: {}}",
    "members: {cart-1: {weight: 0}}",
    "members: {cart-1: {size: 1}}",
    "limits: {session_byte: 1}",
    "limits: 5",
    "objectives: {rto: {p99: 0}}",
    "objectives: {rto: {p99: 1h}}",
    "objectives: {rto: 1s}",
    "objectives: {failed_requests: 101%}",
    "objectives: {failed_requests: 2}",
    "timeouts: {connect_ms: 1}",
    "checks: [{name: db}]",
    "checks: [{name: db, http: 'ftp://a/'}]",
    "checks: [{name: db, http: 'http://a/', command: [x]}]",
    "checks: [{http: 'http://a/'}]",
    "mesh: {host: cart}",
    "mesh: {host: a.b}\nversions: {new_sessions: v2}",
    "protocol: tcp\nversions: {new_sessions: v2}",
    "versions: {new_sessions: -v2}",
    "versions: {unmarked: v1}",
    "mesh: {port: 1}",
    "tcp: {}",
    "protocol: udp",
    "protocol: tcp\nslots: 4097",
    "protocol: tcp\nsession_key: [{cookie: a}]",
    "protocol: tcp\nsession_key: [{source_address: true}, {source_address: true}]",
    "protocol: tcp\nmesh: {host: a.b}",
    "protocol: tcp\ntimeouts: {request_seconds: 3}",
    "protocol: tcp\nretries: {hedge_ms: 0}",
    "protocol: tcp\ntcp: {ping: a}",
]


@pytest.fixture(scope="module")
def validator():
    Draft7Validator.check_schema(spec_schema())
    return Draft7Validator(spec_schema())


def faults(validator, text):
    return [fault.message for fault in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("more", GOOD)
def test_what_the_parser_takes_the_schema_takes(validator, more):
    text = f"pool: cart\n{more}\n"
    parse_spec(text, where="x")
    assert faults(validator, text) == []


@pytest.mark.parametrize("more", BAD)
def test_what_the_parser_refuses_the_schema_refuses(validator, more):
    text = f"pool: cart\n{more}\n"
    with pytest.raises(SpecError):
        parse_spec(text, where="x")
    assert faults(validator, text)


@pytest.mark.parametrize("text", ["{}", "pool: Cart", "pool: 1", "[]", "text"])
def test_a_spec_needs_a_name(validator, text):
    with pytest.raises(SpecError):
        parse_spec(text, where="x")
    assert faults(validator, text)


def test_what_is_written_into_etcd_and_every_documented_key_fit(validator):
    assert set(yaml.safe_load(BLOCK)) == set(PoolSpec.model_fields)
    parse_spec(EVERY_KEY, where="reference.md")
    assert faults(validator, EVERY_KEY) == []
    assert faults(validator, PoolSpec(pool="cart").encode().decode()) == []


def test_the_pattern_of_headers_that_are_lost_is_what_the_function_says():
    pattern = re.compile(_lost_at_the_front())
    for name in (
        "cart",
        "a_b",
        "understudy-x",
        "X-Understudy-Slot",
        "x-understudy",
        "xunderstudy-a",
        "my-understudy-a",
    ):
        assert bool(pattern.search(name)) == bool(lost_at_the_front(name)), name


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_fits_and_names_the_schema_for_editors(validator, path):
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named
    assert (path.parent / named[1]).resolve() == SCHEMA
    assert faults(validator, text) == []
    parse_spec(text, where=path.name)


def test_the_file_beside_the_examples_is_what_the_models_say():
    assert json.loads(SCHEMA.read_text()) == spec_schema(), "understudy schema > deploy/examples/pool.schema.json"


def test_nobody_is_shown_a_default_that_cannot_be_written():
    assert "null" not in re.findall(r'"default": (\w+)', json.dumps(spec_schema()))
