"""The pages keep their word: the reference has every key, default and command, and no link leads nowhere."""

import re
from functools import reduce
from typing import Any

import pytest
import yaml

from tests.harness.places import ROOT
from understudy.deploy.cli.main import COMMANDS
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front
from understudy.statesync.pool.spec_parts import Balance, CheckSpec, Mesh, Prefer
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.spec_tcp import Tcp
from understudy.statesync.pool.spec_versions import Versions

PAGE = (ROOT / "docs/reference.md").read_text()
README = (ROOT / "README.md").read_text()
SHOWN = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
DEFAULTS = re.findall(
    r"^\| `([a-z_.*]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.partition("## Command line")[0], re.MULTILINE
)
TOLD_OTHERWISE = (
    "objectives.*",
    "checks.*",
    "members.*",
    "front.*",
    "versions.*",
    "balance.over",
    "limits.concurrent_requests",
    "replication.spread",
    "group",
)
"""Rows whose defaults the spec on the page, or another class than the spec, has."""
MILLISECONDS = {"ms": 1, "s": 1000, "": 1}
A_FILE = re.compile(r"`((?:deploy|xds|proxy|statesync|telemetry|tests|bench)/[\w./-]+\.\w+)`")


def test_the_spec_on_the_page_has_every_key_that_a_spec_may_have() -> None:
    shown = yaml.safe_load(SHOWN)
    everything = PoolSpec(pool="cart").model_dump()
    everything |= {"tcp": Tcp().model_dump(), "mesh": Mesh(host="a.b").model_dump()}
    everything |= {"front": Front(port=80).model_dump(), "balance": Balance().model_dump()}
    everything |= {"prefer": Prefer(zones=("a",)).model_dump()}
    everything |= {"versions": Versions(new_sessions="v2").model_dump()}
    assert keys_of(shown) - {"members.cart-1", "sites.east"} == keys_of(everything)
    assert {key for check in shown["checks"] for key in check} == CheckSpec.model_fields.keys()


def keys_of(mapping: dict[str, Any]) -> set[str]:
    """The keys, and those one level below with the name of the level: ``limits.sessions``."""
    below = {f"{key}.{name}" for key, value in mapping.items() if isinstance(value, dict) for name in value}
    return mapping.keys() | below


def test_every_value_on_the_page_is_the_default_where_there_is_one() -> None:
    shown = yaml.safe_load(SHOWN)
    assert Balance.model_validate(shown.pop("balance")) == Balance()
    for example in (
        "tenant",
        "group",
        "members",
        "sites",
        "prefer",
        "tcp",
        "checks",
        "mesh",
        "durability_rules",
        "priority_rules",
        "front",
        "versions",
    ):
        del shown[example]
    del shown["objectives"]["rpo_async_writes"]
    for limit in ("total_bytes", "writes_per_second", "requests_per_second", "concurrent_requests"):
        del shown["limits"][limit]
    assert parse_spec(yaml.safe_dump(shown), where="reference.md") == PoolSpec(pool="cart")
    assert {"accept_proxy_protocol": False, "send_proxy_protocol": "v1"}.items() <= Tcp().model_dump().items()


@pytest.mark.parametrize(("key", "default"), [row[:2] for row in DEFAULTS if row[0] not in TOLD_OTHERWISE])
def test_the_table_tells_the_defaults_of_the_code(key: str, default: str) -> None:
    found = reduce(getattr, key.removesuffix(".*").split("."), PoolSpec(pool="cart", balance=Balance()))
    if isinstance(found, str):
        assert default == f"`{found}`"
        return
    numbers = [int(number) * MILLISECONDS[unit] for number, unit in re.findall(r"(\d+) ?(ms|s|)\b", default)]
    values = list(found.model_dump().values()) if key.endswith(".*") else [found]
    assert numbers == [value for value in values if not isinstance(value, bool)]


def test_every_number_of_the_spec_has_its_reason() -> None:
    reasons = {key: why.strip() for key, _, why in DEFAULTS}
    numbers = {
        key
        for key, value in flat(PoolSpec(pool="cart").model_dump()).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for key in numbers | {"checks.every_seconds", "members.weight"}:
        assert reasons.get(key) or reasons.get(f"{key.partition('.')[0]}.*"), key


def flat(mapping: dict[str, Any]) -> dict[str, Any]:
    """All leaves, and the levels that lead to each: ``objectives.rto.p99``."""
    below = {
        f"{key}.{name}": leaf
        for key, value in mapping.items()
        if isinstance(value, dict)
        for name, leaf in flat(value).items()
    }
    return {key: value for key, value in mapping.items() if not isinstance(value, dict)} | below


def test_beats_come_as_often_as_the_page_says() -> None:
    assert f"beats come every {BEAT_INTERVAL * 1000:.0f} ms" in PAGE


def test_every_command_has_its_line() -> None:
    table = PAGE.partition("## Command line")[2].partition("Exit codes:")[0]
    named = set(re.findall(r"[`|, (]([a-z]+)[ `]", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    assert COMMANDS.keys() <= named


def test_the_readme_leads_to_the_index_and_the_index_to_every_page() -> None:
    assert "](docs/index.md)" in README
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_the_readme_fits_on_a_screen() -> None:
    """Its picture is as high as some 16 lines of text, so that all of it is about as high as 50 lines."""
    assert len([line for line in README.splitlines() if line]) <= 34
    assert int(re.findall(r'<img [^>]*width="(\d+)"', README)[0]) <= 420


def test_every_link_within_the_pages_leads_somewhere() -> None:
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for target, place in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)]*)?\)", page.read_text()):
            aim = page.parent / target if target else page
            assert aim.exists(), f"{page.name} links to {target}"
            if place and aim.suffix == ".md":
                assert place[1:] in anchors(aim.read_text()), f"{page.name} links to {target}{place}"
        for target in re.findall(r'<img src="([^"]*)"', page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} shows {target}"


def test_every_file_that_a_page_names_is_there() -> None:
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for name in A_FILE.findall(page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page: lower case, spaces as hyphens, other signs gone."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
