"""Verifies an artifact's directory, a registry entry, random weights of a family, or everything."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from pylo_zoo import converters, parity, registry
from pylo_zoo.artifact import PAGE, Artifact, check_not_own_file, write_parity
from pylo_zoo.convert import convert, original
from pylo_zoo.converters.base import leaf_shapes
from pylo_zoo.errors import UsageError, ZooError
from pylo_zoo.fetch import Access, fetch, is_uri
from pylo_zoo.fetch.errors import Forbidden, NotFound, Unavailable
from pylo_zoo.files import check_target, write_file
from pylo_zoo.hub import is_pulled
from pylo_zoo.parity.jax_mode import jax_is_missing
from pylo_zoo.parity.leaves import nest
from pylo_zoo.parity.proof import SEED, Progress
from pylo_zoo.parity.vectors import replay
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Report
from pylo_zoo.samples.random_weights import RANDOM
from pylo_zoo.warn import warn
from pylo_zoo.weights import load

PUBLIC = ("hf://", "gs://")
"""Addresses from which a missing original is downloaded automatically."""
SCALE = 0.1
"""Standard deviation of random weights."""


@dataclass(frozen=True)
class VerifySettings:
    """Optional arguments of :func:`pylo_zoo.parity.verify`."""

    seed: int = SEED
    max_error: float = bounds.MAX_ERROR
    progress: Progress | None = None


def verify_target(
    target: str | Path,
    source: str | Path | None = None,
    *,
    access: Access | None = None,
    settings: VerifySettings | None = None,
) -> Report:
    """Run :func:`~pylo_zoo.parity.verify` on ``target``, and write the proof into the artifact's directory.

    Args:
        target: directory, registry name, ``hf://ORG/NAME``, or ``random:FAMILY``.
        source: the original checkpoint file or its URI. By default the copy that the conversion kept, or else a
            download from the artifact's source URI, which must have the recorded sha256.
        access: how to fetch files.
        settings: seed, bound and progress callback.

    Raises:
        ZooError: as :func:`~pylo_zoo.parity.verify`, or the original is not available.
    """
    settings = settings or VerifySettings()
    if isinstance(target, str) and target.startswith(RANDOM):
        return _verify_random(target.removeprefix(RANDOM), settings)
    artifact = load(target, proven=False, access=access)
    report = _verify(artifact, _original(artifact, source, access), settings)
    if artifact.path is not None and report.status != "not_run" and not is_pulled(artifact.path):
        if os.access(artifact.path, os.W_OK):
            write_parity(artifact.path, report.to_dict(), report.vectors)
        else:
            warn(f"{artifact.path} is read-only, so the proof was not written to it.")
    return report


def _original(artifact: Artifact, source: str | Path | None, access: Access | None) -> Path:
    """The file that ``artifact`` was converted from."""
    pin, uri = artifact.source, artifact.source.uri
    if source is None:
        if kept := original(pin.sha256):
            return kept
        if not uri.startswith(PUBLIC):
            raise ZooError(
                f"The original of {artifact.name} ({uri}, sha256 {pin.sha256}) is not available.",
                "Pass it with --source FILE.",
            )
        source = uri  # an untrusted artifact may name any URI, so only the public ones are fetched
    if isinstance(source, str) and is_uri(source):
        return fetch(source, sha256=pin.sha256, bytes=pin.bytes, access=access)
    return Path(source)


def replay_target(target: str | Path, *, access: Access | None = None) -> Report:
    """Run :func:`~pylo_zoo.parity.replay` on ``target``, a directory or ``hf://ORG/NAME``."""
    on_the_hub = isinstance(target, str) and target.startswith("hf://")
    name = str(target)
    if name.startswith(RANDOM) or (name in registry.load_registry() and not Path(name).is_dir()):
        raise UsageError(
            f"{name} has no stored vectors to replay.", "Pass an artifact's directory, or leave --replay out."
        )
    return replay(load(target if on_the_hub else Path(target), proven=False, access=access))


