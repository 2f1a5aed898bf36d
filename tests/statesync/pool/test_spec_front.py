"""The front of a pool's spec: what it may say, and which pools cannot be on one front Envoy."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.pool.front_node import cluster_of_front, pools_of_front
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_front import (
    Front,
    FrontTls,
    FrontUse,
    first_conflict,
    front_conflict,
    settled_fronts,
)
from understudy.statesync.pool.spec_reader import decode_spec, parse_spec

ONE, TWO = (FrontTls(cert=f"/tls/{name}.pem", key=f"/tls/{name}.key") for name in ("one", "two"))


def use(pool: str = "cart", *, tcp: bool = False, **front: object) -> FrontUse:
    return FrontUse(pool, Front.model_validate({"port": 80, **front}), tcp)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("front: {}", "front.port"),
        ("front: {port: 0}", "front.port"),
        ("front: {port: 80, hosts: [Shop.example]}", "front.hosts.0"),
        ("front: {port: 80, hosts: ['a.*']}", "front.hosts.0"),
        ("front: {port: 80, hosts: []}", "front.hosts"),
        ("front: {port: 80, hosts: [a, a]}", "hosts: one of them is there twice"),
        ("front: {port: 80, paths: [/cart/]}", "front.paths.0"),
        ("front: {port: 80, paths: ['/a/../b']}", "Envoy resolves"),
        ("front: {port: 80, path: [/cart]}", "did you mean 'paths'"),
        ("front: {port: 80, tls: {cert: tls.pem, key: /tls.key}}", "front.tls.cert"),
        ("protocol: tcp\nfront: {port: 80, hosts: [a]}", "front.hosts: a tcp pool has its port alone"),
        ("protocol: tcp\nfront: {port: 80, paths: [/a]}", "front.paths: a tcp pool has its port alone"),
        ("protocol: tcp\nfront: {port: 80, tls: {cert: /c, key: /k}}", "front.tls: front Envoys pass"),
    ],
)
def test_a_wrong_front_is_refused_by_name(wrong: str, said: str):
    with pytest.raises(SpecError) as refused:
        parse_spec(f"pool: cart\n{wrong}", where="cart.yaml")
    assert said in str(refused.value)


def test_a_front_is_stored_only_where_there_is_one():
    spec = parse_spec("pool: cart\nfront: {port: 443, hosts: ['*.example.com', a.b], paths: [/cart]}", where="x")
    assert decode_spec(spec.encode()) == spec
    assert "front" not in json.loads(PoolSpec(pool="cart").encode())


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        (use(), use("desk", port=81), ""),
        (use(paths=["/cart"]), use("desk"), ""),
        (use(hosts=["a"]), use("desk", hosts=["b"]), ""),
        (use(hosts=["a"]), use("desk"), ""),
        (use(hosts=["a", "b"]), use("desk", hosts=["b"]), "pool 'desk' has host b with path / on port 80"),
        (use(tcp=True), use("desk"), "a tcp pool needs a port of its own"),
        (use(), use("desk", tcp=True), "pool 'desk' has port 80, and a tcp pool has its port alone"),
        (use(hosts=["a"], tls=ONE), use("desk", hosts=["b"]), "without TLS"),
        (use(hosts=["a"]), use("desk", hosts=["b"], tls=ONE), "with TLS"),
        (use(hosts=["a"], tls=ONE), use("desk", hosts=["b"], tls=TWO), ""),
        (use(paths=["/a"], tls=ONE), use("desk", paths=["/b"], tls=TWO), "a host has one certificate"),
        (use(paths=["/a"], tls=ONE), use("desk", paths=["/b"], tls=ONE), ""),
    ],
)
def test_what_two_pools_cannot_have_together(mine: FrontUse, theirs: FrontUse, why: str):
    found = front_conflict(mine, theirs)
    assert why in found
    assert bool(why) == bool(found) == bool(front_conflict(theirs, mine))


uses = st.builds(
    use,
    st.sampled_from("abcdef"),
    tcp=st.just(False),
    port=st.sampled_from([80, 81]),
    hosts=st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, unique=True),
    paths=st.lists(st.sampled_from(["/", "/x", "/x/y"]), min_size=1, unique=True),
    tls=st.sampled_from([None, None, ONE, TWO]),
)


@given(st.dictionaries(st.integers(1, 50), uses, max_size=8), st.randoms(use_true_random=False))
def test_of_pools_that_conflict_the_earlier_one_has_its_place_in_whatever_order_they_are_known(by_revision, random):
    known = list({one.pool: (revision, one) for revision, one in by_revision.items()}.values())
    served, refused = settled_fronts(known)
    random.shuffle(known)
    assert settled_fronts(known) == (served, refused)
    assert served.keys() | refused.keys() == {one.pool for _, one in known}
    revisions = {one.pool: revision for revision, one in known}
    for one in served.values():
        assert not first_conflict(one, served.values())
    for _, one in known:
        if one.pool in refused:
            earlier = [other for other in served.values() if revisions[other.pool] < revisions[one.pool]]
            assert first_conflict(one, earlier) == refused[one.pool]


@pytest.mark.parametrize("pools", [(), ("cart",), ("cart", "desk")])
def test_an_envoy_names_its_pools(pools: tuple[str, ...]):
    assert pools_of_front(cluster_of_front(pools)) == pools


def test_a_pool_is_not_several():
    assert pools_of_front("cart") is None
