"""The injector's own certificates: made, shared by replicas, renewed under traffic, and trusted at every moment."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.kubernetes.injection.harness import PLAIN, review
from tests.deploy.kubernetes.injection.shapes import pod
from tests.deploy.kubernetes.webhook.api_server import PLACE, SECRET, WEBHOOK, FakeApiServer, api_server
from tests.harness.certificates import Authority
from tests.harness.examples import examples
from tests.harness.waiting import free_port, until
from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.webhook.api_client import ApiClient, ApiServer
from understudy.deploy.kubernetes.webhook.cert_rotation import Keeper, hosts_of
from understudy.deploy.kubernetes.webhook.certificates import BadMaterial, Lifetimes, Material, end_of, next_material
from understudy.deploy.kubernetes.webhook.configuration import webhook_configuration
from understudy.deploy.kubernetes.webhook.injector import AUTO, InjectorSettings, running_injector
from understudy.deploy.kubernetes.webhook.tls_reload import CertificateFiles, ServingCertificate

HOSTS = hosts_of(PLACE)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
QUICK = Lifetimes(authority=3000, certificate=900, settle=60)


def serving_with(material: Material) -> ssl.SSLContext:
    serving = ServingCertificate()
    serving.take(material.certificate, material.key)
    return serving.context


def handshake(serving: ssl.SSLContext, trusted: bytes, host: str = HOSTS[0], *, strict: bool = True) -> None:
    """What happens between an API server that trusts ``trusted`` and a replica, in memory."""
    client = ssl.create_default_context(cadata=trusted.decode())
    if strict:
        client.verify_flags |= ssl.VERIFY_X509_STRICT
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(one, other, server_hostname=host),
        serving.wrap_bio(other, one, server_side=True),
    ]
    done: set[int] = set()
    for _ in range(10):
        for number, end in enumerate(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done.add(number)
    assert done == {0, 1}


def test_what_is_made_first_is_good_for_every_name_and_stays_as_it_is() -> None:
    now = dt.datetime.now(dt.UTC)
    material = next_material(None, HOSTS, now)
    for host in HOSTS:
        handshake(serving_with(material), material.trusted, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(serving_with(material), material.trusted, "elsewhere.svc")
    assert next_material(material, HOSTS, now) is material
    assert next_material(material, HOSTS, now + 59 * DAY) is material
    assert Material.decode(material.encode()) == material


def test_a_certificate_is_renewed_in_time_by_the_same_authority() -> None:
    first = next_material(None, HOSTS, NOON)
    renewed = next_material(first, HOSTS, NOON + 61 * DAY)
    assert renewed.authorities == first.authorities
    assert end_of(renewed.certificate) - end_of(first.certificate) == 61 * DAY
    other = next_material(first, (*HOSTS, "another.svc"), NOON + DAY)
    assert other.authorities == first.authorities
    assert other.certificate != first.certificate


def test_a_new_authority_is_trusted_before_it_signs_and_the_old_one_until_nobody_serves_with_it() -> None:
    at = NOON
    told = Lifetimes(authority=100 * 86400, certificate=90 * 86400, settle=300)
    made = next_material(None, HOSTS, at, told)
    at += 67 * DAY
    first = next_material(made, HOSTS, at, told)
    assert first.authorities == made.authorities  # a certificate that is due as well comes first
    assert first.certificate != made.certificate
    both = next_material(first, HOSTS, at, told)
    assert both.authorities[1:] == first.authorities
    assert both.certificate == first.certificate
    assert next_material(both, HOSTS, at + dt.timedelta(seconds=299), told) is both
    signed = next_material(both, HOSTS, at + dt.timedelta(seconds=300), told)
    assert signed.authorities == both.authorities
    assert signed.certificate != first.certificate
    assert next_material(signed, HOSTS, at + dt.timedelta(seconds=599), told) is signed
    alone = next_material(signed, HOSTS, at + dt.timedelta(seconds=600), told)
    assert alone.authorities == both.authorities[:1]
    assert alone.certificate == signed.certificate


@settings(max_examples=examples(10))
@given(st.lists(st.integers(20, 200), min_size=25, max_size=40), st.integers(0, 55))
def test_whoever_is_late_within_the_time_to_settle_still_trusts_what_is_served(steps: list[int], late: int) -> None:
    """A replica serves what it saw some time ago, an API server trusts what it saw at another time."""
    at, seen = NOON, [(NOON, next_material(None, HOSTS, NOON, QUICK))]
    for step in steps:
        at += dt.timedelta(seconds=step)
        while (after := next_material(seen[-1][1], HOSTS, at, QUICK)) is not seen[-1][1]:
            seen.append((at, after))
        past = [material for when, material in seen if when <= at - dt.timedelta(seconds=late)] or [seen[0][1]]
        for serving, trusting in ((past[-1], seen[-1][1]), (seen[-1][1], past[-1])):
            issuer = next(a for a in trusting.authorities if signed_by(serving.certificate, a))
            assert end_of(issuer) > at or end_of(serving.certificate) <= at


def signed_by(certificate: bytes, authority: bytes) -> bool:
    from understudy.deploy.kubernetes.webhook.certificates import _load, _signed

    return _signed(_load(certificate), _load(authority))


def test_what_is_not_ours_is_told() -> None:
    assert Material.decode({}) is None
    assert Material.decode({"tls.crt": "", "other": "x"}) is None
    good = next_material(None, HOSTS, NOON).encode()
    other = next_material(None, HOSTS, NOON).encode()
    for wrong in (
        {**good, "ca.crt": "not base64!"},
        {**good, "ca.crt": base64.b64encode(b"no pem").decode()},
        {**good, "tls.key": other["tls.key"]},
        {**good, "ca.key": other["ca.key"]},
        {"tls.crt": good["tls.crt"]},
    ):
        with pytest.raises(BadMaterial):
            Material.decode(wrong)


@pytest_asyncio.fixture
async def around(tmp_path: Path) -> AsyncIterator[tuple[FakeApiServer, ApiServer]]:
    async with api_server(tmp_path, webhook_configuration(PLACE, PLAIN)) as running:
        yield running


async def test_replicas_that_start_at_once_agree_on_one_authority(around: tuple[FakeApiServer, ApiServer]) -> None:
    fake, server = around
    async with aiohttp.ClientSession() as http:
        serving = [ServingCertificate() for _ in range(5)]
        keepers = [Keeper(ApiClient(server, http), PLACE, one) for one in serving]
        await asyncio.gather(*(keeper.look() for keeper in keepers))
    assert [keeper.trouble for keeper in keepers] == [""] * 5
    assert len({one.current for one in serving}) == 1
    assert fake.writes.count(SECRET) == 1
    assert fake.conflicts > 0
    material = Material.decode(fake.objects[SECRET]["data"])
    assert material is not None
    assert fake.bundles == [material.trusted]
    assert fake.objects[SECRET]["metadata"]["uid"] == "7a1f"


async def test_what_somebody_else_does_to_the_secret_or_the_webhook_is_mended(
    around: tuple[FakeApiServer, ApiServer],
) -> None:
    fake, server = around
    async with aiohttp.ClientSession() as http:
        keeper = Keeper(ApiClient(server, http), PLACE, ServingCertificate())
        await keeper.look()
        first = fake.bundles
        fake.put(WEBHOOK, webhook_configuration(PLACE, PLAIN))
        await keeper.look()
        assert fake.bundles == first
        fake.put(SECRET, {**fake.objects[SECRET], "data": {"tls.crt": "bm9uZQ=="}})
        await keeper.look()
        assert keeper.trouble == ""
        assert fake.bundles != first


async def test_what_is_served_stays_while_the_api_server_fails_and_trouble_is_told(
    around: tuple[FakeApiServer, ApiServer],
) -> None:
    fake, server = around
    async with aiohttp.ClientSession() as http:
        serving = ServingCertificate()
        keeper = Keeper(ApiClient(server, http), PLACE, serving)
        await keeper.look()
        before = serving.current
        fake.failing = 1
        await keeper.look()
        assert "500 etcdserver: request timed out" in keeper.trouble
        fake.token = "another"
        await keeper.look()
        assert "401" in keeper.trouble
        (server.account / "token").write_text("another")
        await keeper.look()
        assert keeper.trouble == ""
        del fake.objects[SECRET]
        await keeper.look()
        assert "404" in keeper.trouble
        assert serving.current == before


async def test_certificates_change_under_traffic_without_a_review_lost(
    around: tuple[FakeApiServer, ApiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, server = around
    monkeypatch.setattr("understudy.deploy.kubernetes.webhook.cert_rotation.LOOK", 0.1)
    monkeypatch.setattr("understudy.deploy.kubernetes.webhook.cert_rotation.FIRST_LOOKS", 0.1)
    port, ahead, answered = free_port(), 0.0, 0
    # Another replica, whose clock runs ahead and for which things live briefly, takes every step first.
    brief = Lifetimes(authority=150, certificate=120, settle=20)
    other = ServingCertificate()
    told = InjectorSettings(f"127.0.0.1:{port}", PLAIN, PLACE, self_signed=True, api_server=server)
    async with aiohttp.ClientSession() as http, aiohttp.ClientSession() as kept:
        keeper = Keeper(
            ApiClient(server, http),
            PLACE,
            other,
            wall=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead),
            lifetimes=brief,
        )
        await keeper.look()
        async with running_injector(told) as webhook:
            await until(lambda: not webhook.readiness.reason, 40, "the injector is ready")
            stop = asyncio.Event()

            async def ask(session: aiohttp.ClientSession, **headers: str) -> None:
                nonlocal answered
                async with session.post(
                    f"https://127.0.0.1:{port}/mutate",
                    data=json.dumps(review(pod())),
                    headers={"Content-Type": "application/json", **headers},
                    ssl=ssl.create_default_context(cadata=fake.bundles[0].decode()),
                    server_hostname=PLACE.host,
                ) as answer:
                    assert answer.status == 200
                    assert (await answer.json())["response"]["allowed"]
                    answered += 1

            async def reviews(session: aiohttp.ClientSession, **headers: str) -> None:
                while not stop.is_set():
                    await ask(session, **headers)

            tasks = [asyncio.create_task(reviews(http, Connection="close")), asyncio.create_task(reviews(kept))]
            authorities, served = [], set()
            try:
                for ahead in (0.0, 85.0, 101.0, 122.0, 143.0):  # noqa: B007 - the other replica's clock
                    await keeper.look()
                    assert keeper.trouble == ""
                    assert other.current is not None
                    wanted = ssl.PEM_cert_to_DER_cert(other.current[0].decode())

                    async def shown(wanted: bytes = wanted) -> bool:
                        return await shown_at(port, fake.bundles[0]) == wanted

                    await until(shown, 40, "the certificate is served")
                    assert not any(task.done() for task in tasks)
                    authorities.append(fake.bundles[0].count(b"BEGIN CERTIFICATE"))
                    served.add(other.current[0])
            finally:
                stop.set()
                await asyncio.gather(*tasks)
    assert authorities == [1, 1, 2, 2, 1]
    assert len(served) == 3
    assert answered > 10


async def shown_at(port: int, trusted: bytes) -> bytes:
    """The certificate that a new connection meets."""
    context = ssl.create_default_context(cadata=trusted.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=PLACE.host)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def test_the_form_is_that_of_the_clusters_version(around: tuple[FakeApiServer, ApiServer]) -> None:
    _, server = around
    listen = f"127.0.0.1:{free_port()}"
    told = InjectorSettings(listen, replace(PLAIN, form=AUTO), PLACE, self_signed=True, api_server=server)
    async with running_injector(told) as webhook:
        assert webhook.settings.form == "classic"  # it is a 1.28
        assert PLACE.namespace in webhook.settings.excluded_namespaces


async def test_files_that_are_replaced_are_served_next_and_files_that_do_not_fit_are_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")

    def put(name: str) -> None:
        identity = authority.issue(name, f"DNS:{PLACE.host}", use="serverAuth")
        for file, target in ((identity.key, "tls.key"), (identity.cert, "tls.crt")):
            shutil.copy(file, tmp_path / f"{target}.new")  # with its permissions
            (tmp_path / f"{target}.new").replace(tmp_path / target)

    with pytest.raises(DeployError, match=r"tls.crt and tls.key cannot be used"):
        CertificateFiles(tmp_path, ServingCertificate())
    put("first")
    serving = ServingCertificate()
    files = CertificateFiles(tmp_path, serving)
    first = serving.current
    put("second")
    files.look()
    second = serving.current
    assert second is not None
    assert first != second
    another = authority.issue("another", f"DNS:{PLACE.host}", use="serverAuth")
    for name, wrong in (("tls.key", b"no key"), ("tls.key", another.key.read_bytes()), ("tls.crt", b"no certificate")):
        (tmp_path / name).write_bytes(wrong)
        files.look()
        assert serving.current == second
        handshake(serving.context, authority.ca.read_bytes(), strict=False)
    for certificate, key in ((another.cert.read_bytes(), second[1]), (another.cert.read_bytes(), b"")):
        (tmp_path / "tls.crt").write_bytes(certificate)
        (tmp_path / "tls.key").write_bytes(key)
        files.look()
        assert serving.current == second
        handshake(serving.context, authority.ca.read_bytes(), strict=False)
    (tmp_path / "tls.key").unlink()
    files.look()
    assert serving.current == second
