"""A converted checkpoint on disk: ``model.safetensors``, ``config.json`` and, after a parity check, ``parity.json``.

Only this module reads and writes them. The same artifact always produces the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pylo_zoo import impostors, limits
from pylo_zoo.config import to_dict
from pylo_zoo.converters import Family
from pylo_zoo.converters import get as get_family
from pylo_zoo.converters.base import UNUSED, tensor_shapes
from pylo_zoo.converters.conversion import structure_problems, value_problems
from pylo_zoo.errors import UsageError, ZooError, quoted
from pylo_zoo.files import REPLACE, check_directory_target, read_regular, staged_directory, write_file
from pylo_zoo.leftovers import left_behind
from pylo_zoo.parsing import Field, unique_keys
from pylo_zoo.source_record import CONVERT_AGAIN, SourceRecord, read_source, read_string

FORMAT_VERSION = 1
CONFIG, WEIGHTS, PARITY = "config.json", "model.safetensors", "parity.json"
VECTORS = "parity-vectors.safetensors"
"""What the original JAX code computed, for a replay without JAX (:mod:`pylo_zoo.parity.vectors`)."""
STATE_DICT = "model.pt"
"""The weights a second time, as ``torch.save`` writes them; optional."""
CARD, PAGE, PLOT = "README.md", "parity.html", "parity.png"
"""Additional files of a published artifact: the model card, and the parity report as a page and as a plot."""
OWN_FILES = frozenset({CONFIG, WEIGHTS, PARITY, VECTORS, STATE_DICT, CARD, PAGE, PLOT})
"""The only files that may exist in an artifact's directory; replacing the artifact deletes them."""
KEYS = ("format_version", "family", "name", "architecture", "behavior", "defaults", "source", "converter")
MAX_JSON_BYTES = 4 * 1024 * 1024
"""Maximum size of ``config.json`` or ``parity.json`` in bytes. Parsing needs 20 times that; real files have 240 kB."""
MAX_HEADER_BYTES = 2 * 1024 * 1024
"""Maximum size of the header of a safetensors file in bytes: the library allocates several objects per tensor."""


