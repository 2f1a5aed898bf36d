"""How a front Envoy speaks TLS to the control servers: what its bootstrap says, and the files beside it.

Pure. Certificates come to Envoy as secrets out of files, since only those it takes up again when they are renewed
(by a rename into their place). The control server must show a certificate of the pool's authority that bears its
own address, so that no other holder of a certificate can pose as one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.proxy.front.addresses import is_ip
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.pem_files import PemFiles

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_OWN, _TRUST = "own", "trust"


def secret_files(tls: PemFiles) -> dict[str, dict[str, Any]]:
    """The files that must stand beside the bootstrap: name -> content, to be written as JSON."""
    cert, key = tls.pair
    own = {
        "certificate_chain": {"filename": str(cert.absolute())},
        "private_key": {"filename": str(key.absolute())},
    }
    trust = {"trusted_ca": {"filename": str(tls.ca.absolute())}}
    secrets = {_OWN: {"tls_certificate": own}, _TRUST: {"validation_context": trust}}
    return {
        f"{name}.json": {"resources": [{"@type": f"{_TLS}.Secret", "name": name, **secret}]}
        for name, secret in secrets.items()
    }


def transport_socket(directory: Path, xds_addresses: Sequence[str]) -> Mapping[str, Any]:
    """The transport socket of the cluster of control servers; ``directory`` holds the :func:`secret_files`."""

    def from_file(name: str) -> dict[str, Any]:
        source = {"path_config_source": {"path": str(directory.absolute() / f"{name}.json")}}
        return {"name": name, "sds_config": {**source, "resource_api_version": "V3"}}

    hosts = dict.fromkeys(split_address(address)[0] for address in xds_addresses)
    matchers = [{"san_type": "IP_ADDRESS" if is_ip(host) else "DNS", "matcher": {"exact": host}} for host in hosts]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_TLS}.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [from_file(_OWN)],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": matchers},
                    "validation_context_sds_secret_config": from_file(_TRUST),
                },
            },
        },
    }
