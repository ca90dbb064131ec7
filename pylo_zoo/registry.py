"""Loads ``registry.yaml``: the known checkpoints, where they are, and settings that their files do not contain.

>>> entry = get("celo")
>>> entry.family, entry.license, entry.weights.format
('celo', 'MIT', 'flax-msgpack')
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pylo_zoo import config, converters, plain_yaml, plugins
from pylo_zoo.errors import UsageError, ZooError, did_you_mean, quoted
from pylo_zoo.files import open_regular
from pylo_zoo.parsing import Field

T = TypeVar("T")

PACKAGE = Path(__file__).parent
MAX_BYTES = 1024 * 1024
"""Maximum size of a registry file in bytes. The package's registry has 20 kB."""

Format = Literal[
    "flax-msgpack",
    "flax-params",
    "flax-checkpoint",
    "gin",
    "pickle",
    "npz",
    "safetensors",
    "torch",
    "pylo-safetensors",
    "pylo-torch",
    "artifact",
]
"""The formats of :class:`pylo_zoo.formats.Source` that are files (orbax is a directory), ``gin`` and ``artifact``."""


@dataclass(frozen=True)
class Source:
    """One file of a checkpoint: its address, its format, and its size and sha256 if known."""

    uri: str
    format: Format
    bytes: int | None = None
    sha256: str | None = None
    package: str = "pylo_zoo"
    """The installed package that ``package://`` refers to. It is not a field of the file."""

    @property
    def scheme(self) -> str:
        """The scheme of the address: ``hf``, ``gs``, ``https`` or ``package``."""
        return self.uri.partition("://")[0]

    @property
    def filename(self) -> str:
        """The file name, without a Hub revision."""
        return self.uri.rpartition("/")[2].partition("@")[0]

    @property
    def origin(self) -> str:
        """The publisher: the Hub organization, the bucket, the host, or ``this package``."""
        if self.scheme != "package":
            return self.uri.split("/")[2]
        return "this package" if self.package == "pylo_zoo" else self.package

    @property
    def path(self) -> Path | None:
        """The local path of a ``package://`` source; None for any other."""
        if self.scheme != "package":
            return None
        root = PACKAGE if self.package == "pylo_zoo" else Path(str(resources.files(self.package)))
        return root / self.uri.partition("://")[2]


@dataclass(frozen=True)
class Published:
    """An artifact on the Hub: ``uri`` is ``hf://ORG/NAME@COMMIT``; ``sha256`` maps file names to hashes."""

    uri: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class Paper:
    """The paper that describes the optimizer."""

    arxiv: str
    title: str


