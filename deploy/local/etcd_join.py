"""How a member of etcd of a local pool starts that has lost its data, and that etcd has been told to expect again.

Whoever adds the member to etcd writes a file in the state directory. While the member has no data, its supervisor
starts it with what is in the file. Later etcd goes by its data, whatever its arguments say.
"""

import json
from dataclasses import replace
from pathlib import Path

from understudy.deploy.common.layout import write_atomically
from understudy.deploy.local.processes import Program

JOIN_FILE = "etcd-join.json"


def expect(directory: Path, name: str, cluster: str) -> None:
    """The member ``name`` has been added. ``cluster`` names all members as ``--initial-cluster`` does."""
    write_atomically(directory / JOIN_FILE, json.dumps({"name": name, "cluster": cluster}))


def joined(directory: Path) -> None:
    """The member has joined, and has data."""
    (directory / JOIN_FILE).unlink(missing_ok=True)


def joining(program: Program, directory: Path) -> Program:
    """A program as it is started: with further arguments if it is the member of etcd that is expected."""
    try:
        found = json.loads((directory / JOIN_FILE).read_text(encoding="utf-8"))
        name, cluster = found["name"], found["cluster"]
    except (OSError, ValueError, KeyError, TypeError):
        return program
    if program.name != name or (directory / name / "member").exists():
        return program
    more = ("--initial-cluster-state", "existing", "--initial-cluster", str(cluster))  # etcd takes the last of each
    return replace(program, command=(*program.command, *more))
