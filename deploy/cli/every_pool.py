"""``--pool all`` of the reading commands: the command for every pool in etcd, one section for each."""

import asyncio
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from understudy.deploy.cli.failures import INTERRUPTED_EXIT_CODE, Failure, translating_errors
from understudy.deploy.common.completion import complete_pool
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import SECTION, EtcdOptions, Section, as_yaml, locate_pool
from understudy.deploy.common.printable import one_line, say

F = TypeVar("F", bound=Callable[..., Any])
EVERY_POOL = "all"


def pools_option(**one_only: str) -> Callable[[F], F]:
    """Add ``--pool``, which may be ``all``. It stands below the options that give the command ``etcd`` and ``output``.

    Args:
        one_only: parameters that are for one pool only, and their options.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def collect(pool: str | None, **given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
            if pool != EVERY_POOL:
                return command(pool=pool, **given)
            context = click.get_current_context()
            for name, option in one_only.items():
                if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"{option} is for one pool: name it with --pool")
            names = asyncio.run(_every_pool(given["etcd"]))
            return _run_all(lambda name: command(pool=name, **given), names, given["output"])

        text = "Name of the pool, or 'all' for every pool in etcd. Default: the local pool."
        option = click.option("--pool", envvar="UNDERSTUDY_POOL", shell_complete=complete_pool, help=text)
        return option(collect)  # type: ignore[return-value]

    return decorate


async def _every_pool(etcd: EtcdOptions) -> list[str]:
    from understudy.deploy.inspect.query import connect
    from understudy.statesync.pool.pools import pools_with_spec

    settings = locate_pool(etcd, EVERY_POOL).etcd
    async with connect(settings) as client:
        names = await pools_with_spec(client)
    if not names:
        where = ", ".join(settings.endpoints)
        raise DeployError(f"no pool in etcd at {where}: create one with 'understudy apply -f pool.yaml'")
    return names


def _run_all(run: Callable[[str], Any], pools: Sequence[str], output: str) -> None:
    """Run the command for each pool. What fails for one is shown in its section; the exit code is the worst one."""
    documents, worst = [], 0
    for number, pool in enumerate(pools):
        if output == "table":
            click.echo("\n" if number else "", nl=False)
            say(f"pool {pool}:")
        section = Section(pool)
        code, error = _run_one(run, section)
        if error and output in ("table", "name"):
            click.echo(f"understudy: pool {pool}: {one_line(error)}", err=True)
        worst = max(worst, code)
        documents.append(section.document(code, error))
    if output == "json":
        click.echo(json.dumps({"pools": documents}, indent=2))
    elif output == "yaml":
        click.echo(as_yaml({"pools": documents}), nl=False)
    if worst:
        raise SystemExit(worst)


def _run_one(run: Callable[[str], Any], section: Section) -> tuple[int, str]:
    """The exit code for one pool, and the error if there is one."""
    token = SECTION.set(section)
    try:
        translating_errors(lambda: run(section.pool))
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else 0), ""
    except Failure as failure:
        if failure.exit_code == INTERRUPTED_EXIT_CODE:
            raise
        return failure.exit_code, failure.message
    finally:
        SECTION.reset(token)
    return 0, ""
