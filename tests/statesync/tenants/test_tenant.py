"""What a tenant's pools may have together, and which pools are its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Limits
from understudy.statesync.tenants.tenant import (
    QUOTAS,
    Tenant,
    decode_tenant,
    encode_tenant,
    fault_of,
    faults,
    overlap,
    tenant_of,
    used,
)

NAMES = st.text("ab-", min_size=1, max_size=4).filter(lambda name: name[0] != "-")
OWN = st.lists(st.builds(str.__add__, NAMES, st.sampled_from(["", "*"])), max_size=3).map(tuple)


def spec(pool: str = "acme-cart", slots: int = 16, **limits: int) -> PoolSpec:
    return PoolSpec(pool=pool, tenant="acme", slots=slots, limits=Limits(**{"sessions": 100, **limits}))


@pytest.mark.parametrize(
    ("quotas", "wanted", "others", "told"),
    [
        ({}, spec(), [spec("acme-desk")], []),
        ({"pools": 2, "slots": 32, "sessions": 200}, spec(), [spec("acme-desk")], []),
        ({"pools": 1}, spec(), [spec("acme-desk")], ["tenant: acme may have 1 pools, and has acme-desk"]),
        (
            {"slots": 31},
            spec(),
            [spec("acme-desk")],
            ["slots: 16 is too much: tenant acme may have 31 slots, its other pools have 16, so 15 are left"],
        ),
        ({"sessions": 150}, spec(), [spec("acme-desk")], ["limits.sessions: 100 is too much", "so 50 are left"]),
        ({"bytes": 10}, spec(), [], ["limits.total_bytes: not set, and has to say the pool's part", "10 are left"]),
        ({"writes": 9}, spec(writes_per_second=10), [], ["limits.writes_per_second: 10 is too much"]),
        ({"requests": 10}, spec(requests_per_second=10), [], []),
        ({"own": ("acme-*",)}, spec("cart"), [], ["has the pools acme-*, and 'cart' is none of them"]),
        ({"pools": 0, "slots": 0}, spec(), [], ["may have 0 pools, and has none", "slots: 16 is too much"]),
    ],
)
def test_a_pool_beyond_its_tenants_quota_is_told_its_part_and_what_is_left(
    quotas: dict[str, int], wanted: PoolSpec, others: list[PoolSpec], told: list[str]
) -> None:
    found = "\n".join(faults(Tenant("acme", **quotas), wanted, others, None))
    assert all(text in found for text in told)
    assert bool(found) == bool(told)


def test_a_running_pool_keeps_what_it_has_when_the_quota_is_lowered() -> None:
    lowered, others = Tenant("acme", pools=1, slots=8, sessions=100), [spec("acme-desk")]
    assert faults(lowered, spec(), others, spec()) == []
    assert faults(lowered, spec(sessions=99), others, spec()) == []
    (told,) = faults(lowered, spec(sessions=101), others, spec())
    assert "limits.sessions: 101 is too much" in told
    assert len(faults(lowered, spec(), others, spec().model_copy(update={"tenant": "beta"}))) == 3


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 400)), max_size=12), st.integers(0, 100))
def test_pools_that_are_admitted_one_by_one_never_have_more_than_the_quota(
    wanted: list[tuple[int, int]], limit: int
) -> None:
    tenant = Tenant("acme", pools=5, slots=limit, sessions=limit * 10)
    admitted: list[PoolSpec] = []
    for number, (slots, sessions) in enumerate(wanted):
        one = spec(f"acme-{number}", slots, sessions=sessions)
        if not faults(tenant, one, admitted, None):
            admitted.append(one)
    sums = used(admitted)
    assert all(sums[what] <= most for what, most in tenant.quotas.items())


@pytest.mark.parametrize(
    ("pool", "said", "tenant", "faulty"),
    [
        ("acme-cart", "acme", "acme", False),
        ("acme-cart", None, "acme", True),
        ("acme-cart", "beta", "acme", True),
        ("cart", None, "", False),
        ("cart", "beta", "beta", False),
        ("cart", "unknown", "unknown", False),
    ],
)
def test_a_name_that_a_tenant_owns_decides_whose_pool_it_is(
    pool: str, said: str | None, tenant: str, faulty: bool
) -> None:
    tenants = {one.tenant: one for one in (Tenant("acme", own=("acme-*",)), Tenant("beta"))}
    found, fault = tenant_of(pool, said, tenants)
    assert (found, bool(fault)) == (tenant, faulty)


@given(OWN, OWN, NAMES)
def test_tenants_overlap_if_both_own_a_pool(mine: tuple[str, ...], theirs: tuple[str, ...], pool: str) -> None:
    one, other = Tenant("one", own=mine), Tenant("other", own=theirs)
    if one.owns(pool) and other.owns(pool):
        assert overlap(one, other)
        assert overlap(other, one)


@given(st.builds(Tenant, st.just("acme"), *[st.none() | st.integers(0, 10**15)] * len(QUOTAS), st.just(("a*", "b"))))
def test_a_record_comes_back_as_it_was_written(tenant: Tenant) -> None:
    assert decode_tenant(encode_tenant(tenant)) == tenant


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b'{"pools":1}',
        b'{"tenant":"a","pools":-1}',
        b'{"tenant":"a","pools":"5"}',
        b'{"tenant":"a","own":["A"]}',
    ],
)
def test_a_record_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_tenant(value)


def test_names_of_pools_are_checked() -> None:
    assert fault_of(Tenant("acme", own=("*",)))
    assert fault_of(Tenant("acme", own=("a*b",)))
    assert not fault_of(Tenant("acme", own=("acme-*", "cart")))
