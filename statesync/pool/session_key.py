"""Where a pool's session keys are: in which header or cookie, and in which keys of a session store.

Presets name both for the session stores of web frameworks. A preset is replaced by its fields when a spec is read, so
that a pool keeps the rule that it began with, whatever a later version's preset says.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from understudy.statesync.pool.cookie_pattern import LENGTH_MOST, PatternError, header_regex
from understudy.statesync.pool.slots import StoreKeys, Transform

Preset = Literal["express", "flask", "django", "starsessions", "spring", "php", "rails", "laravel", "aspnet", "gorilla"]
ROUTING_COOKIE = "understudy-route"
"""The cookie that front Envoys set where the framework's own cookie does not tell the key in the session store."""

_CACHE = ":1:django.contrib.sessions."
_SPRING = "spring:session:sessions:"
_BY_ROUTING_COOKIE: dict[str, Any] = {"cookie": ROUTING_COOKIE, "generated": True, "redis_prefixes": ()}
PRESETS: dict[Preset, dict[str, Any]] = {
    "express": {"cookie": "connect.sid", "pattern": r"s(?:%3A|:)(.+)\.[^.]+", "redis_prefixes": ("sess:",)},
    "flask": {"cookie": "session", "redis_prefixes": ("session:",)},
    "django": {"cookie": "sessionid", "redis_prefixes": (f"{_CACHE}cache", f"{_CACHE}cached_db")},
    "starsessions": {"cookie": "session", "redis_prefixes": ("starsessions.",)},
    "spring": {"cookie": "SESSION", "redis_prefixes": (_SPRING, f"{_SPRING}expires:"), "transform": "base64"},
    "php": {"cookie": "PHPSESSID", "redis_prefixes": ("PHPREDIS_SESSION:",), "redis_suffixes": ("_LOCK",)},
    "rails": _BY_ROUTING_COOKIE,
    "laravel": _BY_ROUTING_COOKIE,
    "aspnet": _BY_ROUTING_COOKIE,
    "gorilla": _BY_ROUTING_COOKIE,
}

_Part = Annotated[str, Field(min_length=1, max_length=256)]
_Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]


class SessionKey(BaseModel):
    """Where the session key is found: in one header, in one cookie or, in a TCP pool, in the client's address.

    ``pattern``: the cookie's value contains the session id, which is the one group of this regular expression.
    ``generated``: front Envoys set the cookie, with a random value, for clients that send no session key.
    ``redis_prefixes``: keys of the session store that begin so have the slot of the session id behind it, up to one of
    the ``redis_suffixes``. ``transform``: the cookie has the id in this form. ``preset`` stands for these fields as a
    web framework needs them; a field beside it replaces the preset's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    preset: Preset | None = None
    header: _Token | None = None
    cookie: _Token | None = None
    source_address: Literal[True] | None = None
    pattern: Annotated[str, Field(min_length=1, max_length=LENGTH_MOST)] | None = None
    generated: Literal[True] | None = None
    redis_prefixes: Annotated[tuple[_Part, ...], Field(max_length=16)] | None = None
    redis_suffixes: Annotated[tuple[_Part, ...], Field(max_length=16)] | None = None
    transform: Transform | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_preset(cls, raw: Any) -> Any:  # noqa: ANN401 - pydantic's
        preset = raw.get("preset") if isinstance(raw, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return raw
        if raw.get("header") is not None or raw.get("source_address") is not None:
            raise ValueError("a preset is for a cookie: write the header as an entry of its own, with redis_prefixes")
        return {**PRESETS[preset], **{name: value for name, value in raw.items() if name != "preset"}}

    @model_validator(mode="after")
    def _fits_together(self) -> "SessionKey":
        if sum(source is not None for source in (self.header, self.cookie, self.source_address)) != 1:
            raise ValueError(
                "name either a header or a cookie, or a preset (or source_address: true in a pool with protocol: tcp)"
            )
        if self.cookie is None and (self.pattern or self.generated):
            raise ValueError("pattern and generated are for cookies")
        if self.pattern and self.generated:
            raise ValueError("a generated cookie has no pattern: its whole value is hashed")
        if self.redis_prefixes is None and (self.redis_suffixes or self.transform):
            raise ValueError("redis_suffixes and transform need redis_prefixes: which keys are they about?")
        if self.cookie and self.pattern:
            try:
                header_regex(self.cookie, self.pattern)
            except PatternError as error:
                raise ValueError(f"pattern: {error}") from None
        return self

    def stores(self) -> list[StoreKeys]:
        """The keys of the session store, one entry for each prefix."""
        suffixes = tuple(sorted({*(self.redis_suffixes or ())}, key=lambda suffix: (-len(suffix), suffix)))
        return [StoreKeys(prefix, suffixes, self.transform) for prefix in self.redis_prefixes or ()]
