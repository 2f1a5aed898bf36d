"""The command ``render``: writes manifests. The subcommand of a platform is imported when it is called."""

import importlib

import click

from understudy.deploy.common.options import examples

PLATFORMS = {
    "istio": "understudy.deploy.cli.commands_istio",
    "kubernetes": "understudy.deploy.cli.commands_kubernetes",
}


class Platforms(click.Group):
    """The platforms. Each is a module with a command of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names."""
        return list(PLATFORMS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the command of a platform."""
        module = PLATFORMS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command


@click.group(
    cls=Platforms,
    epilog=examples(
        "understudy render kubernetes -f pool.yaml --out manifests --registry registry.example/shop",
        "understudy render istio -f pool.yaml --istio-version 1.29 --out istio",
    ),
)
def render() -> None:
    """Write manifests that run a pool on a platform. Nothing is applied."""
