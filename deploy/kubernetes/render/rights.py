"""The Secret with the rights at the control servers' HTTP port, and the token with which our own pods read there. Pure.

Control servers get the whole Secret: ``rights.yaml`` says who may do what, and with the ``token`` they ask one another.
The operator's pod and Prometheus get the token alone. The rights are read again when the Secret changes.
"""

from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.render.plan import Plan

DIRECTORY = "/etc/understudy-rights"
VOLUME = "rights"
RIGHTS, TOKEN = "rights.yaml", "token"


def rights_variables(plan: Plan, *, whole: bool) -> list[Body]:
    """The variables of a container; ``whole``: it checks rights, and does not only ask."""
    if not plan.rights_secret:
        return []
    file = [{"name": "UNDERSTUDY_RIGHTS", "value": f"{DIRECTORY}/{RIGHTS}"}] if whole else []
    return [*file, {"name": "UNDERSTUDY_CONTROL_TOKEN_FILE", "value": f"{DIRECTORY}/{TOKEN}"}]


def rights_mounts(plan: Plan) -> list[Body]:
    """The mount of a container."""
    return [{"name": VOLUME, "mountPath": DIRECTORY, "readOnly": True}] if plan.rights_secret else []


def rights_volumes(plan: Plan, *, whole: bool) -> list[Body]:
    """The volume of its pod."""
    if not plan.rights_secret:
        return []
    secret: dict[str, Any] = {"secretName": plan.rights_secret, "defaultMode": 0o440}
    if not whole:
        secret["items"] = [{"key": TOKEN, "path": TOKEN}]
    return [{"name": VOLUME, "secret": secret}]


def rights_authorization(plan: Plan) -> Body:
    """How Prometheus shows the token, as part of an endpoint of a monitor in our namespace."""
    if not plan.rights_secret:
        return {}
    return {"authorization": {"credentials": {"name": plan.rights_secret, "key": TOKEN}}}
