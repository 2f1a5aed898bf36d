"""Session ids in the keys of frameworks' session stores: presets, slots, and what a running pool keeps."""

import base64

import pytest

from understudy.statesync.pool.session_key import PRESETS
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec, SpecError, refuse_contradiction
from understudy.statesync.pool.spec_reader import decode_spec, parse_spec

ID = "3kXo0b9Qh2"
IN_COOKIE = base64.b64encode(ID.encode()).decode()


def spec(*session_key: str) -> PoolSpec:
    """A pool with these entries of ``session_key``, written as in YAML."""
    return parse_spec(f"pool: cart\nsession_key: [{', '.join(session_key)}]", where="pool.yaml")


def hashed(pool: PoolSpec, key: str) -> str:
    return pool.slot_rule.hashed_text(key) if pool.slot_rule else key


@pytest.mark.parametrize(
    ("preset", "key", "text"),
    [
        ("express", f"sess:{ID}", ID),
        ("flask", f"session:{ID}", ID),
        ("django", f":1:django.contrib.sessions.cache{ID}", ID),
        ("django", f":1:django.contrib.sessions.cached_db{ID}", ID),
        ("starsessions", f"starsessions.{ID}", ID),
        ("spring", f"spring:session:sessions:{ID}", IN_COOKIE),
        ("spring", f"spring:session:sessions:expires:{ID}", IN_COOKIE),
        ("spring", "spring:session:expirations:1439245080000", "spring:session:expirations:1439245080000"),
        ("php", f"PHPREDIS_SESSION:{ID}", ID),
        ("php", f"PHPREDIS_SESSION:{ID}_LOCK", ID),
        ("php", f"{ID}_LOCK", f"{ID}_LOCK"),
        *((preset, f"_session_id:2::{ID}", f"_session_id:2::{ID}") for preset in PRESETS if preset != "flask"),
    ],
)
def test_what_is_hashed_of_a_stores_key(preset: str, key: str, text: str) -> None:
    pool = spec(f"{{preset: {preset}}}")
    assert hashed(pool, key) == text
    assert pool.slot_of_key(key) == slot_of(text, pool.slots)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (f"{{{ID}}}:cart", ID),
        (f"sess:{{{ID}}}:cart", ID),
        (f"sess:{ID}{{}}", f"{ID}{{}}"),
        ("{}x{y}", "{}x{y}"),
        ("a}b{c}d{e}", "c"),
        ("{{x}}", "{x"),
        ("{x", "{x"),
        (f"j:{{{ID}}}", IN_COOKIE),
        (f"j:{ID}:lock:lock", base64.b64encode(f"{ID}:lock".encode()).decode()),
        (f"j:{ID}:b:lock", IN_COOKIE),
        ("j:\udcff", "/w=="),
        ("", ""),
    ],
)
def test_a_tag_is_hashed_alone_and_one_suffix_is_removed(key: str, text: str) -> None:
    java = "{cookie: j, redis_prefixes: ['j:'], redis_suffixes: [':lock', ':b:lock'], transform: base64}"
    assert hashed(spec("{preset: express}", java), key) == text


@pytest.mark.parametrize("key", [f"sess:{ID}", f"{{{ID}}}:cart", "PHPREDIS_SESSION:a_LOCK"])
def test_a_pool_whose_spec_names_no_keys_hashes_them_as_they_are(key: str) -> None:
    pool = PoolSpec(pool="cart")
    assert pool.slot_rule is None
    assert pool.slot_of_key(key) == slot_of(key, pool.slots)


def test_a_key_may_be_any_bytes() -> None:
    assert slot_of(b"\xff\x00a".decode(errors="surrogateescape"), 1 << 14) == slot_of("\udcff\x00a", 1 << 14)
    assert slot_of("ü", 1 << 14) == slot_of("ü".encode().decode("ascii", "surrogateescape"), 1 << 14)


def test_etcd_holds_what_a_preset_meant_when_it_was_applied() -> None:
    pool = spec("{preset: express, cookie: shop.sid}", "{preset: php, redis_suffixes: []}", "{preset: rails}")
    assert b"preset" not in pool.encode()
    assert decode_spec(pool.encode()) == pool
    express, php, rails = pool.session_key
    assert (express.cookie, express.pattern) == ("shop.sid", PRESETS["express"]["pattern"])
    assert (php.redis_prefixes, php.redis_suffixes) == (("PHPREDIS_SESSION:",), ())
    assert (rails.cookie, rails.generated) == ("understudy-route", True)


