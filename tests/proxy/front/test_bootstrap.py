"""The bootstrap as data, and that Envoy takes it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from understudy.proxy.front.binary import find_envoy
from understudy.proxy.front.bootstrap import XDS_CLUSTER, bootstrap
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.telemetry.tracing.names import COUNT_SERVED

SETTINGS: dict[str, Any] = {
    "node_id": "front-1",
    "pool": "cart",
    "listen": "127.0.0.1:10000",
    "xds_addresses": ["127.0.0.1:18000", "127.0.0.1:18001"],
}


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("servers", [["127.0.0.1:18000"], ["control-1.understudy:18000", "[::1]:18000"]])
def test_envoy_accepts_it(tmp_path: Path, delta: bool, servers: list[str]):
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(bootstrap(**{**SETTINGS, "xds_addresses": servers}, delta=delta)))
    command = [find_envoy(), "--mode", "validate", "--config-path", path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("pools", [(), ("cart", "desk")])
def test_envoy_accepts_that_of_several_pools(tmp_path: Path, pools: tuple[str, ...]):
    made = bootstrap(**{**SETTINGS, "pool": cluster_of_front(pools), "listen": "0.0.0.0:0"})
    assert made["node"]["metadata"]["understudy"]["listen"] == "0.0.0.0:0"
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(made))
    command = [find_envoy(), "--mode", "validate", "--config-path", path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_node_says_who_it_is_and_where_it_listens():
    assert bootstrap(**SETTINGS)["node"] == {
        "id": "front-1",
        "cluster": "cart",
        "metadata": {"understudy": {"listen": "127.0.0.1:10000", "telemetry": "understudy-xds"}},
    }


def test_an_envoy_with_a_site_names_it_and_counts_the_requests_of_each_member():
    made = bootstrap(**SETTINGS, site="east")
    assert made["node"]["metadata"]["understudy"]["site"] == "east"
    assert "site:east" in json.dumps(made["stats_sinks"])
    of_all = json.dumps(bootstrap(**SETTINGS)["stats_sinks"])
    assert [COUNT_SERVED in text for text in (json.dumps(made["stats_sinks"]), of_all)] == [True, False]


def test_all_control_servers_are_endpoints_of_one_cluster():
    (cluster,) = bootstrap(**SETTINGS)["static_resources"]["clusters"]
    hosts = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert cluster["name"] == XDS_CLUSTER
    assert [host["endpoint"]["address"]["socket_address"]["port_value"] for host in hosts] == [18000, 18001]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"xds_addresses": []}, "at least one control server"),
        ({"xds_addresses": ["127.0.0.1"]}, "not HOST:PORT"),
        ({"listen": "localhost:10000"}, "IP addresses, not on names"),
        ({"listen": "127.0.0.1:0"}, "clients need a port"),
        ({"admin": "9901"}, "not HOST:PORT"),
        ({"pool": cluster_of_front(()), "listen": "0.0.0.0:0", "site": "east"}, "prefers no site"),
    ],
)
def test_what_cannot_work_is_refused_in_words(wrong: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        bootstrap(**{**SETTINGS, **wrong})
