"""Certificates of pods from cert-manager's CSI driver: each pod gets one in its own name. Pure.

The driver inserts the pod's name when it mounts the volume, renews the files in place, and removes them with the pod.
docs/security.md says who may have which name: the end of a SPIFFE id names a role and its owner.
"""

from collections.abc import Sequence

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.injection_settings import PeerCertificates
from understudy.deploy.kubernetes.base.objects import USER

DRIVER = "csi.cert-manager.io"
DIRECTORY = "/etc/understudy-tls"
CERT, KEY, CA = f"{DIRECTORY}/tls.crt", f"{DIRECTORY}/tls.key", f"{DIRECTORY}/ca.crt"
POD = "${POD_NAME}"
"""The variable that the driver replaces by the pod's name."""
_VOLUME = "certificates"


def csi_volume(
    name: str,
    issuer: PeerCertificates,
    *,
    uri: str,
    dns: Sequence[str] = (),
    fs_group: int = USER,
) -> Body:
    """A volume with ``tls.crt``, ``tls.key`` and ``ca.crt``; ``fs_group`` 0 leaves the files' group to the cluster."""
    attributes = {
        "issuer-name": issuer.issuer,
        "issuer-kind": issuer.issuer_kind,
        "issuer-group": issuer.issuer_group,
        "uri-sans": uri,
        **({"dns-names": ",".join(dns)} if dns else {}),
        "key-usages": "digital signature,key encipherment,server auth,client auth",
        **({"fs-group": str(fs_group)} if fs_group else {}),
    }
    told = {f"{DRIVER}/{key}": value for key, value in attributes.items()}
    return {"name": name, "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": told}}


def spiffe(pool: str, kind: str, name: str = POD) -> str:
    """The name of a member, node, control server or operator of a pool in its certificate."""
    return f"spiffe://understudy/{pool}/{kind}/{name}"


def volumes(issuer: PeerCertificates | None, uris: str, dns: Sequence[str] = ()) -> list[Body]:
    """The volume of one of our pods, with ``uris`` (commas between) in its certificate; none without an issuer."""
    return [csi_volume(_VOLUME, issuer, uri=uris, dns=dns)] if issuer else []


def mounts(issuer: PeerCertificates | None) -> list[Body]:
    """Where a container mounts them."""
    return [{"name": _VOLUME, "mountPath": DIRECTORY, "readOnly": True}] if issuer else []


def variables(issuer: PeerCertificates | None) -> list[Body]:
    """The options that name them to an ``understudy`` command."""
    files = {"UNDERSTUDY_TLS_CERT": CERT, "UNDERSTUDY_TLS_KEY": KEY, "UNDERSTUDY_TLS_CA": CA}
    return [{"name": name, "value": file} for name, file in files.items()] if issuer else []
