"""The merge tool keeps istiod's rules, on which everything else here rests."""

from datetime import timedelta

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import ConfigSource
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager

from tests.deploy.kubernetes.istio.envoyfilter import Proxy, effective, merge, patch_listener, value_of
from tests.deploy.kubernetes.istio.meshlike import HCM

NAME = "envoy.filters.network.http_connection_manager"


def merged(kind, into, patch):
    message = kind.from_dict(into)
    merge(message, kind.from_dict(patch))
    return message


def test_lists_grow_and_single_values_are_replaced():
    got = merged(
        Cluster,
        {"name": "a", "health_checks": [{"timeout": "1s"}], "lb_policy": "LEAST_REQUEST"},
        {"health_checks": [{"timeout": "2s"}], "lb_policy": "RANDOM"},
    )
    assert [check.timeout for check in got.health_checks] == [timedelta(seconds=1), timedelta(seconds=2)]
    assert (got.name, got.lb_policy.name) == ("a", "RANDOM")


def test_a_duration_is_replaced_as_a_whole_even_by_nothing():
    got = merged(Cluster, {"connect_timeout": "1.250s"}, {"connect_timeout": "0s"})
    assert got.connect_timeout == timedelta()


def test_what_is_false_is_not_there_and_replaces_nothing():
    got = merged(HttpConnectionManager, {"use_remote_address": True}, {"use_remote_address": False})
    assert got.use_remote_address is True
    assert merged(HttpConnectionManager, {}, {"use_remote_address": False}).use_remote_address is False


def test_one_source_takes_the_place_of_another():
    patch = {"api_config_source": {"api_type": "DELTA_GRPC"}, "initial_fetch_timeout": "10s"}
    got = merged(ConfigSource, {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}, patch)
    assert got.ads is None
    assert got.api_config_source is not None
    assert (got.initial_fetch_timeout, got.resource_api_version.name) == (timedelta(seconds=10), "V3")


def listener(*ports: int, name: str = "virtualInbound"):
    chains = [
        {
            "filter_chain_match": {"destination_port": port},
            "filters": [{"name": NAME, "typed_config": {"@type": HCM, "stat_prefix": str(port)}}],
        }
        for port in ports
    ]
    return Listener.from_dict(
        {"name": name, "address": {"socket_address": {"port_value": 15006}}, "filter_chains": chains}
    )


def patch(port: int = 8080):
    value = {"name": NAME, "typed_config": {"@type": HCM, "server_name": "patched"}}
    match = {"context": "SIDECAR_INBOUND", "listener": {"portNumber": port, "filterChain": {"filter": {"name": NAME}}}}
    return {"applyTo": "NETWORK_FILTER", "match": match, "patch": {"operation": "MERGE", "value": value}}


def names(of: Listener) -> list[str]:
    configs = [chain.filters[0].typed_config for chain in of.filter_chains]
    return [config.unpack().server_name for config in configs if config]  # type: ignore[union-attr]


def test_the_port_means_the_chain_in_a_virtual_listener_and_the_listener_elsewhere():
    inbound, ordinary = listener(8080, 9090), listener(8080, 9090, name="0.0.0.0_15006")
    for one in (inbound, ordinary):
        patch_listener(one, [patch(8080)])
    assert (names(inbound), names(ordinary)) == (["patched", ""], ["", ""])
    patch_listener(ordinary, [patch(15006)])
    assert names(ordinary) == ["patched", "patched"]


def test_a_field_that_does_not_exist_is_an_error():
    wrong = patch()
    wrong["patch"]["value"]["typed_config"]["rdz"] = {}
    with pytest.raises(KeyError, match="rdz"):
        value_of(wrong)


def test_filters_are_chosen_by_namespace_and_labels_and_ordered_by_priority():
    def one(name: str, namespace: str, priority: int, **labels: str):
        spec = {
            "priority": priority,
            "workloadSelector": {"labels": labels},
            "configPatches": [{**patch(), "id": name}],
        }
        return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}

    filters = [
        one("late", "shop", 10, app="web"),
        one("elsewhere", "blog", 0, app="web"),
        one("own", "shop", 0, app="web"),
        one("others", "shop", 0, app="cart"),
        one("root", "istio-system", 0, app="web"),
    ]
    proxy = Proxy("SIDECAR_INBOUND", "shop", {"app": "web", "version": "2"})
    assert [found["id"] for found in effective(filters, proxy)] == ["root", "own", "late"]
    assert effective(filters, Proxy("GATEWAY", "shop", {"app": "web"})) == []
