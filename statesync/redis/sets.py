"""Commands on sets. Pure."""

from typing import Final

from understudy.statesync.redis.command import Rule

RULES: Final[dict[bytes, Rule]] = {}
