"""The time in which a certificate is valid, read from files that openssl made."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from understudy.statesync.tls.validity import validity

DAY = 86_400


def test_begin_and_end_are_those_that_openssl_wrote(tmp_path: Path) -> None:
    before = time.time() - 1
    made = Authority(tmp_path).issue("a", "DNS:a", days=3)
    begins, ends = validity(made.cert)
    assert before <= begins <= time.time()
    assert ends - begins == 3 * DAY


def test_dates_after_2049_have_four_digits_of_a_year(tmp_path: Path) -> None:
    begins, ends = validity(Authority(tmp_path).issue("a", "DNS:a", days=36_500).cert)
    assert ends - begins == 36_500 * DAY


def test_the_first_certificate_of_a_chain_counts(tmp_path: Path) -> None:
    pool = Authority(tmp_path)
    leaf = pool.issue("a", "DNS:a", days=3)
    leaf.cert.write_bytes(leaf.cert.read_bytes() + pool.ca.read_bytes())
    begins, ends = validity(leaf.cert)
    assert ends - begins == 3 * DAY


@pytest.mark.parametrize(
    "spoiled", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_file_without_a_certificate_is_refused_by_name(tmp_path: Path, spoiled: bytes) -> None:
    (tmp_path / "bad.pem").write_bytes(spoiled)
    with pytest.raises(ValueError, match=r"bad\.pem"):
        validity(tmp_path / "bad.pem")


def test_a_certificate_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    der = tmp_path / "a.der"
    cert = Authority(tmp_path).issue("a", "DNS:a").cert
    subprocess.run(["openssl", "x509", "-in", cert, "-outform", "der", "-out", der], check=True, timeout=30)
    import ssl

    for length in (10, 40, 100):
        cert.write_text(ssl.DER_cert_to_PEM_cert(der.read_bytes()[:length]))
        with pytest.raises(ValueError, match="cannot be read"):
            validity(cert)
