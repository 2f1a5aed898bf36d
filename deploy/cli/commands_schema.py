"""``understudy schema``: the JSON schema of pool specs, for editors."""

import json

import click

from understudy.deploy.common.options import examples


@click.command(
    epilog=examples(
        "understudy schema > pool.schema.json",
        "",
        "Then write this as the first line of pool.yaml:",
        "# yaml-language-server: $schema=pool.schema.json",
    )
)
def schema() -> None:
    """Print the JSON schema of pool specs, for editors that complete and check YAML.

    A schema cannot check everything, for example whether the running pool has this number of slots. Use 'understudy
    apply --dry-run' for that.
    """
    from understudy.statesync.pool.spec_schema import spec_schema

    click.echo(json.dumps(spec_schema(), indent=2))
