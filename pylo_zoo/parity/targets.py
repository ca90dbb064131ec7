"""What can be verified: an artifact's directory, a registry entry, random weights of a family, or everything."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from pylo_zoo import converters, parity, registry
from pylo_zoo.artifact import Artifact, write_parity
from pylo_zoo.convert import convert, original
from pylo_zoo.converters.base import leaf_shapes
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, fetch, is_uri
from pylo_zoo.fetch.errors import Forbidden, NotFound, Unavailable
from pylo_zoo.files import write_file
from pylo_zoo.hub import is_pulled
from pylo_zoo.parity import bounds
from pylo_zoo.parity.jax_mode import jax_is_missing
from pylo_zoo.parity.leaves import nest
from pylo_zoo.parity.proof import SEED, Progress
from pylo_zoo.parity.report import Report
from pylo_zoo.parity.vectors import replay
from pylo_zoo.samples.random_weights import RANDOM
from pylo_zoo.warn import warn
from pylo_zoo.weights import load

PUBLIC = ("hf://", "gs://")
"""Where an original is looked for that is not at hand."""
SCALE = 0.1
"""Standard deviation of random weights."""


@dataclass(frozen=True)
class How:
    """How to verify: the arguments of :func:`pylo_zoo.parity.verify`."""

    seed: int = SEED
    max_error: float = bounds.MAX_ERROR
    progress: Progress | None = None


def verify_target(
    target: str | Path, source: str | Path | None = None, *, access: Access | None = None, how: How | None = None
) -> Report:
    """:func:`~pylo_zoo.parity.verify` an artifact's directory, whose proof is replaced, a registry entry, one on the
    Hub, or random weights.

    Args:
        target: directory, registry name, ``hf://ORG/NAME``, or ``random:FAMILY``.
        source: the original checkpoint file, or its address; by default the copy that the conversion kept, or what is
            at the address on the Hub or in a bucket that the artifact names, if that has the hash that it names.
        access: how to fetch.
        how: seed, bound and progress.

    Raises:
        ZooError: as :func:`~pylo_zoo.parity.verify`, or the original is not at hand.
    """
    how = how or How()
    if isinstance(target, str) and target.startswith(RANDOM):
        return _verify_random(target.removeprefix(RANDOM), how)
    artifact = load(target, proven=False, access=access)
    report = _run(artifact, _original(artifact, source, access), how)
    if artifact.path is not None and report.status != "not_run" and not is_pulled(artifact.path):
        if os.access(artifact.path, os.W_OK):
            write_parity(artifact.path, report.to_dict(), report.vectors)
        else:
            warn(f"{artifact.path} is read-only, so the proof was not put into it.")
    return report


def _original(artifact: Artifact, source: str | Path | None, access: Access | None) -> Path:
    """The file that ``artifact`` was converted from."""
    pin, uri = artifact.source, artifact.source.uri
    if source is None:
        if found := original(pin.sha256):
            return found
        if not uri.startswith(PUBLIC):
            raise ZooError(
                f"The original of {artifact.name} ({uri}, sha256 {pin.sha256}) is not at hand.",
                "Give it with --source FILE.",
            )
        source = uri  # a stranger's artifact may name an address anywhere: only these are asked unasked
    if isinstance(source, str) and is_uri(source):
        return fetch(source, sha256=pin.sha256, bytes=pin.bytes, access=access)
    return Path(source)


def replay_target(target: str | Path, *, access: Access | None = None) -> Report:
    """:func:`~pylo_zoo.parity.replay` the artifact that ``target``, a directory or ``hf://ORG/NAME``, is."""
    on_the_hub = isinstance(target, str) and target.startswith("hf://")
    return replay(load(target if on_the_hub else Path(target), proven=False, access=access))


def _run(artifact: Artifact, path: Path, how: How) -> Report:
    return parity.verify(artifact, path, seed=how.seed, max_error=how.max_error, progress=how.progress)


def _verify_random(name: str, how: How) -> Report:
    family = converters.get(name)
    if jax_is_missing():
        raise ZooError(
            "Random weights are compared with JAX alone, which is not installed.", "pip install 'pylo-zoo[jax]'."
        )
    from flax import serialization

    random = np.random.default_rng(how.seed)
    leaves = {
        path: np.float32(SCALE) * random.standard_normal(shape, dtype=np.float32)
        for path, shape in sorted(leaf_shapes(family, family.released).items())
    }
    with TemporaryDirectory() as directory:
        path = Path(directory) / "theta.state"
        path.write_bytes(serialization.msgpack_serialize(nest(leaves)))
        report = _run(replace(convert(name, source=path), name=RANDOM + name), path, how)
    return replace(report, source={**report.source, "uri": f"{RANDOM}{name} (seed {how.seed})"})


@dataclass
class Everything:
    """What came of verifying all there is.

    Attributes:
        reports: of what could be tried.
        missing: the entries whose files could not be had, with the reason.
        broken: those that could not be read or run for another reason, with that.
    """

    reports: list[Report] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.reports) and not self.broken and all(report.passed for report in self.reports)


def verify_all(access: Access | None = None, how: How | None = None) -> Everything:
    """Verify random weights of every family that has a reference, and every registry entry whose files can be had."""
    how = how or How()
    if jax_is_missing():
        raise ZooError("Parity runs the original in JAX, which is not installed.", "pip install 'pylo-zoo[jax]'.")
    found = Everything()
    for name in targets():
        try:
            found.reports.append(verify_target(name, access=access, how=_named(how, name)))
        except (NotFound, Forbidden, Unavailable) as error:
            found.missing[name] = error.message
        except ZooError as error:
            found.broken[name] = error.message
        except Exception as error:  # one family's fault must not lose the others' reports
            found.broken[name] = f"{type(error).__name__}: {error}"
    return found


def targets() -> list[str]:
    """What :func:`verify_all` verifies, in order."""
    families = [f"{RANDOM}{name}" for name, family in converters.FAMILIES.items() if family.reference is not None]
    return [*families, *registry.load_registry()]


def _named(how: How, name: str) -> How:
    tell = how.progress
    return how if tell is None else replace(how, progress=lambda what, *parts: tell(f"{name}: {what}", *parts))


# --- writing -----------------------------------------------------------------------------------------------------


class Pages(NamedTuple):
    """Where to write reports for people and for machines; None leaves one out."""

    html: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None


def check_pages(pages: Pages) -> None:
    """Whether :func:`write_pages` can write them; worth asking before long work.

    Raises:
        ZooError: the directory of one is not there, or one is a directory.
    """
    for path in pages:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            what = "is a directory" if path.is_dir() else f"cannot be written: {path.parent} is no directory"
            raise ZooError(f"{path} {what}.", "Give a file in a directory that is there.")


def write_pages(found: Everything, pages: Pages) -> None:
    """Write what was found, each file in one step."""
    if pages.html:
        from pylo_zoo.parity import html

        write_file(pages.html, html.render_html(found.reports).encode())
    if pages.markdown:
        from pylo_zoo.parity import markdown

        one = len(found.reports) == 1
        text = markdown.render_markdown(found.reports[0]) if one else markdown.render_many(found.reports)
        write_file(pages.markdown, text.encode())
    if pages.junit:
        from pylo_zoo.parity import junit

        write_file(pages.junit, junit.render_junit(found.reports, found.missing, found.broken).encode())