@dataclass(frozen=True)
class LearnedDecays:
    """Learned decay offsets (SPEC §3) of a checkpoint whose file does not contain them."""

    momentum: config.Triple
    rms: tuple[float]
    adafactor: config.Triple


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    ``sources`` lists all files of the checkpoint, the weights first. If only an ``artifact`` was published, it is the
    artifact's weights. ``behavior`` is complete: fields that the entry omits have the family's released values.
    ``architecture`` and ``learned_decays`` are None if unknown; ``artifact`` is None if none was published.
    """

    name: str
    family: str
    summary: str
    license: str
    trained: bool
    sources: tuple[Source, ...]
    behavior: Any
    defaults: Mapping[str, float]
    architecture: Any = None
    learned_decays: LearnedDecays | None = None
    paper: Paper | None = None
    notes: str | None = None
    artifact: Published | None = None

    @property
    def weights(self) -> Source:
        """The file that contains the weights, or the first of several."""
        return self.sources[0]

    @property
    def bytes(self) -> int | None:
        """The size of the weights, or None if it is unknown."""
        sizes = [source.bytes for source in self.sources if source.format != "gin"]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def get(name: str) -> Entry:
    """The entry called ``name``."""
    entries = load_registry()
    if name in entries:
        return entries[name]
    hint = did_you_mean(name, entries, "`pylo-zoo list` shows all names.")
    raise UsageError(f"Unknown checkpoint {name!r}.", hint)


def load_registry(path: Path | None = None) -> Mapping[str, Entry]:
    """Load the entries of the registry at ``path`` by name, in file order.

    Without ``path``, load the package's registry and those that other packages declare (docs/adding-a-family.md).
    """
    return _load(path) if path else _all_entries()


@functools.cache
def _all_entries() -> Mapping[str, Entry]:
    own = _load(_default_path())
    return MappingProxyType({**own, **plugins.collect(plugins.REGISTRIES, _load_entry_point, own)})


def _load_entry_point(point: EntryPoint) -> Mapping[str, Entry]:
    """Load the registry of another package, declared as ``package:file.yaml``."""
    return _load(Path(str(resources.files(point.module) / point.attr)), point.module)


@functools.cache
def _load(path: Path, package: str = "pylo_zoo") -> Mapping[str, Entry]:
    try:
        document = plain_yaml.load(_read_text(path))
    except OSError as error:
        raise ZooError(
            f"Cannot read the registry {path}: {error.strerror}.",
            f"Reinstall {package}.".replace("pylo_zoo", "pylo-zoo"),
        ) from error
    except (plain_yaml.NotPlain, UnicodeDecodeError) as error:
        raise ZooError(f"{path.name} is not valid YAML: {error}.", "Correct the file.") from error
    entries = Field(document, path.name).object()
    return MappingProxyType({name: _entry(name, values, package) for name, values in entries.items()})


def _read_text(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ZooError(f"{path} is larger than {MAX_BYTES:,} bytes.", "Check that it is a registry file.")
    return data.decode("utf-8")


def _default_path() -> Path:
    """``registry.yaml`` inside the installed package, or next to the package in a checkout (setup.py copies it)."""
    installed = PACKAGE / "registry.yaml"
    return installed if installed.is_file() else PACKAGE.parent / "registry.yaml"


# --- validation --------------------------------------------------------------------------------------------------


_REQUIRED = ("family", "summary", "license", "trained")
_OPTIONAL = ("notes", "sources", "architecture", "behavior", "defaults", "learned_decays", "paper", "artifact")
_HEX = "64 lower-case hex digits"
_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_ARTIFACT = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)
_URI = re.compile(
    r"hf://[\w.-]+/[\w.-]+(@[\w.-]+(/[\w.-]+)+|(/[\w.-]+)+(@[\w.-]+)?)"
    r"|(gs://[\w.-]+|https://[\w.-]+(:\d+)?|package:/)(/[\w.-]+)+",
    re.ASCII,
)
_URI_FORMS = "hf://ORG/REPO/FILE[@REV], gs://BUCKET/PATH, https://HOST/PATH or package://PATH"


def _entry(name: Any, values: Any, package: str) -> Entry:
    label = f"registry.yaml: {name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ZooError(f"{label} is not a valid name.", "Use lower-case letters, digits, - and _.")
    fields = Field(values, label).fields(_REQUIRED, _OPTIONAL)
    family = _family(fields["family"])
    artifact = _get(fields, "artifact", _published)
    return Entry(
        name=name,
        family=family.name,
        summary=fields["summary"].text(),
        license=fields["license"].text(),
        trained=fields["trained"].boolean(),
        notes=_get(fields, "notes", Field.text),
        sources=_sources(fields.get("sources", Field(None, f"{label}: sources")), package, artifact),
        artifact=artifact,
        architecture=_get(fields, "architecture", lambda field: field.record(family.architecture)),
        behavior=fields["behavior"].record(family.behavior) if "behavior" in fields else family.behavior(),
        learned_decays=_get(fields, "learned_decays", lambda field: _learned_decays(family, field)),
        paper=_get(fields, "paper", _paper),
        defaults=_defaults(family, fields["defaults"]) if "defaults" in fields else MappingProxyType({}),
    )


def _get(fields: Mapping[str, Field], name: str, item: Callable[[Field], T]) -> T | None:
    """The field ``name``, or None if it is missing or null."""
    return fields[name].optional(item) if name in fields else None


def _family(field: Field) -> converters.Family:
    known = tuple(converters.FAMILIES)  # also warns about another package's family that cannot be loaded
    if field.text() not in known:
        hint = did_you_mean(field.value, known, f"Known families: {', '.join(known)}.")
        raise field.error(f" {quoted(field.value)} is unknown", hint)
    return converters.FAMILIES[field.value]


def _published(field: Field) -> Published:
    fields = field.fields(("uri", "sha256"))
    hashes = fields["sha256"].mapping(lambda each: each.match(_SHA256, _HEX))
    needed = {"config.json", "model.safetensors"}
    if not needed <= hashes.keys():
        raise fields["sha256"].error(f" has {quoted(sorted(hashes))}", f"It needs {sorted(needed)}.")
    uri = fields["uri"].match(_ARTIFACT, "hf://ORG/NAME@COMMIT with 40 hex digits")
    return Published(uri, MappingProxyType(hashes))


def _sources(field: Field, package: str, artifact: Published | None) -> tuple[Source, ...]:
    if field.value is None and artifact is not None:
        repo, _, commit = artifact.uri.partition("@")
        weights = "model.safetensors"
        return (Source(f"{repo}/{weights}@{commit}", "artifact", sha256=artifact.sha256[weights]),)
    if not isinstance(field.value, list) or not field.value:
        raise field.wrong("a list that contains at least the weights file")
    sources = tuple(field.items(lambda each: _source(each, package)))
    if sources[0].format == "gin":
        raise field.error("[0] is gin", "List the weights first.")
    return sources


def _source(field: Field, package: str) -> Source:
    fields = field.fields(("uri", "format"), ("bytes", "sha256"))
    uri = fields["uri"].match(_URI, _URI_FORMS)
    if {".", ".."} & set(uri.split("/")):
        raise fields["uri"].wrong(_URI_FORMS)
    _get(fields, "sha256", lambda each: each.match(_SHA256, _HEX))
    return replace(field.record(Source), package=package)


def _paper(field: Field) -> Paper:
    field.fields(("arxiv", "title"))["arxiv"].match(_ARXIV, "a string such as '2501.12670'")
    return field.record(Paper)


def _learned_decays(family: converters.Family, field: Field) -> LearnedDecays:
    if not family.has_learned_decays:
        raise field.error(f": {family.name} has no learned decays", "Remove the field.")
    return field.record(LearnedDecays)


def _defaults(family: converters.Family, field: Field) -> Mapping[str, float]:
    fields = field.fields((), optional=family.defaults)
    return MappingProxyType({key: each.number() for key, each in fields.items()})
