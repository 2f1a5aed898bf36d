"""Several etcd clusters of a control server, as options and files say them."""

from pathlib import Path

import click
import pytest

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.etcd_clusters import led_by, read_clusters
from understudy.deploy.common.options import EtcdOptions
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.tls.pem_files import PemFiles

COMMON = EtcdOptions(None, Path("/ca.pem"), None, None, "anna")


def test_addresses_share_what_the_command_says_and_a_file_has_its_own(tmp_path: Path):
    secret, file = tmp_path / "password", tmp_path / "west.yaml"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    file.write_text(
        f"endpoints: ['10.1.0.2:2379']\nca: /w/ca\ncert: /w/c\nkey: /w/k\nuser: w\npassword_file: {secret}\n"
    )
    found = read_clusters(["east=10.0.0.2:2379,10.0.0.3:2379", f"west={file}"], COMMON)
    assert list(found) == ["east", "west"]
    assert found["east"].endpoints == ("10.0.0.2:2379", "10.0.0.3:2379")
    assert (found["east"].tls, found["east"].username) == (PemFiles(None, None, Path("/ca.pem")), "anna")
    west = found["west"]
    assert (west.endpoints, west.username, west.password) == (("10.1.0.2:2379",), "w", "hush")
    assert west.tls == PemFiles(Path("/w/c"), Path("/w/k"), Path("/w/ca"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["east"], "write NAME=HOST:PORT"),
        (["east="], "write NAME=HOST:PORT"),
        (["East=1.2.3.4:1"], "a name has"),
        (["east=1.2.3.4:1", "east=1.2.3.4:2"], "given twice"),
        (["east=1.2.3.4"], "1.2.3.4"),
        (["east=,"], "no address"),
        (["east=/no/such.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: list[str], said: str):
    with pytest.raises((DeployError, click.UsageError), match=said):
        read_clusters(given, COMMON)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("endpoints: []", "no address"),
        ("endpoints: ['a:1']\ncert: /c", "go together"),
        ("endpoints: ['a:1']\nsecret: x", "secret"),
        ("endpoints: 7", "cannot be read"),
        ("endpoints: ['a:1']\nleader: 'b:1'", "b:1 is not among the addresses of etcd: a:1"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str):
    file = tmp_path / "east.yaml"
    file.write_text(text)
    with pytest.raises(DeployError, match=said):
        read_clusters([f"east={file}"], COMMON)


@pytest.mark.parametrize("leader", ["10.0.0.3:2379", "http://10.0.0.3:2379/"])
def test_the_member_that_is_to_lead_is_one_of_the_addresses_however_they_are_written(leader: str):
    for endpoints in (("10.0.0.2:2379", "10.0.0.3:2379"), ("https://10.0.0.2:2379", "https://10.0.0.3:2379")):
        assert led_by(EtcdSettings(endpoints), leader, "--etcd-leader").leader == "10.0.0.3:2379"
    assert led_by(EtcdSettings(("10.0.0.2:2379",)), "", "--etcd-leader").leader == ""