def _verify(artifact: Artifact, path: Path, settings: VerifySettings) -> Report:
    return parity.verify(artifact, path, seed=settings.seed, max_error=settings.max_error, progress=settings.progress)


def _verify_random(name: str, settings: VerifySettings) -> Report:
    family = converters.get(name)
    if jax_is_missing():
        raise ZooError(
            "Verifying random weights requires JAX, which is not installed.", "Run pip install 'pylo-zoo[jax]'."
        )
    from flax import serialization

    random = np.random.default_rng(settings.seed)
    leaves = {
        path: np.float32(SCALE) * random.standard_normal(shape, dtype=np.float32)
        for path, shape in sorted(leaf_shapes(family, family.released).items())
    }
    with TemporaryDirectory() as directory:
        path = Path(directory) / "theta.state"
        path.write_bytes(serialization.msgpack_serialize(nest(leaves)))
        report = _verify(replace(convert(name, source=path), name=RANDOM + name), path, settings)
    return replace(report, source={**report.source, "uri": f"{RANDOM}{name} (seed {settings.seed})"})


@dataclass
class VerifyResults:
    """The results of one or more verifications.

    Attributes:
        reports: the reports.
        missing: entries whose files are unavailable, with the reason.
        broken: entries that could not be read or run, with the error message.
    """

    reports: list[Report] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.reports) and not self.broken and all(report.passed for report in self.reports)


def verify_all(access: Access | None = None, settings: VerifySettings | None = None) -> VerifyResults:
    """Verify random weights of every family with a reference, and every registry entry whose files are available."""
    settings = settings or VerifySettings()
    if jax_is_missing():
        raise ZooError("Parity runs the original in JAX, which is not installed.", "Run pip install 'pylo-zoo[jax]'.")
    results = VerifyResults()
    for name in targets():
        try:
            results.reports.append(verify_target(name, access=access, settings=_with_name(settings, name)))
        except (NotFound, Forbidden, Unavailable) as error:
            results.missing[name] = error.message
        except ZooError as error:
            results.broken[name] = error.message
        except Exception as error:  # one failing entry must not lose the other reports
            results.broken[name] = f"{type(error).__name__}: {error}"
    return results


def targets() -> list[str]:
    """The targets of :func:`verify_all`, in order."""
    families = [f"{RANDOM}{name}" for name, family in converters.FAMILIES.items() if family.reference is not None]
    return [*families, *registry.load_registry()]


def _with_name(settings: VerifySettings, name: str) -> VerifySettings:
    """``settings`` with progress messages that begin with ``name``."""
    report = settings.progress
    if report is None:
        return settings
    return replace(settings, progress=lambda task, *parts: report(f"{name}: {task}", *parts))


# --- writing -----------------------------------------------------------------------------------------------------


class Pages(NamedTuple):
    """Paths of the report files to write; None skips one."""

    html: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None


def check_pages(pages: Pages) -> None:
    """Check that :func:`write_pages` can write ``pages``, before the verification takes its time.

    Raises:
        ZooError: a path is a directory or a file of an artifact, or its parent directory does not exist.
    """
    for path in pages:
        if path is not None:
            check_target(path)
        if path is not None and path.name != PAGE:
            check_not_own_file(path)


def write_pages(results: VerifyResults, pages: Pages) -> None:
    """Render ``results`` and write each file atomically."""
    reports = results.reports
    if pages.html:
        from pylo_zoo.report import html

        write_file(pages.html, html.render_html(reports).encode())
    if pages.markdown:
        from pylo_zoo.report import markdown

        text = markdown.render_markdown(reports[0]) if len(reports) == 1 else markdown.render_many(reports)
        write_file(pages.markdown, text.encode())
    if pages.junit:
        from pylo_zoo.report import junit

        write_file(pages.junit, junit.render_junit(reports, results.missing, results.broken).encode())
