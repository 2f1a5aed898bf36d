"""Who acts: what a process says of itself in the audit log."""

import hashlib
import os
import socket
import ssl
from pathlib import Path

from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.settings import EtcdSettings


def this_process(who: str, program: str, etcd: EtcdSettings) -> Actor:
    """This process on this machine; ``program`` is what it runs, such as ``drain`` or ``control``."""
    return Actor(who, socket.gethostname(), f"{program}, pid {os.getpid()}", account_of(etcd))


def account_of(etcd: EtcdSettings) -> str:
    """The name with which a process logs in at etcd: its user, else its certificate's; '' if it does not log in."""
    if etcd.username:
        return etcd.username
    return certificate_name(etcd.tls.cert) if etcd.tls and etcd.tls.cert else ""


def certificate_name(file: Path) -> str:
    """The common name of a certificate, which etcd takes for the user; '' if the file cannot be read.

    Without a common name, or without the package ``cryptography``, it is the beginning of the SHA-256 fingerprint.
    """
    try:
        text = file.read_text()
        first = text[: text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        der = ssl.PEM_cert_to_DER_cert(first[first.index(ssl.PEM_HEADER) :])
    except (OSError, ValueError):
        return ""
    return _common_name(der) or f"sha256:{hashlib.sha256(der).hexdigest()[:32]}"


def _common_name(der: bytes) -> str:
    try:
        from cryptography import x509  # an extra: "encryption" or "injector"
        from cryptography.x509.oid import NameOID
    except ImportError:
        return ""
    try:
        names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(names[0].value) if names else ""