def test_the_rule_of_a_pool_of_today_is_not_written() -> None:
    assert b"redis" not in PoolSpec(pool="cart").encode()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["{preset: sinatra}"], "session_key.0.preset: Input should be 'express', 'flask'"),
        (["{preset: express, header: x}"], "session_key.0: a preset is for a cookie"),
        (["{preset: express, cookie: null}"], "session_key.0: name either a header or a cookie"),
        (["{header: x, pattern: (a)}"], "session_key.0: pattern and generated are for cookies"),
        (["{preset: rails, pattern: (a)}"], "session_key.0: a generated cookie has no pattern"),
        (["{cookie: x, transform: base64}"], "session_key.0: redis_suffixes and transform need redis_prefixes"),
        (["{cookie: x, pattern: 'a(?=b)'}"], "session_key.0: pattern: '(?=b)' is not supported"),
        (["{preset: rails}", "{preset: laravel}"], "spec: session_key: one generated cookie is enough"),
        (["{preset: rails}", "{preset: gorilla, cookie: b}"], "spec: session_key: one generated cookie is enough"),
        (
            ["{preset: php}", "{cookie: a, redis_prefixes: ['PHPREDIS_SESSION:']}"],
            "spec: session_key: two entries have the prefix 'PHPREDIS_SESSION:', with different suffixes",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(entries: list[str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(*entries)
    assert str(caught.value).startswith(f"pool.yaml: {words}")


KEEPS = [
    (["{header: x}"], ["{header: y}", "{cookie: a, pattern: 'v(.+)'}", "{cookie: b, generated: true}"]),
    (["{preset: express}"], ["{preset: express, cookie: b, pattern: null}", "{header: x}"]),
    (["{preset: express}"], ["{header: x, redis_prefixes: ['sess:']}"]),
    (["{preset: express}", "{preset: php}"], ["{preset: php}", "{preset: express}"]),
    (["{preset: rails}"], ["{cookie: a, redis_prefixes: []}"]),
]
CHANGES = [
    (["{header: x}"], ["{preset: express}"], "has none, and the new spec says 'sess:';"),
    (["{header: x}"], ["{preset: rails}"], "has none, and the new spec says redis_prefixes: [];"),
    (["{preset: express}"], ["{header: x}"], "has 'sess:', and the new spec says none;"),
    (["{preset: php}"], ["{preset: php, redis_suffixes: []}"], "has 'PHPREDIS_SESSION:' to ['_LOCK'], and"),
    (["{cookie: a, redis_prefixes: [s]}"], ["{cookie: a, redis_prefixes: [s], transform: base64}"], "'s' in base64;"),
    (["{preset: express}"], ["{preset: express}", "{preset: flask}"], "says 'session:', 'sess:';"),
]


@pytest.mark.parametrize(("running", "wanted"), KEEPS)
def test_a_running_pool_takes_other_headers_and_cookies(running: list[str], wanted: list[str]) -> None:
    refuse_contradiction(spec(*running), spec(*wanted))


@pytest.mark.parametrize(("running", "wanted", "words"), CHANGES)
def test_a_running_pool_keeps_the_slots_of_its_keys(running: list[str], wanted: list[str], words: str) -> None:
    with pytest.raises(SpecError, match="fixed for the life of a pool") as caught:
        refuse_contradiction(spec(*running), spec(*wanted))
    assert words in str(caught.value)


@pytest.mark.parametrize("pool", [PoolSpec(pool="cart"), spec("{preset: express}"), spec("{preset: php}")])
@pytest.mark.parametrize("key", [f"sess:{ID}", f"PHPREDIS_SESSION:{ID}", "plain", "{tag}rest", "ü", "\udcff\udc80"])
def test_the_bytes_of_a_key_have_the_slot_of_its_text(pool: PoolSpec, key: str) -> None:
    assert pool.slot_of_bytes(key.encode("utf-8", "surrogateescape")) == pool.slot_of_key(key)
