"""``understudy schema``: what an editor needs to know of pool specs."""

import json

import click

from understudy.deploy.common.options import examples


@click.command(
    epilog=examples(
        "understudy schema > pool.schema.json",
        "",
        "and as the first line of pool.yaml:",
        "# yaml-language-server: $schema=pool.schema.json",
    )
)
def schema() -> None:
    """Print the JSON schema of pool specs, for editors that complete and check YAML.

    What a schema cannot tell, such as a number of slots that the running pool does not have, 'understudy apply
    --dry-run' does.
    """
    from understudy.statesync.pool.spec_schema import spec_schema

    click.echo(json.dumps(spec_schema(), indent=2))
