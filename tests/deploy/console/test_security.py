"""Who may see the console, and who may act: other sites never, strangers only where etcd asks for no login."""

import pytest
from aiohttp.test_utils import make_mocked_request

from understudy.deploy.console.security import ACT_HEADER, ACT_VALUE, Access, ConsoleSettings
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.xds.control.http_access import RIGHTS
from understudy.xds.control.rights import NOBODY, Grant, Rights

LOOPBACK = "127.0.0.1:18001"
ACT = {ACT_HEADER: ACT_VALUE}


def access(http: str = LOOPBACK, etcd: EtcdSettings | None = None, **options) -> Access:
    return Access(ConsoleSettings(http, **options), [etcd or EtcdSettings()])


def request(host: str = LOOPBACK, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("POST", "/console/cart/act", headers={"Host": host, **named})


@pytest.mark.parametrize("host", [LOOPBACK, "localhost:18001", "[::1]:18001", "10.0.0.7", "console.example"])
def test_its_own_names_are_known(host):
    assert access(hosts=("console.example",)).knows_host(request(host))


@pytest.mark.parametrize("host", ["evil.example:18001", "127.0.0.1.evil.example", "", "localhost.evil.example"])
def test_other_names_are_not_since_any_name_may_lead_to_loopback(host):
    assert not access().knows_host(request(host))
    assert not access().is_own_page(request(host, Origin=f"http://{host}"))


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"Origin": f"http://{LOOPBACK}", "Sec_Fetch_Site": "same-origin"}, True),
        ({"Origin": f"https://{LOOPBACK}"}, True),
        ({"Origin": f"http://{LOOPBACK}", "Sec_Fetch_Site": "same-site"}, False),
        ({"Origin": f"http://{LOOPBACK}", "Sec_Fetch_Site": "cross-site"}, False),
        ({"Origin": "http://127.0.0.1:9999", "Sec_Fetch_Site": "same-origin"}, False),
        ({"Origin": "null", "Sec_Fetch_Site": "same-origin"}, False),
        ({"Sec_Fetch_Site": "same-origin"}, False),
    ],
)
def test_a_page_is_its_own_by_what_the_browser_says(headers, own):
    assert access().is_own_page(request(**headers)) is own


def rights(right: str, tenant: str = "acme") -> Rights:
    return Grant("anna", {tenant: right}, token="sha256:" + 64 * "0").rights()


def test_an_act_needs_the_header_that_only_scripts_set():
    assert access().refusal(request(**ACT), "") == ""
    assert ACT_HEADER in access().refusal(request(), "")


@pytest.mark.parametrize(
    ("http", "etcd", "why"),
    [
        ("10.0.0.7:18001", EtcdSettings(), "not on loopback"),
        (LOOPBACK, EtcdSettings(username="cart"), "etcd asks for a login"),
    ],
)
def test_acts_are_off_where_the_port_would_give_more_than_its_caller_has(http, etcd, why):
    assert why in access(http, etcd).refusal(request(**ACT), "")


@pytest.mark.parametrize(
    ("held", "tenant", "allowed"),
    [
        (rights("operator"), "acme", True),
        (rights("admin", "*"), "acme", True),
        (rights("reader"), "acme", False),
        (rights("operator"), "other", False),
        (rights("operator"), "", False),
        (NOBODY, "acme", False),
    ],
)
def test_with_a_rights_file_operators_act_on_their_tenants_pools(held, tenant, allowed):
    asked = request("10.0.0.7:18001", **ACT)
    asked[RIGHTS] = held
    refusal = Access(ConsoleSettings("10.0.0.7:18001"), [EtcdSettings(username="u")], guarded=True).refusal(
        asked, tenant
    )
    assert (refusal == "") is allowed
    assert allowed or "no right 'operator'" in refusal
