"""Who may see and change what: the rights file, and what follows from it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.telemetry.otlp.spans import StoredSpan
from understudy.xds.control.rights import ANYBODY, EVERY, NOBODY, Right, Rights, may, rights_table
from understudy.xds.control.visible_traces import of_pools

READER, OPERATOR, ADMIN = Right
TENANTS = st.sampled_from(["acme", "beta", "gamma"])
HELD = st.dictionaries(st.sampled_from(["acme", "beta", EVERY]), st.sampled_from(Right))


def digest_of(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


ANNA = {"name": "anna", "token": digest_of("anna's"), "tenants": {"acme": "operator"}}


@pytest.mark.parametrize(
    ("held", "tenant", "needed", "allowed"),
    [
        ({"acme": OPERATOR}, "acme", READER, True),
        ({"acme": OPERATOR}, "acme", OPERATOR, True),
        ({"acme": OPERATOR}, "acme", ADMIN, False),
        ({"acme": ADMIN}, "beta", READER, False),
        ({"acme": ADMIN}, "", READER, False),
        ({"acme": ADMIN}, EVERY, READER, False),
        ({EVERY: READER, "acme": ADMIN}, "acme", ADMIN, True),
        ({EVERY: READER, "acme": ADMIN}, "beta", OPERATOR, False),
        ({EVERY: OPERATOR}, "", OPERATOR, True),
    ],
)
def test_a_right_is_for_the_pools_of_a_tenant(held: dict[str, Right], tenant: str, needed: Right, allowed: bool):
    assert may(Rights("somebody", held), tenant, needed) is allowed


@given(HELD, TENANTS, st.sampled_from(Right))
def test_rights_for_one_tenant_say_nothing_about_another(held: dict[str, Right], tenant: str, needed: Right):
    without = {name: right for name, right in held.items() if name not in (tenant, EVERY)}
    assert not may(Rights("somebody", without), tenant, needed)
    assert not may(NOBODY, tenant, needed)
    assert may(ANYBODY, tenant, needed) == (needed == READER)


@given(HELD, TENANTS)
def test_a_right_includes_those_below_it(held: dict[str, Right], tenant: str):
    allowed = [may(Rights("somebody", held), tenant, needed) for needed in Right]
    assert allowed == sorted(allowed, reverse=True)


def test_callers_are_found_by_the_digest_of_their_token_or_a_name_of_their_certificate():
    table = rights_table([ANNA, {"name": "ci", "certificate": "spiffe://x/y/operator/ci", "tenants": {"*": "reader"}}])

    anna = table.by_token(hashlib.sha256(b"anna's").digest())
    assert anna == Rights("anna", {"acme": OPERATOR}, proved=True)
    assert table.by_token(hashlib.sha256(b"other").digest()) is None
    assert table.by_token(b"") is None
    assert table.by_certificate(("cart-1", "spiffe://x/y/operator/ci")) == Rights("ci", {EVERY: READER}, proved=True)
    assert table.by_certificate(("spiffe://x/y/operator/c", "")) is None


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "a list of entries"),
        ([], "a list of entries"),
        (["anna"], "entry 1"),
        ([ANNA, {**ANNA, "tenant": "acme"}], "entry 2"),
        ([{**ANNA, "name": ""}], "entry 1: name"),
        ([{**ANNA, "certificate": "x"}], "entry 1: give either token or certificate"),
        ([{"name": "anna", "tenants": {"acme": "reader"}}], "entry 1: give either token or certificate"),
        ([{**ANNA, "token": "a-plain-token-of-anna"}], "entry 1: token: sha256:"),
        ([{**ANNA, "tenants": {}}], "entry 1: tenants: name at least one"),
        ([{**ANNA, "tenants": {"No Name": "reader"}}], "'No Name' is not the name of a tenant"),
        ([{**ANNA, "tenants": {"acme": "owner"}}], "'owner' is not one of reader, operator, admin"),
        ([ANNA, {**ANNA, "name": "otto"}], "entry 2: the same token or certificate as entry 1"),
    ],
)
def test_a_rights_file_with_a_fault_is_refused_by_entry(document: object, told: str):
    with pytest.raises(ValueError, match=told.replace("*", ".")) as caught:
        rights_table(document)
    assert "plain-token" not in str(caught.value)


def span(trace: str, name: str, pool: str = "", *, resource: str = "") -> StoredSpan:
    key = "understudy.pool"
    return StoredSpan(trace, name, "", name, 1, 2, {key: pool} if pool else {}, {key: resource} if resource else {})


def test_a_trace_is_shown_to_those_who_may_see_every_pool_that_it_names():
    mine = [span("1", "a", "cart"), span("1", "b"), span("2", "c", resource="cart")]
    others = [span("3", "d", "desk"), span("4", "e"), span("5", "f", "cart"), span("5", "g", "desk")]

    assert of_pools([*mine, *others], {"cart"}) == mine
    assert of_pools([*mine, *others], None) == [*mine, *others]
    assert of_pools([*mine, *others], set()) == []
