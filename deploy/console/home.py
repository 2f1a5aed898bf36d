"""The home of a pool on two distant sites, in the words of ``understudy home status``, for a page. Pure.

A control server reads the etcd of its own site. At the home, how far the mirror is behind comes from the home's beat.
"""

from typing import Any

from understudy.deploy.mirror.status import loss_line, side_line
from understudy.statesync.pool.home import Role

NOT_KNOWN = "How far the mirror is behind is not known here."
NO_HOME = {"role": "", "side": "", "loss": "", "trouble": "", "command": ""}
"""Of a pool without a pair."""


def home_shown(view: dict[str, Any]) -> dict[str, str]:
    """The home for a page; ``view`` is :func:`understudy.deploy.mirror.status.home_view` of this side alone."""
    (side,), pool = view["sides"], view["pool"]
    if side["role"] == "none":
        return NO_HOME
    return {
        "role": str(side["role"]),
        "side": f"Here: {side_line(side)}.",
        "loss": _loss(side),
        "trouble": "; ".join(view["degraded"]),
        "command": _command(side, pool),
    }


def _loss(side: dict[str, Any]) -> str:
    if side.get("mirror"):
        line = loss_line(side["peer"], side["mirror"])
    elif side.get("peer_mirror"):
        line = loss_line(side["site"], side["peer_mirror"])
    else:
        return NOT_KNOWN
    return f"{line[0].upper()}{line[1:]}."


def _command(side: dict[str, Any], pool: str) -> str:
    """What an operator gives here: a move at the home; at the mirror a take-over, which shows an estimate first."""
    match side["role"]:
        case Role.HOME:
            return f"understudy home move --to {side['peer']} --pool {pool}"
        case Role.MIRROR:
            return f"understudy home take-over --pool {pool}"
        case _:
            return f"understudy home status --pool {pool}"
