"""What ``explain`` reads in a text: a header, a cookie or a key, and which part of it is hashed."""

import pytest

from understudy.deploy.inspect.hashed_text import HashedText, hashed_text
from understudy.statesync.pool.spec import PoolSpec

SPEC = PoolSpec.model_validate(
    {
        "pool": "cart",
        "session_key": [
            {"header": "X-Id"},
            {"preset": "express"},
            {"preset": "spring"},
            {"preset": "php"},
            {"cookie": "sid"},
            {"preset": "rails"},
        ],
    }
)
EXPRESS = "the cookie connect.sid, the group of its pattern"
STRANGE = "a key without a prefix that the spec names, hashed as it is"


@pytest.mark.parametrize(
    ("given", "read_as", "text", "keys"),
    [
        ("x-id: a", "the header x-id", "a", ("a",)),
        ("connect.sid=s%3Aa.b", EXPRESS, "a", ("sess:a", "a")),
        ("cookie:x=y;connect.sid=s%3Aa.b; sid=c", EXPRESS, "a", ("sess:a", "a")),
        ("sid=c; connect.sid=no", "the cookie sid", "c", ("c",)),
        ('sid="c"', "the cookie sid", "c", ("c",)),
        ("sid=; understudy-route=u", "the cookie understudy-route", "u", ()),
        ("SESSION=????", "the cookie SESSION", "????", ()),
        ("PHPSESSID=p", "the cookie PHPSESSID", "p", ("PHPREDIS_SESSION:p", "p")),
        ("sid=", "cookies without a session key that the spec names: such a request goes to any member", None, ()),
        ("x-other: a", STRANGE, "x-other: a", ("x-other: a",)),
        ("sid", STRANGE, "sid", ("sid",)),
        ("cookie:abc", STRANGE, "cookie:abc", ("cookie:abc",)),
        ("-{a}", "a key without a prefix that the spec names, of which the {tag} is hashed", "a", ("-{a}",)),
        (
            "PHPREDIS_SESSION:a_LOCK",
            "a key of a session store, with the prefix 'PHPREDIS_SESSION:'",
            "a",
            ("PHPREDIS_SESSION:a_LOCK",),
        ),
        (
            "spring:session:sessions:a",
            "a key of a session store, with the prefix 'spring:session:sessions:', in base64",
            "YQ==",
            ("spring:session:sessions:a",),
        ),
    ],
)
def test_a_text_is_read_as_what_the_spec_names(given: str, read_as: str, text: str | None, keys: tuple[str, ...]):
    assert hashed_text(SPEC, given) == HashedText(read_as, text, keys)


def test_a_pool_without_a_rule_or_a_readable_spec_hashes_keys_as_they_are():
    assert hashed_text(PoolSpec(pool="cart"), "sess:{a}") == HashedText(
        "a key, hashed as it is", "sess:{a}", ("sess:{a}",)
    )
    assert hashed_text(None, "sid=a").text == "sid=a"
