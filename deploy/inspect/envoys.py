"""The xDS state of a pool's Envoys, from all control servers. Read only.

An Envoy is connected to one control server at a time, so all control servers are asked. docs/xds.md explains the
states; this module merges the answers and shows them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import coloured, plain_table
from understudy.deploy.inspect.controls import ask_controls

View = dict[str, Any]
_WORST_FIRST = ("ERROR", "STALE", "NOT SENT", "SYNCED")
_TYPES = {
    "Cluster": "CDS",
    "ClusterLoadAssignment": "EDS",
    "Listener": "LDS",
    "RouteConfiguration": "RDS",
    "Secret": "SDS",
}


async def read_envoys(controls: Mapping[str, str], pool: str) -> View:
    """Ask all control servers (name -> HTTP address). Those that do not answer are under ``silent``."""
    answers = await ask_controls(controls.values(), "/v1/xds", pool)
    return envoys_view(dict(zip(controls, answers, strict=True)))


def envoys_view(answers: Mapping[str, Any]) -> View:
    """Merge the answers of control servers. An answer is a list of rows per node and type, or an error text."""
    nodes: dict[tuple[str, str], list[View]] = defaultdict(list)
    silent = {}
    for control, rows in answers.items():
        if not isinstance(rows, list):
            silent[control] = str(rows)
            continue
        for row in rows:
            nodes[row["node"], control].append(
                {
                    "type": type_name(row["type_url"]),
                    "sent": row["sent"],
                    "acked": row["acked"],
                    "state": row["state"],
                    "error": row["error"],
                }
            )
    return {
        "nodes": [
            {"node": node, "control": control, "state": worst(types), "types": types}
            for (node, control), types in sorted(nodes.items())
        ],
        "silent": silent,
    }


def worst(types: Sequence[Mapping[str, Any]]) -> str:
    """The state of an Envoy: the worst state of its resource types."""
    return next(state for state in _WORST_FIRST if any(one["state"] == state for one in types))


def type_name(type_url: str) -> str:
    """The short name of a resource type, such as ``CDS``; the message name if it has none."""
    message = type_url.rpartition(".")[2]
    return _TYPES.get(message, message)


def has_errors(view: View) -> bool:
    """Whether an Envoy rejects its configuration."""
    return any(node["state"] == "ERROR" for node in view["nodes"])


def envoys_table(view: View) -> RenderableType | None:
    """One line per Envoy; None if there is nothing to show."""
    table = plain_table("Envoy", "control server", "state", "error")
    for node in view["nodes"]:
        errors = [f"{one['type']}: {one['error']}" for one in node["types"] if one["error"]]
        table.add_row(node["node"], node["control"], coloured(node["state"]), Text("; ".join(errors)))
    return _with_silent([table] if view["nodes"] else [], view)


def xds_table(view: View) -> RenderableType:
    """One line per Envoy and resource type."""
    envoys = view["envoys"]
    if not envoys["nodes"]:
        return _with_silent([Text("no Envoy is connected")], envoys) or Text("")
    table = plain_table("NODE", "CONTROL", "TYPE", "SENT", "ACKED", "STATE", "ERROR")
    for node in envoys["nodes"]:
        for one in node["types"]:
            table.add_row(
                node["node"],
                node["control"],
                one["type"],
                one["sent"],
                one["acked"],
                coloured(one["state"]),
                Text(one["error"]),
            )
    return _with_silent([table], envoys) or Text("")


def _with_silent(parts: list[RenderableType], view: View) -> RenderableType | None:
    parts += [Text(f"! {name} does not answer: {why}", style="yellow") for name, why in view["silent"].items()]
    return Group(*parts) if parts else None
