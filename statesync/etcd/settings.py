"""How to reach etcd: the settings that every process of a pool takes."""

from typing import TYPE_CHECKING

import msgspec

from understudy.statesync.tls.pem_files import PemFiles

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EtcdClient

DEFAULT_ENDPOINT = "127.0.0.1:2379"


def address_of(endpoint: str) -> str:
    """``host:port`` of an endpoint, which may be written as a URL."""
    return endpoint.rpartition("://")[2].rstrip("/")


class EtcdSettings(msgspec.Struct, frozen=True):
    """``endpoints`` are ``host:port``; ``tls`` and the user are optional.

    ``leader`` is the endpoint of the member that is to lead etcd; '' for whoever is elected.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    tls: PemFiles | None = None
    username: str | None = None
    password: str | None = None
    leader: str = ""

    def client(self, *, share_watches: bool = False) -> "EtcdClient":
        """A new client; close it. With ``share_watches`` its watches share one stream.

        Raises ``ValueError`` or ``OSError`` if the settings cannot be used.
        """
        from understudy.statesync.etcd.client import EtcdClient  # brings gRPC along, which settings do not need

        return EtcdClient(
            self.endpoints,
            tls=self.tls,
            username=self.username,
            password=self.password,
            share_watches=share_watches,
        )
