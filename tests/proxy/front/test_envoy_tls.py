"""A real Envoy takes up certificates that Kubernetes renews in a volume: all files at once, by a link."""

import json

from tests.harness.certificates import Authority
from tests.harness.envoy import running_envoy
from tests.harness.waiting import free_port, until
from understudy.proxy.front.bootstrap import bootstrap
from understudy.proxy.front.envoy_tls import secret_files, transport_socket
from understudy.statesync.tls.pem_files import PemFiles


def volume(directory, authority, name):
    """Put a new certificate into a volume as the kubelet does: a folder of its own, and ``..data`` renamed onto it."""
    identity = authority.issue(name, f"URI:spiffe://understudy/cart/node/{name}")
    version = directory / f"..{name}"
    version.mkdir(parents=True)
    for file, path in (("tls.crt", identity.cert), ("tls.key", identity.key), ("ca.crt", identity.ca)):
        (version / file).write_bytes(path.read_bytes())
        if not (directory / file).is_symlink():
            (directory / file).symlink_to(f"..data/{file}")
    (directory / "..next").symlink_to(version.name)
    (directory / "..next").rename(directory / "..data")


async def test_a_volume_of_kubernetes_is_followed(tmp_path):
    authority, certificates = Authority(tmp_path / "authority"), tmp_path / "volume"
    volume(certificates, authority, "front-1")
    files = PemFiles(*(certificates / name for name in ("tls.crt", "tls.key", "ca.crt")))
    for name, content in secret_files(files).items():
        (tmp_path / name).write_text(json.dumps(content))
    servers = [f"127.0.0.1:{free_port()}"]
    settings = bootstrap(
        node_id="front-1",
        pool="cart",
        listen=f"127.0.0.1:{free_port()}",
        xds_addresses=servers,
        transport_socket=transport_socket(tmp_path, servers),
    )
    async with running_envoy(settings, tmp_path / "envoy") as envoy:

        async def name_shown():
            async with envoy.http.get(f"{envoy.admin}/certs") as reply:
                shown = await reply.json(content_type=None)
            chains = [chain for one in shown["certificates"] for chain in one.get("cert_chain", ())]
            return [name["uri"] for chain in chains for name in chain["subject_alt_names"]]

        await until(name_shown, what="Envoy has its certificate")
        volume(certificates, authority, "front-2")

        async def is_new():
            return await name_shown() == ["spiffe://understudy/cart/node/front-2"]

        await until(is_new, what="Envoy has the renewed certificate")
