"""``pylo-zoo convert NAME_OR_FAMILY``: convert a published checkpoint into a verified artifact."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.pipeline import ConversionResult


class Format(str, Enum):
    """File format of the weights."""

    safetensors = "safetensors"
    pt = "pt"


class Dtype(str, Enum):
    """Target of ``--cast``."""

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
            help="A registry name, or a family with --source.",
            autocompletion=complete.names_or_families,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_URI",
            help="Your own checkpoint: a path, https://, gs:// or hf://. Pass a directory for orbax and for VeLO in "
            "PyLO's two files.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the artifact.  [default: zoo/NAME]", readable=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A setting that the checkpoint does not store; repeatable."),
    ] = None,
    cast: Annotated[
        Dtype | None, typer.Option(help="Convert float64, bf16, fp16 and fp8 weights to this dtype.")
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinite weights.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
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
    """Convert a JAX or PyLO checkpoint into a torch artifact.

    The result is compared with the original implementation, and the proof is stored with it. Supported formats: flax
    msgpack (theta.state, Google's params and *.checkpoint), pickles, npz, orbax directories, and PyLO's safetensors
    and .pt.
    """
    from pylo_zoo import convert as library
    from pylo_zoo import pipeline

    try:
        with output.progress(quiet=quiet) as progress:
            result = pipeline.build_artifact(
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
    except pipeline.ParityError as error:
        from pylo_zoo.report import tables

        report = error.report
        output.emit(
            {"directory": None, "parity": report.to_dict()},
            lambda console: tables.print_report(report, console),
            json=json,
        )
        raise
    if result.report.reason is not None:
        output.note(f"Warning: parity was not checked: {result.report.reason}.", quiet=quiet)
    human = output.printable(str(result.directory)) if quiet else lambda console: _show(result, console)
    output.emit(_data(result), human, json=json)


def _data(result: ConversionResult) -> dict[str, Any]:
    content = result.artifact.config()
    source = {key: value for key, value in content["source"].items() if key != "layout"}
    return {
        "directory": str(result.directory),
        **{key: content[key] for key in ("name", "family", "architecture", "behavior", "defaults")},
        "source": source,
        "matched_entry": result.matched,
        "parity": {key: value for key, value in (result.artifact.parity or {}).items() if key in ("status", "reason")},
    }


def _show(result: ConversionResult, console: Console) -> None:
    from pylo_zoo.report import tables

    if result.report.checks:
        tables.print_report(result.report, console)
    source = result.artifact.source
    entry = f", the registry's {result.matched}" if result.matched else ""
    console.print(output.printable(str(result.directory)), style="bold cyan", soft_wrap=True)
    console.print(f"  {result.artifact.family} from {output.printable(source.uri)}{entry}", soft_wrap=True)
    console.print(f"  sha256 {source.sha256}", soft_wrap=True)
