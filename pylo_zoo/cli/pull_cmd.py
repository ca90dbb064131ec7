"""``pylo-zoo pull NAME``: a published artifact on this disk, complete and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output

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
            help="A name that `pylo-zoo list` shows, or ORG/NAME on the Hub, also as hf://ORG/NAME@REVISION.",
            autocompletion=complete.names,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Commit, branch or tag.  [default: the main branch]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy it there.  [default: it stays in the cache]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an artifact that is there.")] = False,
    token: output.Token = None,
    offline: output.Offline = False,
    lock: output.Lock = None,
    update_lock: output.UpdateLock = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Fetch a published artifact, verified, whole or not at all.

    What a branch or tag is goes into the lock file the first time, and stays so until --update-lock. A repository that
    holds a checkpoint of JAX or PyLO is converted here. Pickles are never taken.
    """
    from pylo_zoo import weights

    access = output.access(offline=offline, lock=lock, update_lock=update_lock, quiet=quiet, token=token)
    here = weights.pull(name, revision=revision, out=out, force=force, access=access)
    human = output.printable(str(here.directory)) if quiet else lambda console: _show(here, name, console)
    output.emit(_data(here), human, json=json)


def _data(here: LocalArtifact) -> dict[str, Any]:
    made = here.artifact
    return {
        "directory": str(here.directory),
        "name": made.name,
        "family": made.family,
        "license": made.source.license,
        "commit": here.commit,
        "newer": here.newer,
        "parity": _parity(made),
        "source": {"uri": made.source.uri, "sha256": made.source.sha256},
        "files": dict(here.files),
        "fetched": here.fetched,
    }


def _parity(made: Artifact) -> str:
    """What its proof says; one that failed was refused."""
    return "passed" if (made.parity or {}).get("status") == "passed" else "not_run"


def _show(here: LocalArtifact, name: str, console: Console) -> None:
    made = here.artifact
    local = Path(name).is_dir()
    how = "here already" if local else {True: "pulled", False: "in the cache", None: "converted here"}[here.fetched]
    at = f" at {here.commit[:12]}" if here.commit else ""
    console.print(f"{output.printable(made.name)} ({made.family}){at}: {how}, {len(here.files)} files verified.")
    target = name if "/" not in name or name.startswith("hf://") or local else f"hf://{name}"
    parity = {
        "passed": "passed where it was published" if here.commit else "passed",
        "not_run": f"not checked; `pylo-zoo verify {output.printable(target)}` does",
    }
    console.print(f"  parity   {parity[_parity(made)]}", soft_wrap=True)
    console.print(f"  licence  {output.printable(made.source.license)}", soft_wrap=True)
    console.print(f"  from     {output.printable(made.source.uri)}", soft_wrap=True)
    console.print(f"  in       {output.printable(str(here.directory))}", soft_wrap=True)
