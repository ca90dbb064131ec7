"""``pylo-zoo convert NAME_OR_FAMILY``: a published checkpoint into an artifact, proven."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.convert import ConversionResult


class Format(str, Enum):
    """What to write the weights as."""

    safetensors = "safetensors"
    pt = "pt"


class Dtype(str, Enum):
    """What to cast other floats to."""

    float32 = "float32"


EXAMPLES = """
pylo-zoo convert celo
pylo-zoo convert velo-sample --out zoo/sample --force
pylo-zoo convert celo2 --source theta.state --out zoo/mine
pylo-zoo convert velo --source params --set ff_mult=1.0
pylo-zoo convert celo --source hf://ORG/REPO/theta.state@main
"""


def convert(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FAMILY",
            help="A registry name; with --source, a family.",
            autocompletion=complete.names_or_families,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_URI",
            help="A checkpoint of your own: path, https://, gs:// or hf://. A directory for orbax, or for PyLO's two "
            "files of VeLO.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the artifact.  [default: zoo/NAME]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="What no file says; repeatable.")
    ] = None,
    cast: Annotated[Dtype | None, typer.Option(help="Round float64, or widen bf16, fp16 and fp8, to this.")] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Take NaN and infinite weights as they are.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the comparison with the original.")] = False,
    format: Annotated[Format, typer.Option(help="pt also writes model.pt, a torch.save state_dict.")] = (
        Format.safetensors
    ),
    offline: output.Offline = False,
    lock: output.Lock = None,
    update_lock: output.UpdateLock = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Convert a checkpoint, JAX's or PyLO's, into a torch artifact.

    The result is proven to compute what the original computes. Read are flax msgpack (theta.state, Google's params and
    *.checkpoint), pickles, npz, orbax directories, and PyLO's safetensors and .pt.
    """
    from pylo_zoo import convert as library

    try:
        with output.progress(quiet=quiet) as progress:
            made = library.make(
                name,
                source=source,
                out=out,
                settings=library.parse_settings(settings or []),
                force=force,
                verify=not no_verify,
                pt=format is Format.pt,
                access=output.access(offline=offline, lock=lock, update_lock=update_lock, quiet=quiet),
                allowed=library.ConversionPolicy(cast.value if cast else None, allow_nonfinite),
                progress=progress,
            )
    except library.ParityError as error:
        from pylo_zoo.parity import tables

        report = error.report
        output.emit(
            {"directory": None, "parity": report.to_dict()},
            lambda console: tables.print_report(report, console),
            json=json,
        )
        raise
    if made.report.reason is not None:
        output.note(f"Warning: parity was not checked: {made.report.reason}.", quiet=quiet)
    output.emit(
        _data(made), output.printable(str(made.directory)) if quiet else lambda console: _show(made, console), json=json
    )


def _data(made: ConversionResult) -> dict[str, Any]:
    content = made.artifact.config()
    source = {key: value for key, value in content["source"].items() if key != "layout"}
    return {
        "directory": str(made.directory),
        **{key: content[key] for key in ("name", "family", "architecture", "behavior", "defaults")},
        "source": source,
        "matched_entry": made.matched,
        "parity": {key: value for key, value in (made.artifact.parity or {}).items() if key in ("status", "reason")},
    }


def _show(made: ConversionResult, console: Console) -> None:
    from pylo_zoo.parity import tables

    if made.report.checks:
        tables.print_report(made.report, console)
    source = made.artifact.source
    known = f", the registry's {made.matched}" if made.matched else ""
    console.print(output.printable(str(made.directory)), style="bold cyan", soft_wrap=True)
    console.print(f"  {made.artifact.family} from {output.printable(source.uri)}{known}", soft_wrap=True)
    console.print(f"  sha256 {source.sha256}", soft_wrap=True)
