"""``pylo-zoo info`` for an artifact in a directory or on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pylo_zoo.cli import output
from pylo_zoo.cli.sections import print_usage, section

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.artifact import Artifact
    from pylo_zoo.weights import LocalArtifact

NOT_RUN = "not_run"


def data(loaded: Artifact, local: LocalArtifact | None, weights: str) -> dict[str, Any]:
    """The description of an artifact, as printed by ``--json``.

    Args:
        loaded: the artifact.
        local: its files, or None for random weights, which have no files.
        weights: what a user passes as ``weights=``.
    """
    from pylo_zoo.report import phrases
    from pylo_zoo.report.reading import read_report
    from pylo_zoo.usage import training

    report = read_report(loaded.parity) if loaded.parity is not None else None
    config = loaded.config()
    return {
        "name": loaded.name,
        "family": loaded.family,
        "license": loaded.source.license,
        "directory": str(local.directory) if local else None,
        "commit": local.commit if local else None,
        "newer": local.newer if local else None,
        "files": _files(local) if local else [],
        "source": {key: value for key, value in asdict(loaded.source).items() if key != "layout"},
        **{key: config[key] for key in ("architecture", "behavior", "defaults", "converter")},
        "parity": {
            "status": report.status if report else NOT_RUN,
            "verdict": phrases.verdict(report) if report else "No parity report exists.",
            "created": report.created if report else None,
            "environment": dict(report.environment) if report else {},
        },
        "usage": training(loaded.family, weights),
        "card": _card(local) if local else None,
    }


def _files(local: LocalArtifact) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": (local.directory / name).stat().st_size, "sha256": sha256}
        for name, sha256 in local.files.items()
    ]


def _card(local: LocalArtifact) -> str | None:
    from pylo_zoo import artifact
    from pylo_zoo.files import read_regular

    path = local.directory / artifact.CARD
    return read_regular(path, artifact.MAX_JSON_BYTES).decode(errors="replace") if os.path.lexists(path) else None


def show(info: Mapping[str, Any], console: Console) -> None:
    """Print the description ``info`` that :func:`data` returns, without the model card."""
    console.print(output.printable(info["name"]), style="bold cyan")
    parity = info["parity"]
    keys = ("family", "license", "directory", "commit")
    section(console, "About", {key: info[key] for key in keys if info[key] is not None})
    unset = () if info["directory"] else ("sha256", "bytes")  # random weights have no file
    section(console, "Source", {key: value for key, value in info["source"].items() if key not in unset})
    section(
        console,
        "Parity",
        {
            "status": "not checked" if parity["status"] == NOT_RUN else parity["status"],
            "verdict": parity["verdict"],
            **({"checked": parity["created"]} if parity["created"] else {}),
            **({"by": "its publisher; `pylo-zoo verify` repeats the check here"} if info["commit"] else {}),
        },
    )
    files = {each["name"]: f"{output.size(each['bytes'])}, sha256 {each['sha256'][:16]}…" for each in info["files"]}
    section(console, "Files", files)
    for title in ("architecture", "behavior", "defaults"):
        section(console, title.capitalize(), info[title])
    print_usage(console, info["usage"])
    if info["card"]:
        console.print("\nUse --card to print its model card.")
