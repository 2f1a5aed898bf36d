"""``understudy apply --dry-run``: what a spec would change, field by field, without changing it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.main import cli
from understudy.deploy.data.apply import Change, changes
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec


def spec(text):
    return parse_spec(f"pool: cart\n{text}", where="pool.yaml")


BOTH_KEYS = [{"header": "x-session-id"}, {"cookie": "sid"}]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("", "", []),
        ("slots: 256", "limits: {}", []),
        ("", "limits: {sessions: 9}", [Change("limits.sessions", 100_000, 9)]),
        ("", "objectives: {rto: {p99: 250ms}}", [Change("objectives.rto.p99", 1.0, 0.25)]),
        ("", "members: {cart-1: {weight: 5}}", [Change("members.cart-1.weight", None, 5)]),
        ("", "members: {cart-1: {}}", [Change("members.cart-1", None, {})]),
        ("members: {a.b: {weight: 5}}", "members: {a.b: {priority: 5}}", [
            Change("members.a.b.priority", None, 5), Change("members.a.b.weight", 5, None),
        ]),
        ("", "session_key: [{cookie: sid}]", [Change("session_key", BOTH_KEYS, [{"cookie": "sid"}])]),
        ("", "session_ttl: 60\nslots: 8", [Change("slots", 256, 8), Change("session_ttl", 3600, 60)]),
    ],
)  # fmt: skip
def test_specs_are_compared_by_field(before, after, told):
    assert changes(spec(before), spec(after)) == told


@pytest.fixture
def apply(tmp_path, monkeypatch, etcd, pool_name):
    """Apply a spec of some more lines to the test's own pool; returns the command's result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_ETCD", etcd.endpoint)
    with ThreadPoolExecutor(1) as thread:  # commands run an event loop of their own

        def run(text, *options):
            (tmp_path / "pool.yaml").write_text(f"pool: {pool_name}\n{text}\n")
            return thread.submit(CliRunner().invoke, cli, ["apply", "-f", "pool.yaml", *options]).result()

        yield run


async def test_a_dry_run_tells_what_would_be_and_changes_nothing(apply, client, pool_name):
    key = PoolKeys(pool_name).spec
    new = apply("slots: 64", "--dry-run")
    assert (new.exit_code, new.stdout.splitlines()) == (
        1,
        [f"pool {pool_name}: would be created with these values and defaults for the rest:", "  slots: 64"],
    )
    assert await client.get(key) is None

    assert apply("slots: 64").exit_code == 0
    stands = await client.get(key)
    same = apply("slots: 64", "--dry-run")
    assert (same.exit_code, same.stdout) == (0, f"pool {pool_name}: would not change\n")

    other = apply("slots: 64\nlimits: {sessions: 5}\nmembers: {cart-1: {weight: 3}}", "--dry-run")
    assert (other.exit_code, other.stdout.splitlines()) == (
        1,
        [
            f"pool {pool_name}: would be changed:",
            "  members.cart-1.weight: not set -> 3",
            "  limits.sessions: 100000 -> 5",
        ],
    )
    told = json.loads(apply("slots: 64\nlimits: {sessions: 5}", "--dry-run", "-o", "json").stdout)
    assert (told["result"], told["changes"]) == (
        "changed",
        [{"field": "limits.sessions", "before": 100_000, "after": 5}],
    )
    assert await client.get(key) == stands


async def test_apply_tells_what_would_move_before_it_does_so_and_in_a_dry_run(apply, client, pool_name):
    keys = PoolKeys(pool_name)
    assert apply("slots: 4\ncopies: 2").exit_code == 0
    for name in ("cart-1", "cart-2"):
        await client.put(keys.member(name), Member(name, name, "h:1", "h:2", MemberState.UP).encode())
    await client.put(keys.table, Table(1, (("cart-1", "cart-2"), ("cart-2", "cart-1")) * 2).encode())
    for slot in range(4):
        active = ("cart-1", "cart-2")[slot % 2]
        await client.put(keys.owner(slot), Owner(active, active, 1).encode())
    told = apply("slots: 4\ncopies: 2\nmode: active_standby", "--dry-run")
    assert (told.exit_code, told.stdout.splitlines()[1:]) == (
        1,
        [
            '  mode: "load_sharing" -> "active_standby"',
            "  moves: 2 of 4 slots would be handed over: cart-2 to cart-1 2",
        ],
    )
    view = json.loads(apply("slots: 4\ncopies: 2\nmode: active_standby", "--dry-run", "-o", "json").stdout)
    assert [(one["kind"], one["slots"]) for one in view["effects"]] == [("moves", 2)]
    done = apply("slots: 4\ncopies: 2\nmode: active_standby").stdout.splitlines()
    assert [line.partition(": ")[2] for line in done] == [
        "by the members of now, this spec has these effects:",
        "2 of 4 slots would be handed over: cart-2 to cart-1 2",
        "changed",
    ]


@pytest.mark.parametrize("text", ["slots: 128", "slotz: 1", "protocol: tcp\nslots: 64"])
async def test_what_apply_would_refuse_a_dry_run_refuses_too(apply, text):
    assert apply("slots: 64").exit_code == 0
    dry, wet = apply(text, "--dry-run"), apply(text)
    assert (dry.exit_code, dry.stdout, dry.stderr) == (2, "", wet.stderr)


async def test_a_tcp_pool_is_compared_with_the_defaults_of_tcp_pools(apply):
    assert apply("protocol: tcp", "--dry-run").stdout.endswith('for the rest:\n  protocol: "tcp"\n')


async def test_the_answer_of_apply_for_programs(apply, pool_name):
    told = json.loads(apply("slots: 64", "-o", "json").stdout)
    assert told["result"] == "created"
    assert told["dry_run"] is False
    assert PoolSpec(pool=pool_name, slots=told["changes"][0]["after"]).slots == 64


async def test_a_place_at_the_front_envoys_is_given_once(apply, client, pool_name):
    other = parse_spec(f"pool: {pool_name}-x\nfront: {{port: 9000, paths: [/cart]}}", where="other.yaml")
    await client.put(PoolKeys(other.pool).spec, other.encode())
    for options in ((), ("--dry-run",)):
        refused = apply("slots: 64\nfront: {port: 9000, paths: [/cart, /x]}", *options)
        assert refused.exit_code == 2
        assert f"pool '{other.pool}' has host * with path /cart on port 9000; choose another port" in refused.stderr
    assert await client.get(PoolKeys(pool_name).spec) is None
    assert apply("slots: 64\nfront: {port: 9000, paths: [/x]}").exit_code == 0
    await client.delete(PoolKeys(other.pool).spec)
