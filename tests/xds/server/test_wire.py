"""Our envelopes against the complete generated ones, and against bytes of any kind."""

import contextlib
from datetime import timedelta

import envoy_data_plane.envoy.service.discovery.v3 as complete
import pytest
from envoy_data_plane.envoy.config.core.v3 import Locality, Node
from envoy_data_plane.google.protobuf import Any, Struct, Value
from envoy_data_plane.google.rpc import Status
from hypothesis import given
from hypothesis import strategies as st

from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types, wire
from understudy.xds.server.references import UnreadableResource, read_references

NODE = Node(
    id="front-1",
    cluster="cart",
    metadata=Struct(
        fields={
            "understudy": Value(
                struct_value=Struct(
                    fields={"listen": Value(string_value="127.0.0.1:10000"), "n": Value(number_value=2)}
                )
            )
        }
    ),
    locality=Locality(region="eu", zone="eu-1", sub_zone="rack-7"),
    user_agent_name="envoy",
    user_agent_version="1.40.0",
    client_features=["xds.config.supports-resource-ttl", "other"],
)


def test_a_request_that_others_encode_is_read_field_by_field():
    encoded = bytes(
        complete.DiscoveryRequest(
            version_info="v1",
            node=NODE,
            resource_names=["a", "b"],
            type_url=types.CLUSTER,
            response_nonce="n1",
            error_detail=Status(code=3, message="no good"),
        )
    )
    request = wire.read_request(encoded)
    assert request == wire.Request(
        type_url=types.CLUSTER,
        node=wire.Node(
            id="front-1",
            cluster="cart",
            metadata={"understudy": {"listen": "127.0.0.1:10000", "n": 2.0}},
            region="eu",
            zone="eu-1",
            sub_zone="rack-7",
            user_agent="envoy",
            user_agent_version="1.40.0",
            features=frozenset({"xds.config.supports-resource-ttl", "other"}),
        ),
        nonce="n1",
        error="no good",
        version="v1",
        names=("a", "b"),
    )


def test_a_delta_request_that_others_encode_is_read_field_by_field():
    encoded = bytes(
        complete.DeltaDiscoveryRequest(
            node=NODE,
            type_url=types.ENDPOINTS,
            resource_names_subscribe=["a"],
            resource_names_unsubscribe=["b", "*"],
            initial_resource_versions={"c": "1", "d": "2"},
            response_nonce="n2",
            error_detail=Status(code=13),
        )
    )
    request = wire.read_delta_request(encoded)
    assert (request.type_url, request.nonce, request.node.id) == (types.ENDPOINTS, "n2", "front-1")
    assert (request.subscribe, request.unsubscribe, request.held) == (("a",), ("b", "*"), {"c": "1", "d": "2"})
    assert request.error == "rejected with code 13 and no text"


def test_a_request_without_error_detail_is_no_refusal_and_without_node_has_none():
    request = wire.read_request(bytes(complete.DiscoveryRequest(type_url="t")))
    assert request.error is None
    assert request.node is None


def test_a_response_of_ours_is_read_by_others():
    value = bytes(cluster("a"))
    shared = wire.response(types.CLUSTER, "v1", [wire.any_of(types.CLUSTER, value)])
    for nonce in ("n1", "n2"):
        read = complete.DiscoveryResponse.parse(wire.with_nonce(shared, nonce))
        assert (read.version_info, read.type_url, read.nonce) == ("v1", types.CLUSTER, nonce)
        assert [one.unpack().name for one in read.resources] == ["a"]


def test_a_delta_response_of_ours_is_read_by_others():
    packed = wire.any_of(types.CLUSTER, bytes(cluster("a")))
    resources = [wire.resource_of("a", "h1", packed), wire.resource_of("b", "h2", None, ttl=2.5)]
    shared = wire.delta_response(types.CLUSTER, "v1", resources, ["gone", "away"])
    read = complete.DeltaDiscoveryResponse.parse(wire.with_nonce(shared, "n1"))
    assert (read.system_version_info, read.type_url, read.nonce) == ("v1", types.CLUSTER, "n1")
    assert read.removed_resources == ["gone", "away"]
    assert [(one.name, one.version) for one in read.resources] == [("a", "h1"), ("b", "h2")]
    assert read.resources[0].resource.unpack() == cluster("a")
    assert read.resources[1].resource is None
    assert read.resources[1].ttl == timedelta(seconds=2.5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (wire.DiscoveryRequest, complete.DiscoveryRequest),
        (wire.DiscoveryResponse, complete.DiscoveryResponse),
        (wire.DeltaDiscoveryRequest, complete.DeltaDiscoveryRequest),
        (wire.DeltaDiscoveryResponse, complete.DeltaDiscoveryResponse),
    ],
)
def test_every_field_we_declare_has_the_public_number(ours: type, theirs: type):
    public = {name: meta.number for name, meta in numbers_of(theirs).items()}
    for field in ours.DESCRIPTOR.fields:
        assert public[field.name] == field.number, field.name


def numbers_of(message: type):
    return {name: field.metadata["betterproto"] for name, field in message.__dataclass_fields__.items()}


def test_a_long_name_and_a_large_resource_keep_their_length():
    name, value = "n" * 300, b"\x0a\x03abc" * 100_000
    shared = wire.delta_response("t", "v", [wire.resource_of(name, "h", wire.any_of("t", value))], ["r" * 20_000])
    read = wire.DeltaDiscoveryResponse.FromString(wire.with_nonce(shared, "n"))
    assert read.resources[0].name == name
    assert read.resources[0].resource.value == value
    assert read.removed_resources == ["r" * 20_000]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(data: bytes):
    for read in (wire.read_request, wire.read_delta_request):
        with contextlib.suppress(wire.Malformed):
            assert isinstance(read(data), wire.Request)


@given(st.floats())
def test_any_number_in_the_metadata_is_taken_or_malformed(number: float):
    node = Node(id="n", metadata=Struct(fields={"x": Value(number_value=number)}))
    with contextlib.suppress(wire.Malformed):
        assert wire.read_request(bytes(complete.DiscoveryRequest(node=node))).node.id == "n"


def test_references_are_read_from_resources_of_each_type():
    assert read_references(types.CLUSTER, "a", bytes(cluster("a"))).endpoints == {"a"}
    assert read_references(types.ENDPOINTS, "a", bytes(endpoints("a", 1))).endpoints == frozenset()
    assert read_references(types.ROUTES, "r", bytes(routes("r", "a"))).clusters == {"a"}
    assert read_references(types.LISTENER, "l", bytes(listener("l", 1, "r"))).routes == {"r"}


@given(st.sampled_from([types.CLUSTER, types.LISTENER, types.ROUTES, types.ENDPOINTS, types.SECRET]), st.binary())
def test_any_bytes_are_a_resource_or_unreadable(type_url: str, data: bytes):
    with contextlib.suppress(UnreadableResource):
        assert read_references(type_url, "a", data) is not None


def test_an_extension_with_broken_bytes_is_unreadable():
    made = listener("l", 1, "r")
    made.filter_chains[0].filters[0].typed_config = Any(
        type_url=made.filter_chains[0].filters[0].typed_config.type_url, value=b"\xff\xff"
    )
    with pytest.raises(UnreadableResource):
        read_references(types.LISTENER, "l", bytes(made))
