"""Loads ``registry.yaml``: the known checkpoints, where they are, and settings that their files do not contain.

>>> entry = get("celo")
>>> entry.family, entry.license, entry.weights.format
('celo', 'MIT', 'flax-msgpack')
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pylo_zoo import config, converters, plain_yaml, plugins
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.files import open_regular

PACKAGE = Path(__file__).parent
MAX_BYTES = 1024 * 1024
"""Largest registry file. The package's registry has 20 kB."""

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
    similar = difflib.get_close_matches(name, entries, n=1)
    listing = "`pylo-zoo list` shows all names."
    raise ZooError(
        f"Unknown checkpoint {name!r}.",
        f"Did you mean {similar[0]!r}? {listing}" if similar else listing,
    )


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
    entries = {name: _entry(name, values, package) for name, values in _mapping(document, path.name).items()}
    return MappingProxyType(entries)


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


@dataclass(frozen=True)
class _Plain:
    """The fields of an entry that are strings or booleans."""

    family: str
    summary: str
    license: str
    trained: bool
    notes: str | None = None


_PLAIN = tuple(field.name for field in fields(_Plain))
_KNOWN = tuple(field.name for field in fields(Entry) if field.name != "name")
_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_ARTIFACT = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)
_URI = re.compile(
    r"hf://[\w.-]+/[\w.-]+(@[\w.-]+(/[\w.-]+)+|(/[\w.-]+)+(@[\w.-]+)?)"
    r"|(gs://[\w.-]+|https://[\w.-]+(:\d+)?|package:/)(/[\w.-]+)+",
    re.ASCII,
)


def _entry(name: Any, values: Any, package: str) -> Entry:
    label = f"registry.yaml: {name}"
    name_ok = isinstance(name, str) and _NAME.fullmatch(name)
    _require(name_ok, f"{label} is not a valid name", "Use lower-case letters, digits, - and _.")
    values = _mapping(values, label)
    for key in values:
        _require(key in _KNOWN, f"{label}: unknown field {quoted(key)}", f"Known fields: {', '.join(sorted(_KNOWN))}.")
    plain = config.parse(_Plain, {key: values[key] for key in values if key in _PLAIN}, label)
    families = f"Known families: {', '.join(converters.FAMILIES)}."
    _require(plain.family in converters.FAMILIES, f"{label}: family {quoted(plain.family)} is unknown", families)
    family = converters.FAMILIES[plain.family]
    behavior = _mapping(values.get("behavior", {}), f"{label}: behavior")
    artifact = _published(values.get("artifact"), f"{label}: artifact")
    return Entry(
        name=name,
        family=plain.family,
        summary=plain.summary,
        license=plain.license,
        trained=plain.trained,
        notes=plain.notes,
        sources=_sources(values.get("sources"), f"{label}: sources", package, artifact),
        artifact=artifact,
        architecture=_parse_optional(family.architecture, values.get("architecture"), f"{label}: architecture"),
        behavior=config.parse(family.behavior, behavior, f"{label}: behavior"),
        learned_decays=_learned_decays(plain.family, values.get("learned_decays"), f"{label}: learned_decays"),
        paper=_paper(values.get("paper"), f"{label}: paper"),
        defaults=_defaults(family, values.get("defaults", {}), f"{label}: defaults"),
    )


def _published(values: Any, label: str) -> Published | None:
    if values is None:
        return None
    keys_ok = _mapping(values, label).keys() == {"uri", "sha256"}
    _require(keys_ok, f"{label} has the fields {quoted(sorted(values, key=str))}", "It must have uri and sha256 only.")
    uri, hashes = values["uri"], _mapping(values["sha256"], f"{label}: sha256")
    uri_ok = isinstance(uri, str) and _ARTIFACT.fullmatch(uri)
    _require(uri_ok, f"{label}: uri is {quoted(uri)}", "It must be hf://ORG/NAME@COMMIT with 40 hex digits.")
    for name, sha256 in hashes.items():
        sha256_ok = isinstance(sha256, str) and _SHA256.fullmatch(sha256)
        _require(sha256_ok, f"{label}: sha256 of {name} is {quoted(sha256)}", "It must be 64 lower-case hex digits.")
    needed = {"config.json", "model.safetensors"}
    _require(
        needed <= hashes.keys(), f"{label}: sha256 has {quoted(sorted(hashes, key=str))}", f"It needs {sorted(needed)}."
    )
    return Published(uri, MappingProxyType(dict(hashes)))


def _sources(values: Any, label: str, package: str, artifact: Published | None = None) -> tuple[Source, ...]:
    if values is None and artifact is not None:
        repo, _, commit = artifact.uri.partition("@")
        weights = "model.safetensors"
        return (Source(f"{repo}/{weights}@{commit}", "artifact", sha256=artifact.sha256[weights]),)
    _require(isinstance(values, list) and values, f"{label} is {quoted(values)}", "List at least the weights file.")
    assert isinstance(values, list)
    for i, each in enumerate(values):
        _require("package" not in _mapping(each, label), f"{label}[{i}]: unknown field 'package'", "Remove it.")
    sources = tuple(
        config.parse(Source, {**each, "package": package}, f"{label}[{i}]") for i, each in enumerate(values)
    )
    for i, source in enumerate(sources):
        uri_ok = _URI.fullmatch(source.uri) and not {".", ".."} & set(source.uri.split("/"))
        hint = "It must be hf://ORG/REPO/FILE[@REV], gs://BUCKET/PATH, https://HOST/PATH or package://PATH."
        _require(uri_ok, f"{label}[{i}]: uri is {quoted(source.uri)}", hint)
        sha256_ok = source.sha256 is None or _SHA256.fullmatch(source.sha256)
        _require(sha256_ok, f"{label}[{i}]: sha256 is {quoted(source.sha256)}", "It must be 64 lower-case hex digits.")
    _require(sources[0].format != "gin", f"{label}[0] is gin", "List the weights first.")
    return sources


def _paper(values: Any, label: str) -> Paper | None:
    paper = _parse_optional(Paper, values, label)
    arxiv_ok = paper is None or _ARXIV.fullmatch(paper.arxiv)
    _require(
        arxiv_ok, f"{label}: arxiv is {quoted(paper and paper.arxiv)}", "It must be a string such as '2501.12670'."
    )
    return paper


def _learned_decays(family: str, values: Any, label: str) -> LearnedDecays | None:
    allowed = values is None or family in ("adafac-mlp", "mulo")
    _require(allowed, f"{label}: {family} has no learned decays", "Remove the field; only adafac-mlp and mulo have it.")
    return _parse_optional(LearnedDecays, values, label)


def _defaults(family: converters.Family, values: Any, label: str) -> Mapping[str, float]:
    known = family.defaults
    for key, value in _mapping(values, label).items():
        _require(key in known, f"{label}: unknown field {quoted(key)}", f"Known fields: {', '.join(known)}.")
        _require(config.is_finite(value), f"{label}: {key} is {quoted(value)}", "It must be a finite number.")
    return MappingProxyType({key: float(value) for key, value in values.items()})


def _parse_optional(record: type[config.Record], values: Any, label: str) -> config.Record | None:
    return None if values is None else config.parse(record, _mapping(values, label), label)


def _mapping(values: Any, label: str) -> Mapping[Any, Any]:
    _require(isinstance(values, dict), f"{label} is {quoted(values)}", "It must be a mapping of names to values.")
    return values


def _require(condition: object, message: str, hint: str) -> None:
    if not condition:
        raise ZooError(f"{message}.", hint)
