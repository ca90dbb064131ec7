"""``pylo-zoo publish DIR --repo-id ORG/NAME``: an artifact, with its proof, on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import output

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.publish import Published

EXAMPLES = """
pylo-zoo publish zoo/celo --repo-id ORG/celo --dry-run
pylo-zoo publish zoo/celo --repo-id ORG/celo --tag v1
pylo-zoo publish zoo/mine --repo-id ORG/mine --license MIT --private
pylo-zoo publish zoo/celo --repo-id ORG/celo --create-pr
"""
REGISTRY = Path("registry.yaml")


def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact's directory, parity passed.")],
    repo_id: Annotated[str, typer.Option(metavar="ORG/NAME", help="Where to; made if it is missing.")],
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="Of the weights, where nobody has said, such as MIT.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Publish a new version where another one is.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to publish to; made if it is missing.  [default: main]")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Set on what is published.")] = None,
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the commit.")] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Without a passing proof, which the card then says.")
    ] = False,
    update_registry: Annotated[
        bool, typer.Option("--update-registry", help="Write commit and hashes into the registry.")
    ] = False,
    registry: Annotated[
        Path, typer.Option(metavar="FILE", help="The registry that --update-registry writes.")
    ] = REGISTRY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; show exactly what would go.")] = False,
    token: output.Token = None,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Publish an artifact on the Hub, with its proof and a card.

    It goes in one commit, and is read back. Nothing goes without a passing parity report of just these weights, with a
    secret or a strange file in the directory, or under a licence that nobody has stated. Running it again finishes
    what was interrupted.
    """
    if registry != REGISTRY and not update_registry:
        raise typer.BadParameter("--registry goes with --update-registry.")
    from pylo_zoo.publish import Options
    from pylo_zoo.publish import publish as publish_artifact

    options = Options(
        private=private,
        create_pr=create_pr,
        branch=revision,
        tag=tag,
        message=commit_message,
        exist_ok=exist_ok,
        registry=registry if update_registry else None,
    )
    found = publish_artifact(
        directory,
        repo_id,
        license=license,
        allow_unverified=allow_unverified,
        options=options,
        dry_run=dry_run,
        access=output.access(quiet=quiet, token=token),
    )
    human = found.url if quiet else lambda console: _show(found, dry_run, options.registry, console)
    output.emit(_data(found, dry_run), human, json=json)


def _data(found: Published, dry_run: bool) -> dict[str, Any]:
    hashes = found.plan.hashes
    files = [
        {"name": name, "change": what, "bytes": len(found.plan.files.get(name, b"")), "sha256": hashes.get(name)}
        for name, what in found.changes.items()
    ]
    return {
        "repo_id": found.plan.repo.id,
        "dry_run": dry_run,
        "url": found.url,
        "commit": found.commit,
        "unchanged": found.unchanged,
        "sent": found.sent,
        "exists": found.exists,
        "created": found.created,
        "private": found.private,
        "pull_request": found.pull_request,
        "license": found.plan.license,
        "verified": found.plan.verified,
        "files": files,
        "left_out": list(found.plan.left_out),
        **({"card": found.plan.files["README.md"].decode()} if dry_run else {}),
    }


def _show(found: Published, dry_run: bool, registry: Path | None, console: Console) -> None:
    from rich.table import Table

    hashes = found.plan.hashes
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, justify in (("file", "left"), ("size", "right"), ("sha256", "left"), ("", "left")):
        table.add_column(title, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for name, what in found.changes.items():
        data = found.plan.files.get(name)
        table.add_row(name, output.size(len(data)) if data is not None else "", hashes.get(name, "")[:12], what)
    console.print(table)
    for name in found.plan.left_out:
        why = ": the card is written again" if name == "README.md" else ""
        console.print(f"{name} stays here{why}.")
    proof = "parity passed" if found.plan.verified else "UNVERIFIED, which its card says"
    private = {True: "private", False: "public", None: "visibility unknown"}[found.private]
    console.print(f"\n{found.plan.repo.id}: {found.plan.license}, {proof}, {private}.", soft_wrap=True)
    if dry_run:
        there = {True: "exists", False: "would be made", None: "was not asked"}[found.exists]
        console.print(f"The repository {there}. Nothing was sent (--dry-run). Its card would be:\n", soft_wrap=True)
        console.print(output.printable_lines(found.plan.files["README.md"].decode()), soft_wrap=True)
        return
    if found.unchanged:
        console.print("All of it was there already; nothing was sent.")
    elif not found.sent:
        console.print(f"It was there already as {found.commit}; nothing was sent.", soft_wrap=True)
    else:
        done = "Proposed" if found.pull_request else "Published"
        console.print(f"{done} as {found.commit}, and read back: every file is what was sent.", soft_wrap=True)
    if registry is not None:
        console.print(f"Pinned in {registry}.", soft_wrap=True)
    console.print(found.url, soft_wrap=True)
