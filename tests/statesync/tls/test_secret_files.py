"""Secret files that others can read are refused, wherever they are given; directories of ours are closed to others."""

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from understudy.deploy.cli.commands_leave import _token
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import PROCESSES_FILE
from understudy.deploy.kubernetes.webhook.tls_reload import KEY, CertificateFiles, ServingCertificate
from understudy.deploy.local.local_pool import _lock_directory
from understudy.proxy.front.binary import EnvoyError
from understudy.proxy.front.envoy import EnvoyProcess, EnvoySettings
from understudy.proxy.sessions.admission import SessionTokens
from understudy.proxy.sidecar.heartbeat_client import HeartbeatClient
from understudy.statesync.sessions.session_crypto import BadKeyFile, load_session_crypto
from understudy.statesync.tls.followed_file import BadFile
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import TooOpen, fault_of, make_private, read_secret, require_secret, too_open
from understudy.telemetry.store.store import SpanStore
from understudy.xds.control.identity import server_credentials


@pytest.mark.parametrize(
    ("mode", "own", "read_only", "refused"),
    [
        (0o600, True, False, False),
        (0o400, True, False, False),
        (0o640, True, False, True),
        (0o604, True, False, True),
        (0o620, True, False, True),
        (0o644, True, True, False),
        (0o440, False, False, False),
        (0o640, False, False, False),
        (0o660, False, False, True),
        (0o644, False, False, True),
        (0o444, False, True, False),
    ],
)
def test_who_may_read_a_secret(mode: int, own: bool, read_only: bool, refused: bool) -> None:
    assert too_open(0o100000 | mode, own=own, read_only=read_only) is refused


def secret(path: Path, content: str = "x", mode: int = 0o644) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def test_what_is_refused_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = secret(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(path)
    for read in (read_secret, require_secret):
        with pytest.raises(TooOpen) as caught:
            read(link)
        assert fault_of(caught.value) == f"{link}: refused: others can read it (mode 0644); run: chmod 600 {link}"
    path.chmod(0o600)
    assert read_secret(link) == b"x"
    with pytest.raises(FileNotFoundError) as missing:
        read_secret(tmp_path / "none")
    assert fault_of(missing.value) == f"{tmp_path / 'none'}: cannot be read: No such file or directory"


def test_a_pipe_is_no_file_that_others_could_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"token")
    os.close(writer)
    try:
        assert read_secret(Path(f"/dev/fd/{reader}")) == b"token"
    finally:
        os.close(reader)


def peers(key: Path) -> None:
    PeerTls(Identity(key, key, key, Trust("cart")))


def webhook(key: Path) -> None:
    key = key.rename(key.parent / KEY)
    (key.parent / "tls.crt").write_text("x")
    CertificateFiles(key.parent, ServingCertificate())


def envoy(key: Path) -> None:
    settings = EnvoySettings(
        node_id="n",
        pool="cart",
        listen="127.0.0.1:9",
        xds_addresses=["127.0.0.1:1"],
        tls=PemFiles(key, key, key),
        binary=Path("/bin/true"),
    )
    EnvoyProcess(settings)._prepare()


USERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "session tokens": (SessionTokens, BadFile),
    "token of a command": (_token, DeployError),
    "session keys": (load_session_crypto, BadKeyFile),
    "peer API": (peers, BadTlsFiles),
    "gRPC port": (lambda key: server_credentials(PemFiles(key, key, key)), TooOpen),
    "etcd's client": (lambda key: PemFiles(key, key, key).channel_credentials(), TooOpen),
    "front Envoy": (envoy, EnvoyError),
    "injector": (webhook, DeployError),
}


@pytest.mark.parametrize("user", USERS)
def test_every_secret_file_is_refused_while_others_can_read_it(user: str, tmp_path: Path) -> None:
    use, error = USERS[user]
    content = base64.b64encode(bytes(range(32))).decode()
    with pytest.raises(error, match="others can read it"):
        use(secret(tmp_path / "secret", content))


def test_tokens_that_become_readable_for_others_are_not_taken_up(tmp_path: Path) -> None:
    path = secret(tmp_path / "tokens", "0123456789abcdef", 0o600)
    tokens = SessionTokens(path)
    secret(path, "fedcba9876543210")
    assert not tokens.accepts("Bearer fedcba9876543210")
    assert tokens.accepts("Bearer 0123456789abcdef")


def test_heartbeats_go_on_with_the_key_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = secret(tmp_path / "key", "x", 0o600)
    files = PemFiles(key, key, key)
    client = HeartbeatClient(list, MagicMock(), MagicMock(), files, MagicMock())
    used = client._read_credentials(files)
    key.chmod(0o644)
    assert [client._read_credentials(files) for _ in range(2)] == [used, used]
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "chmod 600" in caplog.text


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_of_ours_is_closed_and_any_other_one_is_left_as_it_is(tmp_path: Path) -> None:
    made, empty, ours, others = (tmp_path / name for name in ("a/made", "empty", "ours", "others"))
    for directory in (empty, ours, others):
        directory.mkdir()
        directory.chmod(0o755)
    (ours / "mark").touch()
    (others / "thing").touch()

    assert not make_private(made, "mark")
    assert make_private(empty, "mark")
    assert make_private(ours, "mark")
    with pytest.raises(TooOpen, match="chmod 700"):
        make_private(others, "mark")
    assert [mode_of(path) for path in (made, empty, ours, others)] == [0o700, 0o700, 0o700, 0o755]


def test_the_state_directory_of_up_is_closed_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / PROCESSES_FILE).touch()
    tmp_path.chmod(0o755)
    _lock_directory(tmp_path).close()
    assert mode_of(tmp_path) == 0o700
    assert [one.getMessage() for one in caplog.records] == [
        f"{tmp_path}: others could read it, and can no longer (mode 0700 now)"
    ]
    (tmp_path / PROCESSES_FILE).unlink()
    tmp_path.chmod(0o755)
    with pytest.raises(DeployError, match="name another directory"):
        _lock_directory(tmp_path)


def test_a_trace_store_is_made_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        SpanStore(tmp_path / "traces.sqlite").close()
    finally:
        os.umask(before)
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o600}
