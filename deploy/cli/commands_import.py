"""``understudy import``: makes pool specs of the session affinity that another proxy has."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import examples, report_output_option, shown_option
from understudy.deploy.common.printable import block, say

if TYPE_CHECKING:
    from understudy.deploy.importing.pools import Imported
    from understudy.deploy.importing.reading import Format

NOTES_FILE = "notes.txt"
_STDIN = "stdin"


@click.command(
    name="import",
    epilog=examples(
        "kubectl get ingress,service -A -o yaml | understudy import -",
        "kubectl get httproutes,backendtrafficpolicies -A -o yaml > routes.yaml",
        "understudy import routes.yaml --output-dir pools",
        "understudy import destination-rules.yaml services.yaml --output-dir pools -o json",
        "understudy import haproxy.cfg",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE|-...")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Directory for POOL.yaml of each pool, and {NOTES_FILE}. Default: pools to stdout, notes to stderr.",
)
@click.option("--force", is_flag=True, help="Replace files that --output-dir already has.")
@shown_option(
    "--format",
    "kind",
    type=click.Choice(["auto", "kubernetes", "haproxy"]),
    default="auto",
    help="What the files are; auto looks at each of them.",
)
@report_output_option
def import_(files: tuple[str, ...], output_dir: Path | None, force: bool, kind: "Format", output: str) -> None:
    """Read session affinity of other proxies; write a pool spec per application, and what cannot be carried over.

    It reads annotations of ingress-nginx, policies of Envoy Gateway, session persistence of the Gateway API, Istio's
    DestinationRules and labels for persistent sessions, and HAProxy configurations. Nothing is guessed: each note says
    why something is not in the pool file, and what to do. Nothing is applied.

    Exit code 1: nothing in the files became a pool. Exit code 2: a file cannot be read; then nothing is written.
    """
    from understudy.deploy.importing.reading import import_texts
    from understudy.deploy.importing.report import import_view

    imported = import_texts(_texts(files), kind)
    written = _write(imported, output_dir, force=force) if output_dir is not None and imported.pools else {}
    if output == "json":
        click.echo(json.dumps(import_view(imported, written), indent=2))
    else:
        _show(imported, written)
    if not imported.pools:
        why = "the notes say why" if imported.notes else "it has no session affinity that import reads (docs/moving.md)"
        raise NegativeAnswer(f"nothing in the input became a pool; {why}")


def _texts(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """The files' texts with their names. Raises :class:`DeployError`, with a line for each file at fault."""
    from understudy.statesync.parsing.spec_yaml import FILE_MOST

    texts: list[tuple[str, str]] = []
    faults: list[str] = []
    for file in files:
        try:
            if file == "-":
                texts.append((_STDIN, sys.stdin.read(FILE_MOST + 1)))
                continue
            with Path(file).open(encoding="utf-8") as opened:
                texts.append((file, opened.read(FILE_MOST + 1)))
        except OSError as error:
            faults.append(f"{file} cannot be read: {error.strerror}")
        except ValueError as error:
            faults.append(f"{file} cannot be read: {error}")
    if faults:
        raise DeployError("\n".join(faults))
    return texts


def _write(imported: "Imported", directory: Path, *, force: bool) -> dict[str, str]:
    """Write the files; the file of each pool. Raises :class:`DeployError` if one is there and may not be replaced."""
    from understudy.deploy.common.layout import write_atomically
    from understudy.deploy.importing.report import notes_text

    texts = {directory / f"{pool.spec.pool}.yaml": pool.text for pool in imported.pools}
    present = sorted(str(path) for path in (*texts, directory / NOTES_FILE) if path.exists())
    if present and not force:
        raise DeployError(f"{', '.join(present)} exists: choose another --output-dir, or replace with --force")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in {**texts, directory / NOTES_FILE: block(notes_text(imported))}.items():
            write_atomically(path, text)
    except OSError as error:
        raise DeployError(f"{directory} cannot be written: {error.strerror}; choose another --output-dir") from None
    return {pool.spec.pool: str(path) for pool, path in zip(imported.pools, texts, strict=True)}


def _show(imported: "Imported", written: dict[str, str]) -> None:
    from understudy.deploy.importing.report import notes_text

    if not written:
        click.echo("---\n".join(pool.text for pool in imported.pools), nl=False)
    click.echo(block(notes_text(imported)), nl=False, err=not written)
    for pool, file in written.items():
        say(f"pool {pool}: {file}; next: understudy apply -f {file} --dry-run")
