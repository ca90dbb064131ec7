"""``pylo-zoo publish DIR --repo-id ORG/NAME``: publish an artifact and its proof on the Hub."""

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
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory of an artifact that passed parity.", readable=False)
    ],
    repo_id: Annotated[
        str, typer.Option(metavar="ORG/NAME", help="Repository to publish to; created if it does not exist.")
    ],
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="License of the weights, if it is unknown, such as MIT.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="Allow a new version in a repository that holds another one.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch to publish to; created if it does not exist.  [default: main]"),
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Tag for the published commit.")] = None,
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the commit.")] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Publish without a passing proof; the card shows this.")
    ] = False,
    update_registry: Annotated[
        bool, typer.Option("--update-registry", help="Write the commit and the hashes into the registry.")
    ] = False,
    registry: Annotated[
        Path, typer.Option(metavar="FILE", help="The registry that --update-registry writes.", readable=False)
    ] = REGISTRY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show exactly what would be sent, and send nothing.")] = (
        False
    ),
    token: output.Token = None,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Publish an artifact on the Hub, with its proof and a model card.

    All files are uploaded in one commit and read back. The command refuses to publish without a passing parity report
    for exactly these weights, if the directory contains a secret or an unknown file, or if the license is unknown. If
    it is interrupted, run it again.
    """
    if registry != REGISTRY and not update_registry:
        raise typer.BadParameter("--registry requires --update-registry.")
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
    published = publish_artifact(
        directory,
        repo_id,
        license=license,
        allow_unverified=allow_unverified,
        options=options,
        dry_run=dry_run,
        access=output.access(quiet=quiet, token=token),
    )
    human = published.url if quiet else lambda console: _show(published, dry_run, options.registry, console)
    output.emit(_data(published, dry_run), human, json=json)


def _data(published: Published, dry_run: bool) -> dict[str, Any]:
    plan = published.plan
    files = [
        {"name": name, "change": what, "bytes": len(plan.files.get(name, b"")), "sha256": plan.hashes.get(name)}
        for name, what in published.changes.items()
    ]
    return {
        "repo_id": plan.repo.id,
        "dry_run": dry_run,
        "url": published.url,
        "commit": published.commit,
        "unchanged": published.unchanged,
        "sent": published.sent,
        "exists": published.exists,
        "created": published.created,
        "private": published.private,
        "pull_request": published.pull_request,
        "license": plan.license,
        "verified": plan.verified,
        "files": files,
        "left_out": list(plan.left_out),
        **({"card": plan.files["README.md"].decode()} if dry_run else {}),
    }


def _show(published: Published, dry_run: bool, registry: Path | None, console: Console) -> None:
    from rich.table import Table

    plan = published.plan
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, justify in (("file", "left"), ("size", "right"), ("sha256", "left"), ("", "left")):
        table.add_column(title, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for name, what in published.changes.items():
        data = plan.files.get(name)
        table.add_row(name, output.size(len(data)) if data is not None else "", plan.hashes.get(name, "")[:12], what)
    console.print(table)
    for name in plan.left_out:
        why = ": a new card is generated" if name == "README.md" else ""
        console.print(f"{name} is not uploaded{why}.")
    proof = "parity passed" if plan.verified else "UNVERIFIED (shown on its card)"
    private = {True: "private", False: "public", None: "visibility unknown"}[published.private]
    console.print(f"\n{plan.repo.id}: {plan.license}, {proof}, {private}.", soft_wrap=True)
    if dry_run:
        exists = {True: "exists", False: "would be created", None: "was not looked up"}[published.exists]
        console.print(f"The repository {exists}. Nothing was sent (--dry-run). Its card would be:\n", soft_wrap=True)
        console.print(output.printable_lines(plan.files["README.md"].decode()), soft_wrap=True)
        return
    if published.unchanged:
        console.print("Everything was published already; nothing was sent.")
    elif not published.sent:
        console.print(f"Published already as {published.commit}; nothing was sent.", soft_wrap=True)
    else:
        done = "Proposed" if published.pull_request else "Published"
        console.print(f"{done} as {published.commit}; every file was read back and matches.", soft_wrap=True)
    if registry is not None:
        console.print(f"Pinned in {registry}.", soft_wrap=True)
    console.print(published.url, soft_wrap=True)
