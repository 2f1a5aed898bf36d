"""How a control server is started."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.access import START_TIMEOUT
from understudy.statesync.tls.identity import DOMAIN, Trust
from understudy.statesync.tls.pem_files import PemFiles
from understudy.xds.control.controller import Timing
from understudy.xds.control.process_lease import LEASE_SECONDS

MAX_STREAM_AGE = 1800.0
SETTLED_SECONDS = 10.0


class ControlSettings(msgspec.Struct, frozen=True):
    """How a control server is started.

    Addresses are ``host:port``; port 0 takes a free one.

    Attributes:
        pools: the pools to serve; none for all that etcd has, now and later.
        clusters: several etcd clusters by name, instead of ``etcd``; the pools are found in them.
        grpc: without ``tls``, and unless ``insecure``, it must be on loopback.
        http: it must be on loopback unless ``open_http``, ``insecure`` or ``rights`` with ``http_tls``.
        otlp_http: takes OTLP over HTTP, under the rules of the gRPC port, which takes OTLP in any case; empty for none.
        advertise_grpc: what members and Envoys connect to, if that is not the listening address.
        advertise_http: what tools connect to, if that is not the listening address.
        traces: the SQLite file of the trace store.
        tls: makes the gRPC port ask for certificates.
        http_tls: the port ``http`` speaks TLS with the certificate of ``tls``, and takes clients' certificates.
        rights: the file that says who may see which pools at ``http``; without one every caller may read.
        trust_domain: that of the SPIFFE ids in these certificates.
        max_stream_age: seconds (give or take a fifth) after which an xDS stream is ended, so that Envoys spread over
            the replicas.
        settled: seconds for which another replica must have served a pool before it may be given the lead.
        etcd_patience: how long, in seconds, etcd may be silent at the start.
    """

    pools: tuple[str, ...]
    name: str
    etcd: EtcdSettings = msgspec.field(default_factory=EtcdSettings)
    clusters: Mapping[str, EtcdSettings] = msgspec.field(default_factory=dict)
    grpc: str = "127.0.0.1:18000"
    http: str = "127.0.0.1:18001"
    otlp_http: str = ""
    advertise_grpc: str = ""
    advertise_http: str = ""
    traces: str | Path = ":memory:"
    tls: PemFiles | None = None
    http_tls: bool = False
    rights: Path | None = None
    trust_domain: str = DOMAIN
    insecure: bool = False
    open_http: bool = False
    max_stream_age: float = MAX_STREAM_AGE
    lease: int = LEASE_SECONDS
    settled: float = SETTLED_SECONDS
    etcd_patience: float = START_TIMEOUT
    timing: Timing = msgspec.field(default_factory=Timing)

    @property
    def only(self) -> str:
        """The one pool that this process is for; '' if it is for several."""
        return self.pools[0] if len(self.pools) == 1 and not self.clusters else ""

    @property
    def etcds(self) -> Mapping[str, EtcdSettings]:
        """The etcd clusters by name; the only one has none."""
        return self.clusters or {"": self.etcd}

    def trust_clients(self, pool: str) -> Trust:
        """Whose certificates count for streams of ``pool``.

        In a process with several pools a plain name counts for nothing: it could be a member's in each of them.
        """
        return Trust(pool, self.trust_domain, spiffe_only=not self.only)