@dataclass(frozen=True)
class Converter:
    """The program that wrote the artifact."""

    version: str


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """A learned optimizer's weights with its configuration, source and parity report.

    Attributes:
        family: one of :data:`pylo_zoo.converters.FAMILIES`.
        name: the registry entry's name, or the family's.
        architecture: the family's architecture record.
        behavior: the family's behavior record.
        defaults: default arguments of the optimizer.
        source: the checkpoint that the artifact was converted from.
        converter: the program that converted it.
        tensors: the network's state_dict in float32, and ``unused.*`` leaves that only an export needs.
        parity: content of ``parity.json``, or None.
        path: the directory that the artifact was read from, or None.
    """

    family: str
    name: str
    architecture: Any
    behavior: Any
    defaults: Mapping[str, float]
    source: SourceRecord
    converter: Converter
    tensors: Mapping[str, Tensor]
    parity: Mapping[str, Any] | None = None
    path: Path | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors, without ``unused.*``."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(UNUSED)}

    def net(self) -> nn.Module:
        """A new network with these weights, in evaluation mode and without gradients."""
        net = get_family(self.family).build(self.architecture, self.behavior)
        net.load_state_dict({name: tensor.clone() for name, tensor in self.state_dict().items()}, assign=True)
        return net.eval().requires_grad_(False)

    def __repr__(self) -> str:
        parity = (self.parity or {}).get("status", "not_run")
        sha256 = self.source.sha256[:12]
        return f"<Artifact {self.name!r} ({self.family}) from {self.source.uri!r}, sha256 {sha256}…, parity {parity}>"

    def misdescribed(self) -> str | None:
        """The first of name, uri and sha256 that differs between the parity report and the artifact, or None."""
        source = (self.parity or {}).get("source")
        source = source if isinstance(source, dict) else {}
        actual = {"name": self.name, "uri": self.source.uri, "sha256": self.source.sha256}
        reported = {"name": (self.parity or {}).get("name"), "uri": source.get("uri"), "sha256": source.get("sha256")}
        differing = [key for key in actual if reported[key] != actual[key]]
        if not self.parity or not differing:
            return None
        key = differing[0]
        return f"{key} {quoted(reported[key])}, not {quoted(actual[key])}"

    def changed_default(self) -> str | None:
        """The first default that differs from the parity report's, or None.

        Defaults (``lr``, decays) are not part of :attr:`fingerprint`, which optimizer states and older reports store.
        """
        recorded = (self.parity or {}).get("defaults")
        if recorded is None or recorded == dict(self.defaults):
            return None
        before: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
        names = sorted({*before, *self.defaults})
        name = next((name for name in names if before.get(name) != self.defaults.get(name)), "defaults")
        return f"{name} was {quoted(before.get(name))} and is {quoted(self.defaults.get(name))}"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that the update depends on: family, architecture, behavior and tensors."""
        digest = hashlib.sha256()
        records = [self.family, to_dict(self.architecture), to_dict(self.behavior)]
        digest.update(json.dumps(records, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def config(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        return {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "name": self.name,
            "architecture": to_dict(self.architecture),
            "behavior": to_dict(self.behavior),
            "defaults": dict(self.defaults),
            "source": asdict(self.source),
            "converter": asdict(self.converter),
        }


# --- writing -----------------------------------------------------------------------------------------------------


def check_output(directory: Path, *, force: bool) -> None:
    """Check that :func:`write` may put an artifact at ``directory``. Call this before long work.

    Raises:
        ZooError: ``directory`` is a file, holds other files or cannot be written, or it holds an artifact and ``force``
            is not set.
    """
    if directory.exists() and not directory.is_dir():
        raise ZooError(f"{directory} is a file.", "Choose another directory.")
    check_directory_target(directory)
    if not directory.exists():
        return
    present = {path.name for path in directory.iterdir() if not left_behind(path.name)}
    if foreign := sorted(present - OWN_FILES):
        raise ZooError(
            f"{directory} holds files that are not part of an artifact: {', '.join(foreign[:4])}.",
            "Choose another directory.",
        )
    if present and not force:
        raise ZooError(f"{directory} already exists.", f"Replace it with {REPLACE}, or choose another directory.")


def check_not_own_file(path: Path) -> None:
    """Check that ``path``, a file that a command writes, is not a file of an artifact.

    Raises:
        ZooError: it is one, or a link to one.
    """
    for place in (path, Path(os.path.realpath(path))):
        folder = place.parent
        if place.name in OWN_FILES and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            raise ZooError(f"{path} is a file of the artifact {folder}.", "Choose another file.")


def write(
    artifact: Artifact, directory: str | Path, *, force: bool = False, extra_files: Mapping[str, bytes] | None = None
) -> Path:
    """Write ``artifact`` to ``directory``. A failure leaves the directory as it was.

    Args:
        artifact: the artifact; its ``parity`` becomes ``parity.json``.
        directory: the target.
        force: replace an artifact in ``directory``, in one step.
        extra_files: additional files of :data:`OWN_FILES`, such as ``model.pt``.

    Returns:
        The directory.

    Raises:
        ZooError: see :func:`check_output`, or the directory cannot be written.
    """
    directory = Path(directory)
    check_output(directory, force=force)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(artifact.tensors.items())}
    files = {
        # One metadata key only: the order of two in the header, and with it the sha256, changes between saves.
        WEIGHTS: save_safetensors(tensors, metadata={"format": "pt"}),
        CONFIG: _json(artifact.config()),
        **({} if artifact.parity is None else {PARITY: _json(artifact.parity)}),
        **(extra_files or {}),
    }
    with staged_directory(directory, last=CONFIG) as staging:
        for name, data in files.items():
            (staging / name).write_bytes(data)
    return directory


def write_parity(directory: str | Path, parity: Mapping[str, Any], vectors: bytes | None = None) -> None:
    """Replace ``parity.json`` of the artifact at ``directory`` in one step, after writing ``vectors``."""
    if vectors is not None:
        write_file(Path(directory) / VECTORS, vectors)
    write_file(Path(directory) / PARITY, _json(parity))


def pack_arrays(arrays: Mapping[str, np.ndarray], about: str) -> bytes:
    """Encode ``arrays`` and the description ``about`` as a safetensors file, deterministically."""
    return save_arrays({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, {"about": about})


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The inverse of :func:`pack_arrays`.

    Raises:
        ZooError: the file is damaged.
    """
    hint = "Fetch the artifact again, or verify it with JAX."
    data = _safetensors_bytes(path, hint)
    try:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}).get("about", "")
        return load_arrays(data), about
    except (*UNREADABLE, RecursionError, AttributeError) as error:
        raise ZooError(f"{path} cannot be read: {str(error)[:200]}.", hint) from error


UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)
"""What the safetensors library raises for a damaged file or an unsupported dtype."""


def _safetensors_bytes(path: Path, hint: str) -> bytes:
    """Read a safetensors file after checking the sizes of the file and of its header."""
    data = read_regular(path, limits.max_bytes(), hint, large=limits.RAISE)
    if (size := int.from_bytes(data[:8], "little")) > MAX_HEADER_BYTES:
        _check_impostor(path, data)
        raise ZooError(f"{path} declares a header of {size:,} bytes; the limit is {MAX_HEADER_BYTES:,}.", hint)
    return data


def state_dict_file(artifact: Artifact) -> bytes:
    """The network's state_dict as ``torch.save`` writes it. It loads with ``weights_only=True``."""
    buffer = io.BytesIO()
    torch.save(artifact.state_dict(), buffer)
    return buffer.getvalue()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


# --- reading -----------------------------------------------------------------------------------------------------


