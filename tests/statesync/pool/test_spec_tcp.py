"""The spec of a TCP pool: what is implied, what is refused, and in which words."""

import pytest

from understudy.statesync.pool.spec import PoolSpec, SpecError, refuse_contradiction
from understudy.statesync.pool.spec_reader import decode_spec, parse_spec


def parsed(text: str) -> PoolSpec:
    return parse_spec(f"pool: notes\n{text}", where="pool.yaml")


def test_a_tcp_pool_needs_to_say_no_more_than_that_it_is_one():
    spec = parsed("protocol: tcp")
    assert [key.source_address for key in spec.session_key] == [True]
    assert spec.tcp is not None
    assert spec.health_checks.failures == 2, "a failed check ends connections"
    assert (spec.tcp.send_proxy_protocol, spec.tcp.accept_proxy_protocol) == ("v1", False)
    assert (spec.outliers.failures, spec.timeouts.idle_seconds) == (1, 3600)
    assert decode_spec(spec.encode()) == spec


def test_what_the_operator_says_wins_over_what_is_implied():
    spec = parsed("protocol: tcp\noutliers: {failures: 3}\ntimeouts: {connect_ms: 100}")
    assert spec.outliers.failures == 3
    assert (spec.timeouts.connect_ms, spec.timeouts.idle_seconds) == (100, 3600)


def test_a_pool_that_is_not_tcp_has_nothing_of_it():
    spec = parsed("protocol: http2")
    assert spec.tcp is None
    assert b"tcp" not in spec.encode()
    assert b"source_address" not in spec.encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("protocol: tcp\nsession_key: [{header: x-id}]", "sees neither headers nor cookies"),
        ("protocol: tcp\nsession_key: [{source_address: true}, {cookie: sid}]", "sees neither headers nor cookies"),
        ("session_key: [{source_address: true}]", "source_address is for pools with protocol: tcp"),
        ("session_key: [{source_address: true, header: x}]", "name either a header or a cookie"),
        ("tcp: {ping: a, pong: b}", "only a pool with protocol: tcp has it, and this one has http1"),
        ("protocol: tcp\ntcp: {ping: a}", "say how the application's answer begins"),
        ("protocol: tcp\ntcp: {pinng: a}", "unknown key 'tcp.pinng'; did you mean 'ping'?"),
        ("protocol: tcp\ntcp: {send_proxy_protocol: v3}", "'v1', 'v2' or 'none'"),
        ("protocol: tcp\nmesh: {host: notes.default.svc.cluster.local, port: 80}", "reached through front Envoys"),
        ("protocol: tcp\nslots: 4097", "4096 at the most (got 4097)"),
        ("protocol: tcp\nretries: {hedge_ms: 0}", "retries.hedge_ms: a tcp pool has no requests"),
        ("protocol: tcp\ntimeouts: {request_seconds: 3}", "timeouts.request_seconds: a tcp pool has no requests"),
        ("protocol: tcp\ntimeouts: {ping_ms: 500}", "timeouts.ping_ms: a tcp pool has no requests"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(text: str, words: str):
    with pytest.raises(SpecError) as error:
        parsed(text)
    assert words in str(error.value)
    assert str(error.value).startswith("pool.yaml: ")


def test_a_running_pool_stays_what_it_is():
    http, tcp = parsed("protocol: http1"), parsed("protocol: tcp")
    refuse_contradiction(http, parsed("protocol: http2"))
    for running, wanted in ((http, tcp), (tcp, http)):
        with pytest.raises(SpecError, match="a pool stays with tcp, or without, for life"):
            refuse_contradiction(running, wanted)
