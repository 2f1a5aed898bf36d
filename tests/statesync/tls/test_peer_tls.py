"""mTLS between members: who is believed to be whom, and certificates that change under way."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.harness.certificates import TRUST, Authority
from tests.harness.waiting import free_port
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls, WrongName, trust_fault


@asynccontextmanager
async def serving(tls: PeerTls) -> AsyncIterator[str]:
    """A server that answers with the names in its client's certificate."""

    async def who(request: web.Request) -> web.Response:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("peercert")
        return web.Response(text=certificate["subjectAltName"][0][1].rpartition("/")[2])

    app = web.Application()
    app.router.add_get("/", who)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls.server()).start()
    try:
        yield f"https://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


async def ask(url: str, context: ssl.SSLContext) -> str:
    async with aiohttp.ClientSession() as http, http.get(url, ssl=context) as answer:
        return await answer.text()


async def test_members_of_one_authority_know_each_other(tmp_path: Path) -> None:
    pool = Authority(tmp_path)
    async with serving(PeerTls(pool.member("a"))) as url:
        assert await ask(url, PeerTls(pool.member("b")).client("a")) == "b"


async def test_a_member_that_answers_in_place_of_another_is_told_from_it(tmp_path: Path) -> None:
    pool = Authority(tmp_path)
    async with serving(PeerTls(pool.member("a"))) as url:
        with pytest.raises(aiohttp.ClientError) as caught:
            await ask(url, PeerTls(pool.member("b")).client("c"))
    fault = trust_fault(caught.value)
    assert isinstance(fault, WrongName)
    assert fault.names == ("spiffe://understudy/cart/member/a",)


async def test_certificates_of_another_authority_are_refused_by_both_sides(tmp_path: Path) -> None:
    pool, other = Authority(tmp_path / "pool"), Authority(tmp_path / "other")
    stranger = other.member("a")
    misled = Identity(stranger.cert, stranger.key, pool.ca, TRUST)
    for server, client in ((stranger, pool.member("b")), (pool.member("a"), misled)):
        async with serving(PeerTls(server)) as url:
            for _ in range(20):
                with pytest.raises(aiohttp.ClientError) as caught:
                    await ask(url, PeerTls(client).client("a"))
                assert trust_fault(caught.value) is not None
                assert not isinstance(trust_fault(caught.value), WrongName)


async def test_a_client_without_a_certificate_is_told_so(tmp_path: Path) -> None:
    pool = Authority(tmp_path)
    bare = ssl.create_default_context(cafile=pool.ca)
    bare.check_hostname = False
    async with serving(PeerTls(pool.member("a"))) as url:
        with pytest.raises(aiohttp.ClientError) as caught:
            await ask(url, bare)
    assert "CERTIFICATE_REQUIRED" in str(trust_fault(caught.value))


async def test_a_port_that_speaks_no_tls_or_nobody_listens_at_is_no_matter_of_trust(tmp_path: Path) -> None:
    context = PeerTls(Authority(tmp_path).member("a")).client("b")
    runner = web.AppRunner(web.Application())
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        for where in (port, free_port()):
            with pytest.raises(aiohttp.ClientError) as caught:
                await ask(f"https://127.0.0.1:{where}/", context)
            assert trust_fault(caught.value) is None
    finally:
        await runner.cleanup()


async def test_renewed_files_are_used_by_the_next_handshake_and_broken_ones_are_not(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "pool"), Authority(tmp_path / "new")
    server, caller = PeerTls(old.member("a")), PeerTls(old.member("b"))
    renewed, newcomer = new.member("a"), PeerTls(new.member("b")).client("a")
    left_behind = PeerTls(old.issue("c", "DNS:c")).client("a")
    async with serving(server) as url:
        assert await ask(url, caller.client("a")) == "b"
        (tmp_path / "pool" / "a.pem").write_text("not a certificate")
        assert await ask(url, caller.client("a")) == "b"
        for file in (renewed.key, renewed.cert, renewed.ca):
            (tmp_path / "pool" / file.name).write_bytes(file.read_bytes())
        assert await ask(url, newcomer) == "b"
        with pytest.raises(aiohttp.ClientError):
            await ask(url, left_behind)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    pool = Authority(tmp_path)
    a, b = pool.member("a"), pool.member("b")
    with pytest.raises(BadTlsFiles, match=r"b\.key .*cannot be used together"):
        PeerTls(Identity(a.cert, b.key, pool.ca, TRUST))
    with pytest.raises(BadTlsFiles, match=r"gone\.pem: cannot be read"):
        PeerTls(Identity(tmp_path / "gone.pem", a.key, pool.ca, TRUST))


@pytest.mark.parametrize(
    ("names", "speaks"),
    [
        (["a"], True),
        (["x", "spiffe://understudy/cart/member/a"], True),
        (["spiffe://understudy/cart/node/a"], False),
        (["https://understudy/cart/member/a"], False),
        (["aa", "spiffe://understudy/cart/member/ba"], False),
        ([], False),
        (["spiffe://evil/cart/member/a"], False),
        (["spiffe://understudy/other/member/a"], False),
        (["spiffe://understudy.evil/cart/member/a"], False),
        (["spiffe://evil/understudy/cart/member/a"], False),
        (["spiffe://understudy/cart/extra/member/a"], False),
        (["SPIFFE://understudy/cart/member/a"], False),
    ],
)
def test_whom_a_certificate_speaks_for(names: list[str], speaks: bool) -> None:
    assert TRUST.speaks_for(names, "member", "a") is speaks


def test_another_trust_domain_counts_where_an_operator_names_it() -> None:
    theirs = Trust("cart", "corp.example")
    assert theirs.speaks_for(["spiffe://corp.example/cart/member/a"], "member", "a")
    assert not theirs.speaks_for(["spiffe://understudy/cart/member/a"], "member", "a")


def test_a_uri_is_nobodys_plain_name() -> None:
    foreign = "spiffe://evil/cart/member/a"
    assert not TRUST.speaks_for([foreign], "member", foreign)
    assert TRUST.kinds_of([foreign], members={foreign}, controls={foreign}) == frozenset()


async def test_a_member_of_another_pool_of_the_same_authority_is_not_the_one_looked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    other = authority.issue("a", "URI:spiffe://understudy/other/member/a")
    async with serving(PeerTls(other)) as url:
        with pytest.raises(aiohttp.ClientError) as caught:
            await ask(url, PeerTls(authority.member("b")).client("a"))
    assert isinstance(trust_fault(caught.value), WrongName)


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["spiffe://understudy/cart/member/anyone"], {"member"}),
        (["spiffe://understudy/cart/control/anyone"], {"control"}),
        (["spiffe://understudy/cart/operator/anyone", "a"], {"operator", "member"}),
        (["spiffe://understudy/cart/node/a"], set()),
        (["spiffe://member/a"], set()),
        (["spiffe://understudy/cart/member/"], set()),
        (["spiffe://understudy/cart/member/a/b"], set()),
        (["spiffe://understudy/other/member/a"], set()),
        (["spiffe://evil/cart/operator/anna"], set()),
        (["spiffe://evil/understudy/cart/control/control-1"], set()),
        (["a"], {"member"}),
        (["control-1"], {"control"}),
        (["front-1"], set()),
        ([], set()),
    ],
)
def test_what_a_certificate_says_its_owner_is(names: list[str], kinds: set[str]) -> None:
    assert TRUST.kinds_of(names, members={"a"}, controls={"control-1"}) == kinds
