"""``pylo-zoo pull NAME``: download and verify a published artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import count

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.artifact import Artifact
    from pylo_zoo.weights import LocalArtifact

EXAMPLES = """
pylo-zoo pull celo
pylo-zoo pull ORG/NAME --revision v1 --out zoo/name
pylo-zoo pull hf://ORG/NAME@COMMIT --json
pylo-zoo pull ORG/NAME --update-lock
"""


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name from `pylo-zoo list`, or ORG/NAME or hf://ORG/NAME@REVISION on the Hub.",
            autocompletion=complete.names,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Commit, branch or tag.  [default: the main branch]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory to copy it to.  [default: the cache only]", readable=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing artifact.")] = False,
    token: output.Token = None,
    offline: output.Offline = False,
    lock: output.Lock = None,
    update_lock: output.UpdateLock = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Download a published artifact and verify its files.

    The first pull records the commit of a branch or tag in the lock file; later pulls use that commit until
    --update-lock. A repository with a JAX or PyLO checkpoint is converted on this machine. Pickles are refused.
    """
    from pylo_zoo import weights

    access = output.access(offline=offline, lock=lock, update_lock=update_lock, quiet=quiet, token=token)
    pulled = weights.pull(name, revision=revision, out=out, force=force, access=access)
    human = output.printable(str(pulled.directory)) if quiet else lambda console: _show(pulled, name, console)
    output.emit(_data(pulled), human, json=json)


def _data(pulled: LocalArtifact) -> dict[str, Any]:
    artifact = pulled.artifact
    return {
        "directory": str(pulled.directory),
        "name": artifact.name,
        "family": artifact.family,
        "license": artifact.source.license,
        "commit": pulled.commit,
        "newer": pulled.newer,
        "parity": _parity(artifact),
        "source": {"uri": artifact.source.uri, "sha256": artifact.source.sha256},
        "files": dict(pulled.files),
        "fetched": pulled.fetched,
    }


def _parity(artifact: Artifact) -> str:
    """The status of its parity report; an artifact that failed was refused before."""
    return "passed" if (artifact.parity or {}).get("status") == "passed" else "not_run"


def _show(pulled: LocalArtifact, name: str, console: Console) -> None:
    artifact = pulled.artifact
    local = Path(name).is_dir()
    origins = {True: "pulled", False: "in the cache", None: "converted locally"}
    how = "a local directory" if local else origins[pulled.fetched]
    files = count(len(pulled.files), "file")
    at = f" at {pulled.commit[:12]}" if pulled.commit else ""
    console.print(f"{output.printable(artifact.name)} ({artifact.family}){at}: {how}, {files} verified.")
    target = name if "/" not in name or name.startswith("hf://") or local else f"hf://{name}"
    parity = {
        "passed": "passed before it was published" if pulled.commit else "passed",
        "not_run": f"not checked; run `pylo-zoo verify {output.printable(target)}`",
    }
    console.print(f"  parity   {parity[_parity(artifact)]}", soft_wrap=True)
    console.print(f"  license  {output.printable(artifact.source.license)}", soft_wrap=True)
    console.print(f"  from     {output.printable(artifact.source.uri)}", soft_wrap=True)
    console.print(f"  in       {output.printable(str(pulled.directory))}", soft_wrap=True)
