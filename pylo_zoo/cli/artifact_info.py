"""``pylo-zoo info`` of an artifact, in a directory or on the Hub: what it is, its proof, its card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pylo_zoo.cli import output
from pylo_zoo.cli.sections import section, use

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.weights import LocalArtifact

NOT_RUN = "not_run"


def data(here: LocalArtifact, weights: str) -> dict[str, Any]:
    """All of it, as JSON holds it."""
    from pylo_zoo import artifact
    from pylo_zoo.files import read_regular
    from pylo_zoo.parity import phrases
    from pylo_zoo.parity.reading import read_report
    from pylo_zoo.usage import training

    made = here.artifact
    report = read_report(made.parity) if made.parity is not None else None
    card = here.directory / artifact.CARD
    config = made.config()
    return {
        "name": made.name,
        "family": made.family,
        "license": made.source.license,
        "directory": str(here.directory),
        "commit": here.commit,
        "newer": here.newer,
        "files": [
            {"name": name, "bytes": (here.directory / name).stat().st_size, "sha256": sha256}
            for name, sha256 in here.files.items()
        ],
        "source": {key: value for key, value in asdict(made.source).items() if key != "layout"},
        **{key: config[key] for key in ("architecture", "behavior", "defaults", "converter")},
        "parity": {
            "status": report.status if report else NOT_RUN,
            "verdict": phrases.verdict(report) if report else "There is no report.",
            "created": report.created if report else None,
            "environment": dict(report.environment) if report else {},
        },
        "usage": training(made.family, weights),
        "card": read_regular(card, artifact.MAX_JSON_BYTES).decode(errors="replace") if os.path.lexists(card) else None,
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """The same for a person; the card has a switch of its own."""
    console.print(output.printable(found["name"]), style="bold cyan")
    parity = found["parity"]
    about = {"family": found["family"], "licence": found["license"], "directory": found["directory"]}
    if found["commit"]:
        about["commit"] = found["commit"]
    section(console, "About", about)
    section(console, "Source", found["source"])
    section(
        console,
        "Parity",
        {
            "status": parity["status"],
            "verdict": parity["verdict"],
            **({"checked": parity["created"]} if parity["created"] else {}),
            **({"by": "its publisher; `pylo-zoo verify` makes a proof of your own"} if found["commit"] else {}),
        },
    )
    files = {each["name"]: f"{output.size(each['bytes'])}, sha256 {each['sha256'][:16]}…" for each in found["files"]}
    section(console, "Files", files)
    for title in ("architecture", "behavior", "defaults"):
        section(console, title.capitalize(), found[title])
    use(console, found["usage"])
    if found["card"]:
        console.print("\n--card prints its model card.")
