"""Several etcd clusters of one control server: ``--etcd-cluster NAME=HOST:PORT,...`` or ``NAME=FILE.yaml``.

Addresses alone share the certificates and the login of the command (``--etcd-ca`` and so on). A file has its own::

    endpoints: [10.0.0.2:2379]
    ca: /etc/etcd/ca.pem
    cert: /etc/etcd/client.pem
    key: /etc/etcd/client.key
    user: understudy
    password_file: /etc/etcd/password
    leader: 10.0.0.2:2379
"""

from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import EtcdOptions, require_name
from understudy.statesync.etcd.settings import EtcdSettings, address_of
from understudy.statesync.parsing.spec_yaml import read_yaml
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import TooOpen, fault_of, read_secret


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster's file."""

    endpoints: tuple[str, ...]
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str | None = None
    password_file: str = ""
    leader: str = ""


def read_clusters(given: Iterable[str], common: EtcdOptions, option: str = "--etcd-cluster") -> dict[str, EtcdSettings]:
    """The clusters by name, as ``option`` gives them. Raises :class:`DeployError` if one cannot be read."""
    clusters: dict[str, EtcdSettings] = {}
    for text in given:
        name, equals, where = text.partition("=")
        if not equals or not where:
            raise click.UsageError(f"{option} {text}: write NAME=HOST:PORT,... or NAME=FILE.yaml")
        require_name(option, name)
        if name in clusters:
            raise click.UsageError(f"{option} {name}: the name is given twice")
        clusters[name] = (
            _of_file(where, option)
            if where.endswith((".yaml", ".yml", ".json"))
            else _of_addresses(where, common, option)
        )
    return clusters


def led_by(settings: EtcdSettings, leader: str, where: str) -> EtcdSettings:
    """The settings with the endpoint that is to lead etcd, '' for none; raises :class:`DeployError` if it is none."""
    wanted = address_of(leader)
    if wanted and wanted not in map(address_of, settings.endpoints):
        raise DeployError(f"{where}: {leader} is not among the addresses of etcd: {', '.join(settings.endpoints)}")
    return msgspec.structs.replace(settings, leader=wanted)


def _of_addresses(where: str, common: EtcdOptions, option: str) -> EtcdSettings:
    return msgspec.structs.replace(common.settings(None), endpoints=_addresses(where.split(","), where, option))


def _addresses(texts: Iterable[str], where: str, option: str) -> tuple[str, ...]:
    found = tuple(text.strip() for text in texts if text.strip())
    for text in found:
        try:
            split_address(text, lowest_port=1)
        except ValueError as error:
            raise DeployError(f"{option}: {where}: {error}") from None
    if not found:
        raise DeployError(f"{option}: {where}: no address of etcd is given")
    return found


def _of_file(where: str, option: str) -> EtcdSettings:
    try:
        said = msgspec.convert(read_yaml(Path(where).read_text(encoding="utf-8")), type=_File)
        password = read_secret(Path(said.password_file)).decode().strip() if said.password_file else None
    except TooOpen as error:
        raise DeployError(fault_of(error)) from None
    except (OSError, ValueError) as error:
        raise DeployError(f"{option}: {where} cannot be read: {error}") from None
    if bool(said.cert) != bool(said.key) or (said.cert and not said.ca):
        raise DeployError(f"{option}: {where}: cert and key go together, and need ca")
    cert, key = (Path(one) if one else None for one in (said.cert, said.key))
    tls = PemFiles(cert, key, Path(said.ca)) if said.ca else None
    settings = EtcdSettings(_addresses(said.endpoints, where, option), tls, said.user, password)
    return led_by(settings, said.leader, f"{option}: {where}: leader")
