"""The injector's own CA and certificate, and the next step of their renewal. Pure, except that it generates keys.

Certificates change without interrupting traffic. A new CA is at first only trusted. It signs after everybody has had
time to learn of it (:data:`SETTLE`). The old CA is trusted until nobody serves a certificate of it any more. So API
servers always trust what replicas serve, as long as each learns of a change within that time.
Needs the package ``cryptography`` (``understudy[injector]``).
"""

import base64
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 365.0
CERTIFICATE_DAYS = 90.0
RENEW_AT = 2 / 3
"""The fraction of its lifetime after which a certificate is renewed."""
SETTLE = 300.0
"""Seconds until every replica has seen the Secret and every API server the webhook configuration."""
BACKDATED = 300.0
"""Seconds by which certificates are backdated, for clocks that are slow."""
TRUSTED, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
SIGNING_KEY = "ca.key"


class BadMaterial(ValueError):
    """The content of the Secret is not what the injector stored; the text says why."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Lifetimes and waiting times, in seconds."""

    authority: float = AUTHORITY_DAYS * 86400
    certificate: float = CERTIFICATE_DAYS * 86400
    settle: float = SETTLE


@dataclass(frozen=True, slots=True)
class Material:
    """The content of the Secret, as PEM.

    ``authorities`` are the trusted CAs, the newest first; ``signing_key`` belongs to the newest. Every replica serves
    ``certificate`` with ``key``.
    """

    authorities: tuple[bytes, ...]
    signing_key: bytes
    certificate: bytes
    key: bytes

    @property
    def trusted(self) -> bytes:
        """The CAs as one file, for a caBundle."""
        return b"".join(self.authorities)

    def encode(self) -> dict[str, str]:
        """As a Secret's ``data``."""
        parts = {
            TRUSTED: self.trusted,
            SIGNING_KEY: self.signing_key,
            CERTIFICATE: self.certificate,
            KEY: self.key,
        }
        return {name: base64.b64encode(value).decode() for name, value in parts.items()}

    @classmethod
    def decode(cls, data: Mapping[str, object]) -> "Material | None":
        """Read a Secret's ``data``; None if there is nothing in it. Raises :class:`BadMaterial`."""
        if not any(data.get(name) for name in (TRUSTED, SIGNING_KEY, CERTIFICATE, KEY)):
            return None
        try:
            parts = {
                name: base64.b64decode(str(data[name]), validate=True)
                for name in (TRUSTED, SIGNING_KEY, CERTIFICATE, KEY)
            }
            authorities = x509.load_pem_x509_certificates(parts[TRUSTED])
            material = cls(
                tuple(_pem(each) for each in authorities), *(parts[n] for n in (SIGNING_KEY, CERTIFICATE, KEY))
            )
            _check_pairs(material)
        except (KeyError, ValueError, TypeError) as error:
            raise BadMaterial(f"{type(error).__name__}: {error}") from None
        return material


def next_material(
    now: Material | None,
    hosts: Sequence[str],
    at: dt.datetime,
    lifetimes: Lifetimes = Lifetimes(),
) -> Material:
    """The next content of the Secret, one step at a time; the same object if nothing is to be done.

    Args:
        now: its present content, None if it is empty.
        hosts: the DNS names that the certificate must have; the first becomes its subject.
        at: the current time, with a time zone.
        lifetimes: lifetimes of certificates.
    """
    if now is None or not now.authorities:
        return _begin(hosts, at, lifetimes)
    newest = _load(now.authorities[0])
    served = _load(now.certificate)
    if newest.not_valid_after_utc <= at:
        return _begin(hosts, at, lifetimes)
    signed_by_newest = _signed(served, newest)
    if _is_due(newest, at) and not (signed_by_newest and _is_due(served, at)):
        # If the certificate is due too, it is renewed first: everybody trusts the old CA already.
        return _with_new_authority(now, at, lifetimes)
    settled = at >= _made_at(newest) + dt.timedelta(seconds=lifetimes.settle)
    fits = set(_hosts_of(served)) == set(hosts)
    if settled and not signed_by_newest:
        return _with_new_certificate(now, hosts, at, lifetimes)
    if signed_by_newest and (_is_due(served, at) or not fits):
        return _with_new_certificate(now, hosts, at, lifetimes)
    if served.not_valid_after_utc <= at:
        # The certificate has expired, so sign by the new CA although some may not trust it yet.
        return _with_new_certificate(now, hosts, at, lifetimes)
    replaced = at >= _made_at(served) + dt.timedelta(seconds=lifetimes.settle)
    if signed_by_newest and replaced and len(now.authorities) > 1:
        return replace(now, authorities=now.authorities[:1])
    return now


def end_of(certificate: bytes) -> dt.datetime:
    """When a certificate (PEM) expires."""
    return _load(certificate).not_valid_after_utc


def _begin(hosts: Sequence[str], at: dt.datetime, lifetimes: Lifetimes) -> Material:
    authority, key = _new_authority(at, lifetimes)
    certificate, own = _new_certificate(authority, key, hosts, at, lifetimes)
    return Material((_pem(authority),), _key_pem(key), certificate, own)


def _with_new_authority(now: Material, at: dt.datetime, lifetimes: Lifetimes) -> Material:
    authority, key = _new_authority(at, lifetimes)
    return replace(now, authorities=(_pem(authority), *now.authorities[:1]), signing_key=_key_pem(key))


def _with_new_certificate(now: Material, hosts: Sequence[str], at: dt.datetime, lifetimes: Lifetimes) -> Material:
    key = serialization.load_pem_private_key(now.signing_key, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadMaterial(f"{SIGNING_KEY} is not an elliptic curve key")
    certificate, own = _new_certificate(_load(now.authorities[0]), key, hosts, at, lifetimes)
    return replace(now, certificate=certificate, key=own)


def _new_authority(at: dt.datetime, lifetimes: Lifetimes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"understudy injector authority {at:%Y-%m-%d %H:%M:%S}")
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        _builder(name, name, key, at, lifetimes.authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made, key


def _new_certificate(
    authority: x509.Certificate,
    signing: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    at: dt.datetime,
    lifetimes: Lifetimes,
) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder(_name(hosts[0][:64]), authority.subject, key, at, lifetimes.certificate)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    return _pem(made), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, at: dt.datetime, seconds: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - dt.timedelta(seconds=BACKDATED))
        .not_valid_after(at + dt.timedelta(seconds=seconds))
    )


def _is_due(certificate: x509.Certificate, at: dt.datetime) -> bool:
    made = _made_at(certificate)
    return at >= made + (certificate.not_valid_after_utc - made) * RENEW_AT


def _made_at(certificate: x509.Certificate) -> dt.datetime:
    return certificate.not_valid_before_utc + dt.timedelta(seconds=BACKDATED)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - another name, another key, another kind of key: all of them say no
        return False
    return True


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def _check_pairs(material: Material) -> None:
    """Raise ``ValueError`` unless keys and certificates belong together."""
    for name, key, certificate in (
        (SIGNING_KEY, material.signing_key, material.authorities[0]),
        (KEY, material.key, material.certificate),
    ):
        own = serialization.load_pem_private_key(key, None).public_key()
        if own != _load(certificate).public_key():
            raise ValueError(f"{name} does not belong to its certificate")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _load(certificate: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
