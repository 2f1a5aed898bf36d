"""The session service: a call is answered here, at the owner, or at whoever takes over, and a doubt is said."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessPool, headers_of, in_process_pool
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.peers.peer_protocol import PeerBroken
from understudy.proxy.sessions import service
from understudy.proxy.sessions.call import Call
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b", "c") as pool:
        yield pool


def call_of(headers: Mapping[str, str] | None = None) -> Call:
    return Call("POST", "", headers or {})


def kind_of(reply: Reply) -> tuple[int, str]:
    return reply.status, str(json.loads(reply.body)["type"]).rpartition("/")[2]


async def test_a_call_at_the_owner_is_answered_there_and_one_elsewhere_takes_one_hop(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b", "c"), pool["b"]
    assert headers_of(await a.call("PUT", "k", "one"))["understudy-served-by"] == "a"
    reply = await b.call("GET", "k")
    assert (reply.status, reply.body, reply.headers["Understudy-Served-By"]) == (200, b"one", "a")
    assert (a.router.forwarded, b.router.forwarded) == (0, 1)
    assert (a.answered, b.answered) == ([201, 200], [200])


async def test_a_forwarded_write_carries_a_stamp_so_that_it_has_its_effect_once(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.give("a", "b", "c")
    forward, sent = pool.network.forward, []

    async def noting(peer: Peer, method: str, key: str, **call: object) -> Reply:
        sent.append(dict(call["headers"]))  # type: ignore[call-overload]
        return await forward(peer, method, key, **call)

    monkeypatch.setattr(pool.network, "forward", noting)
    assert (await pool["b"].call("PUT", "k", "x")).status == 201
    await pool["b"].call("GET", "k")
    write, read = sent
    assert "understudy-request" in write
    assert "understudy-request" not in read


async def test_the_first_standby_takes_over_from_an_owner_that_refuses_connections(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b", "c"), pool["b"]
    await a.call("PUT", "k", "kept")
    pool.network.dead.add("a")

    reply = await b.call("GET", "k")

    assert (reply.status, reply.body, reply.headers["Understudy-Served-By"]) == (200, b"kept", "b")
    assert reply.headers["Understudy-Epoch"] == "2"
    assert sorted(b.owned.open_slots()) == list(range(SLOTS))
    assert (await pool.owner(0)).cause == "a lost: connection refused; connection refused"


async def test_a_later_standby_sends_the_call_to_the_first_which_takes_over(pool: InProcessPool) -> None:
    a, b, c = await pool.give("a", "b", "c"), pool["b"], pool["c"]
    await a.call("PUT", "k", "kept")
    pool.network.dead.add("a")
    reply = await c.call("GET", "k")
    assert (reply.status, reply.body, reply.headers["Understudy-Served-By"]) == (200, b"kept", "b")
    assert len(c.owned) == 0
    assert len(b.owned) == SLOTS


async def test_a_living_owner_is_not_taken_over_from_because_one_peer_cannot_reach_it(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.give("a", "b", "c")
    forward = pool.network.forward

    async def cut_off_from_a(peer: Peer, *args: object, **call: object) -> Reply:
        if peer.member == "a":
            raise PeerBroken("a", "the connection broke")
        return await forward(peer, *args, **call)  # type: ignore[arg-type]

    monkeypatch.setattr(pool.network, "forward", cut_off_from_a)
    monkeypatch.setattr(service, "CALL_TIMEOUT", 0.5)
    assert kind_of(await pool["b"].call("GET", "k")) == (503, "no-owner")
    assert (await pool.owner(slot_of("k", SLOTS))).active == "a"


async def test_a_write_that_was_sent_and_not_answered_is_unknown_and_not_refused(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.give("a", "b", "c")

    async def breaking(*_: object, **__: object) -> Reply:
        raise PeerBroken("a", "the connection broke")

    monkeypatch.setattr(pool.network, "forward", breaking)
    monkeypatch.setattr(service, "CALL_TIMEOUT", 0.3)
    assert kind_of(await pool["b"].call("PUT", "k", "x")) == (503, "outcome-unknown")
    assert kind_of(await pool["b"].call("GET", "k")) == (503, "no-owner")


@pytest.mark.parametrize("takes", [True, False])
async def test_an_owner_that_loses_its_slot_under_a_forwarded_write_tells_its_doubt(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, *, takes: bool
) -> None:
    a, b, c = await pool.give("a", "b", "c"), pool["b"], pool["c"]
    monkeypatch.setattr(a.active, "_answer", lambda *_, **__: None)  # it acknowledges nothing any more
    forward, replies = pool.network.forward, []

    async def noting(peer: Peer, *args: object, **call: object) -> Reply:
        if peer.member == "b" and not takes:
            return problem(421, "not-owner", "b does not know of its claim yet")
        replies.append(await forward(peer, *args, **call))  # type: ignore[arg-type]
        return replies[-1]

    monkeypatch.setattr(pool.network, "forward", noting)
    monkeypatch.setattr(service, "CALL_TIMEOUT", 20.0 if takes else 2.0)
    write = asyncio.create_task(c.call("PUT", "k", "x"))
    slot = a.active.get(slot_of("k", SLOTS))
    await until(lambda: slot.waiting and slot.stream.held == slot.stream.last, what="the copies have the write")
    pool.network.dead.add("a")
    assert (await b.call("GET", "other")).status == 404  # b takes over
    reply = await write

    assert (replies[0].status, "Understudy-Doubt" in replies[0].headers) == (421, True)
    if takes:
        assert (reply.status, reply.headers["Understudy-Served-By"]) == (201, "b")
    else:
        assert kind_of(reply) == (503, "outcome-unknown")
    assert (await b.call("GET", "k")).body == b"x"


async def test_a_forwarded_call_goes_no_second_hop(pool: InProcessPool) -> None:
    await pool.give("a", "b", "c")
    reply = await pool.network.forward(Peer("b", ""), "GET", "k", headers={}, body=b"")
    assert kind_of(reply) == (421, "not-owner")
    assert json.loads(reply.body)["owner"] == "a"
    assert pool["b"].router.forwarded == 0


async def test_before_the_first_claim_calls_go_to_whoever_the_table_names_and_wait_for_it(pool: InProcessPool) -> None:
    await pool.assign("a", "b", "c")
    waiting = asyncio.create_task(pool["b"].call("PUT", "k", "x"))
    await until(lambda: pool["b"].router.forwarded, what="the call was sent to a")
    await pool.give("a", "b", "c")
    reply = await waiting
    assert (reply.status, reply.headers["Understudy-Served-By"]) == (201, "a")


async def test_new_sessions_get_keys_in_slots_that_are_served_here(pool: InProcessPool) -> None:
    a = await pool.give("a", "b", "c")
    created = [await a.service.create(call_of()) for _ in range(5)]
    assert {reply.status for reply in created} == {201}
    assert len({json.loads(reply.body)["key"] for reply in created}) == 5
    assert a.router.forwarded == 0


async def test_a_repeated_creation_finds_the_same_session_at_any_member(pool: InProcessPool) -> None:
    a = await pool.give("a", "b", "c")
    headers = {"idempotency-key": "one", "understudy-caller": "ann"}
    first = await a.service.create(call_of(headers))
    again = await pool["b"].service.create(call_of(headers))
    other = await pool["b"].service.create(call_of({**headers, "understudy-caller": "bob"}))
    keys = [json.loads(reply.body)["key"] for reply in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert headers_of(again)["understudy-repeated"] == "true"


@pytest.mark.parametrize(("key", "kind"), [("..", (400, "bad-key")), ("", (400, "bad-key"))])
async def test_a_key_that_cannot_be_used_is_refused(pool: InProcessPool, key: str, kind: tuple[int, str]) -> None:
    assert kind_of(await pool["a"].call("GET", key)) == kind


async def test_without_a_spec_the_member_is_not_ready(pool: InProcessPool) -> None:
    pool["a"].pool.state.spec = None
    assert kind_of(await pool["a"].call("GET", "k")) == (503, "not-ready")
    assert kind_of(await pool["a"].service.create(call_of())) == (503, "not-ready")


async def test_an_overloaded_owner_refuses_low_calls_and_answers_all_others(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b", "c"), pool["b"]
    await a.call("PUT", "k", "one")
    a.lag = 1.0
    low = {"Understudy-Priority": "low"}

    async def refused() -> bool:
        return (await a.call("GET", "k", **low)).status == 503

    await until(refused, 40, "the lag is looked at")
    assert kind_of(await a.call("PUT", "k", "two", **low)) == (503, "overloaded")
    assert kind_of(await b.call("PUT", "k", "two", **low)) == (503, "overloaded")  # a forwarded call says it too
    assert (await a.call("GET", "k")).body == b"one"
    assert (await a.call("PUT", "k", "three")).status == 200