def read(directory: str | Path, *, max_bytes: int | None = None) -> Artifact:
    """Read and validate the artifact at ``directory``.

    Args:
        directory: the artifact's directory.
        max_bytes: the size limit for its weights (:mod:`pylo_zoo.limits`).

    Raises:
        ZooError: a file is missing or damaged, a key is unknown or missing, or a tensor does not fit the family.
    """
    with limits.allow(max_bytes):
        return _read(Path(directory))


def _read(directory: Path) -> Artifact:
    if not directory.is_dir():
        raise no_directory(directory)
    if not os.path.lexists(directory / CONFIG):
        raise ZooError(f"{directory} is not an artifact: it has no {CONFIG}.", "Create one with `pylo-zoo convert`.")
    values = _read_json(directory / CONFIG)
    fields = Field(values, CONFIG).fields(KEYS)
    if values["format_version"] != FORMAT_VERSION:
        raise ZooError(
            f"{directory / CONFIG} has format_version {quoted(values['format_version'])}, not {FORMAT_VERSION}.",
            "Update pylo-zoo, or convert the checkpoint again.",
        )
    try:
        family = get_family(read_string(fields["family"]))
    except UsageError as error:
        raise ZooError(f"{directory / CONFIG}: {error.message}", error.hint) from None
    architecture = fields["architecture"].record(family.architecture)
    source = read_source(fields["source"])
    return Artifact(
        family=family.name,
        name=read_string(fields["name"]),
        architecture=architecture,
        behavior=fields["behavior"].record(family.behavior),
        defaults=_defaults(family, fields["defaults"]),
        source=source,
        converter=fields["converter"].record(Converter),
        tensors=_tensors(directory / WEIGHTS, family, architecture, finite="nonfinite" not in source.layout),
        parity=_read_json(directory / PARITY) if os.path.lexists(directory / PARITY) else None,
        path=directory,
    )


def no_directory(path: Path) -> ZooError:
    """The error for a ``path`` that should be an artifact's directory and is not a directory."""
    if not os.path.lexists(path):
        return ZooError(f"{path} does not exist.", "Check the path, which should be an artifact's directory.")
    if path.is_symlink() and not path.exists():
        return ZooError(f"{path} is a link to something that does not exist.", "Pass an artifact's directory.")
    if path.name in OWN_FILES:
        return ZooError(f"{path} is a file of an artifact, not its directory.", f"Pass {path.parent}.")
    hint = "Pass an artifact's directory, or describe a checkpoint with `pylo-zoo inspect`."
    return ZooError(f"{path} is a file, not an artifact's directory.", hint)


def _tensors(path: Path, family: Family, architecture: Any, *, finite: bool) -> dict[str, Tensor]:
    data = _safetensors_bytes(path, CONVERT_AGAIN)
    try:
        tensors = load_safetensors(data)
    except UNREADABLE as error:
        _check_impostor(path, data)
        raise ZooError(f"{path} cannot be read: {str(error)[:200]}.", CONVERT_AGAIN) from error
    if wrong := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
        raise ZooError(f"{path}: {wrong[0]} is not float32.", CONVERT_AGAIN)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    _check_sizes(path, architecture, sum(array.size for array in arrays.values()))
    expected = tensor_shapes(family, architecture)
    values = value_problems("tensors", arrays, finite=finite)
    if problems := [*structure_problems("tensors", arrays, expected), *values]:
        raise ZooError(f"{path}: {'; '.join(problems)}.", CONVERT_AGAIN)
    return tensors


def _check_impostor(path: Path, data: bytes) -> None:
    """Raise :class:`ZooError` if ``data``, the content of ``path``, is a web page, a Git LFS pointer or similar."""
    if impostor := impostors.recognize(data[: impostors.HEAD], len(data), text=path.suffix != ".json"):
        raise ZooError(f"{path} is {impostor.what}, not part of an artifact.", impostor.hint) from None


def _check_sizes(path: Path, architecture: Any, values: int) -> None:
    """Reject an architecture that is larger than the weights, before a network of that size is allocated."""
    for name, size in vars(architecture).items():
        if isinstance(size, int) and size > values:
            raise ZooError(
                f"{CONFIG}: architecture: {name} is {str(size)[:24]}, but {path.name} holds only {values:,} values.",
                CONVERT_AGAIN,
            )


def _defaults(family: Family, field: Field) -> dict[str, float]:
    for each in field.fields((), optional=family.defaults).values():
        each.number()
    return dict(field.value)


def _read_json(path: Path) -> dict[str, Any]:
    data = read_regular(path, MAX_JSON_BYTES, CONVERT_AGAIN)
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        _check_impostor(path, data)
        raise ZooError(f"{path} cannot be read: {str(error)[:200]}.", CONVERT_AGAIN) from error
    if not isinstance(values, dict):
        raise ZooError(f"{path} is not a JSON object.", CONVERT_AGAIN)
    return values
